//! Rules for volumes, where they are mounted, and secret files.

use std::collections::{BTreeMap, BTreeSet};

use super::names;
use crate::app::manifest::{self, Scalar};
use crate::app::quantity::{SIZE_ALLOWED, size_bytes};
use crate::app::types::lies_in;
use crate::app::{Access, HostPathKind, SECRETS, SecretFile, Volume, VolumeMount};
use crate::document::{Findings, shown};

const VOLUME_NAME: &str =
    "1 to 63 characters a-z, 0-9 and '-', beginning and ending with a letter or digit";
const FILE_NAME: &str =
    "1 to 255 letters, digits, '-', '_' and '.', beginning with a letter, a digit or '_'";
const MODE: &str = "permission bits as an octal text, \"0400\" to \"0777\"";
const MOUNT_PATH: &str =
    "an absolute path below / without \".\", \"..\", \":\" or a trailing slash";
const HOST_PATH: &str = "an absolute path below / without \".\", \"..\" or a trailing slash";
const MAX: usize = 64;

/// What is mounted by the agent or the runtime; nothing may cover it.
const OURS: [&str; 4] = ["/.nodeagent", "/proc", "/sys", "/dev"];

/// `volumes` and `volumeMounts` together, in the order in which they are mounted.
pub(super) fn mounts(
    volumes: Vec<manifest::Volume>,
    mounts: Vec<manifest::VolumeMount>,
    findings: &mut Findings,
) -> Vec<VolumeMount> {
    for (field, count) in [
        ("spec.volumes", volumes.len()),
        ("spec.volumeMounts", mounts.len()),
    ] {
        if count > MAX {
            findings.wrong(
                field,
                format!("a list of {count}"),
                format!("at most {MAX}"),
            );
        }
    }
    let volumes = named(volumes, findings);
    let (mut used, mut paths) = (BTreeSet::new(), BTreeSet::new());
    let mut valid = Vec::new();
    for (index, mount) in mounts.into_iter().enumerate() {
        let field = format!("spec.volumeMounts[{index}]");
        let path = mount_path(&format!("{field}.mountPath"), mount.mount_path, findings);
        if !paths.insert(path.clone()) && !path.is_empty() {
            findings.wrong(
                &format!("{field}.mountPath"),
                shown(&path),
                "a path that no other mount has",
            );
        }
        let at = format!("{field}.name");
        let Some(name) = mount.name else {
            findings.note(&at, "required: the name of a volume in spec.volumes");
            continue;
        };
        let Some(volume) = volumes.get(&name) else {
            let known: Vec<&str> = volumes.keys().map(String::as_str).collect();
            let allowed = match known.as_slice() {
                [] => "the name of a volume (spec.volumes has none)".to_owned(),
                known => format!("the name of a volume in spec.volumes: {}", known.join(", ")),
            };
            findings.wrong(&at, shown(&name), allowed);
            continue;
        };
        if !used.insert(name.clone()) && matches!(volume, Volume::Memory { .. }) {
            findings.wrong(&at, shown(&name), "a volume in memory is mounted once");
        }
        valid.push(VolumeMount {
            volume: volume.clone(),
            access: match mount.read_only {
                Some(true) => Access::ReadOnly,
                None | Some(false) => Access::ReadWrite,
            },
            name,
            path,
        });
    }
    for name in volumes.keys().filter(|name| !used.contains(*name)) {
        if !name.is_empty() {
            findings.wrong(
                "spec.volumes",
                shown(name),
                "volumes that spec.volumeMounts mounts",
            );
        }
    }
    // `/a` comes before `/a/b`.
    valid.sort_by(|a, b| a.path.cmp(&b.path));
    valid
}

fn named(list: Vec<manifest::Volume>, findings: &mut Findings) -> BTreeMap<String, Volume> {
    let mut volumes = BTreeMap::new();
    for (index, given) in list.into_iter().enumerate() {
        let field = format!("spec.volumes[{index}]");
        let at = format!("{field}.name");
        let name = given.name.clone().unwrap_or_default();
        match &given.name {
            None => findings.note(&at, format!("required: {VOLUME_NAME}")),
            Some(name) if !names::is_volume_name(name) => {
                findings.wrong(&at, shown(name), VOLUME_NAME);
            }
            Some(name) if volumes.contains_key(name) => {
                findings.wrong(&at, shown(name), "a name that no other volume has");
            }
            Some(_) => {}
        }
        if let Some(volume) = volume(&field, given, findings) {
            volumes.entry(name).or_insert(volume);
        }
    }
    volumes
}

fn volume(field: &str, given: manifest::Volume, findings: &mut Findings) -> Option<Volume> {
    const KINDS: &str = "exactly one of hostPath, emptyDir, instanceDirectory";
    let chosen = [
        ("hostPath", given.host_path.is_some()),
        ("emptyDir", given.empty_dir.is_some()),
        ("instanceDirectory", given.instance_directory.is_some()),
    ];
    let chosen: Vec<&str> = chosen
        .iter()
        .filter_map(|(name, there)| there.then_some(*name))
        .collect();
    match (given.host_path, given.empty_dir, given.instance_directory) {
        (Some(host), None, None) => {
            let at = format!("{field}.hostPath.path");
            match &host.path {
                None => findings.note(&at, format!("required: {HOST_PATH}")),
                Some(path) if !is_clean(path) => findings.wrong(&at, shown(path), HOST_PATH),
                Some(_) => {}
            }
            Some(Volume::HostPath {
                path: host.path.unwrap_or_default(),
                kind: host.kind.map(|kind| match kind {
                    manifest::HostPathType::Directory => HostPathKind::Directory,
                    manifest::HostPathType::File => HostPathKind::File,
                }),
            })
        }
        (None, Some(empty), None) => {
            let at = format!("{field}.emptyDir.sizeLimit");
            let size = size(&at, empty.size_limit.as_ref(), findings);
            match empty.medium {
                Some(manifest::Medium::Memory) => Some(Volume::Memory { size }),
                None => {
                    if empty.size_limit.is_some() {
                        findings.note(
                            &at,
                            "only with medium: Memory; nothing bounds a directory on the disk",
                        );
                    }
                    Some(Volume::EmptyDir)
                }
            }
        }
        (None, None, Some(_)) => Some(Volume::InstanceDirectory),
        (None, None, None) => {
            findings.note(field, format!("{KINDS} is required"));
            None
        }
        _ => {
            findings.wrong(field, chosen.join(" and "), KINDS);
            None
        }
    }
}

fn size(field: &str, given: Option<&Scalar>, findings: &mut Findings) -> Option<u64> {
    let given = given?.as_str();
    let bytes = size_bytes(given);
    if bytes.is_none() {
        findings.wrong(field, shown(given), SIZE_ALLOWED);
    }
    bytes
}

fn mount_path(field: &str, given: Option<String>, findings: &mut Findings) -> String {
    let path = given.unwrap_or_default();
    if path.is_empty() {
        findings.note(field, format!("required: {MOUNT_PATH}"));
    } else if !is_clean(&path) || path.contains(':') {
        findings.wrong(field, shown(&path), MOUNT_PATH);
    } else if OURS
        .iter()
        .chain([&SECRETS])
        .any(|ours| lies_in(&path, ours) || lies_in(ours, &path))
    {
        findings.wrong(
            field,
            shown(&path),
            format!(
                "a path that neither is nor holds nor lies below {} or {SECRETS}, which are mounted already",
                OURS.join(", ")
            ),
        );
    }
    path
}

/// Absolute, one slash between parts, no `.` and `..`, no control characters.
pub(super) fn is_clean(path: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.chars().any(char::is_control)
    };
    path.len() < 4096
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(part))
}

/// `secretFiles`.
pub(super) fn secrets(list: Vec<manifest::SecretFile>, findings: &mut Findings) -> Vec<SecretFile> {
    if list.len() > MAX {
        findings.wrong(
            "spec.secretFiles",
            format!("a list of {}", list.len()),
            format!("at most {MAX}"),
        );
    }
    let mut seen = BTreeSet::new();
    let mut secrets = Vec::new();
    for (index, given) in list.into_iter().enumerate() {
        let field = format!("spec.secretFiles[{index}]");
        let at = format!("{field}.name");
        match &given.name {
            None => findings.note(&at, format!("required: {FILE_NAME}")),
            Some(name) if !names::is_file_name(name) => findings.wrong(&at, shown(name), FILE_NAME),
            Some(name) if !seen.insert(name.clone()) => {
                findings.wrong(&at, shown(name), "a name that no other secret file has");
            }
            Some(_) => {}
        }
        let at = format!("{field}.source");
        match &given.source {
            None => findings.note(&at, format!("required: {HOST_PATH}")),
            Some(path) if !is_clean(path) => findings.wrong(&at, shown(path), HOST_PATH),
            Some(_) => {}
        }
        let mode = given.mode.as_deref().unwrap_or("0400");
        let bits = u32::from_str_radix(mode, 8).ok();
        let bits =
            bits.filter(|bits| (3..=4).contains(&mode.len()) && (0o400..=0o777).contains(bits));
        if bits.is_none() {
            findings.wrong(&format!("{field}.mode"), shown(mode), MODE);
        }
        secrets.push(SecretFile {
            name: given.name.unwrap_or_default(),
            source: given.source.unwrap_or_default(),
            mode: bits.unwrap_or(0o400),
        });
    }
    secrets
}
