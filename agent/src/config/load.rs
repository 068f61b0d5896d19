//! Finding, reading and merging the configuration files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Settings;
use super::assemble::{HostFacts, assemble};
use super::fragment::{Fragment, VERSION};
use crate::document::{Entry, Finding, Findings, MAX_BYTES, Node, Place, Value, from_toml, read};

/// Where drop-ins are looked for, later ones masking earlier ones of the same file name.
pub const STANDARD_DIRECTORIES: [&str; 3] = [
    "/usr/lib/nodeagent/config.d",
    "/run/nodeagent/config.d",
    "/etc/nodeagent/config.d",
];

const MACHINE_ID: &str = "/etc/machine-id";

/// Which files make up the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Source {
    /// `*.toml` in [`STANDARD_DIRECTORIES`]; those that do not exist are passed over.
    #[default]
    Standard,
    /// `*.toml` in these directories instead (`--config-dir`); each must exist.
    Directories(Vec<PathBuf>),
    /// This one file instead (`--config`).
    File(PathBuf),
}

/// Configuration that was read, and where it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The validated settings.
    pub settings: Settings,
    /// The files that were read, in the order in which they were merged.
    pub files: Vec<PathBuf>,
    /// Key -> where its value stands; keys that are not here have their default.
    pub(super) origins: BTreeMap<String, Place>,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A configuration directory cannot be listed.
    #[error("cannot list the configuration directory {}", path.display())]
    ListDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A configuration file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The files were read and refused.
    #[error("the configuration was refused{}", list(findings))]
    Refused {
        /// At least one.
        findings: Vec<Finding>,
    },
}

fn list(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| format!("\n  {finding}"))
        .collect()
}

/// Reads, merges and validates the configuration of `source`.
///
/// Files are merged in the order of their names, whatever directory they are in; of two with the
/// same name the one in the later directory counts, and an empty one (or a link to `/dev/null`)
/// masks the name. Later files win key by key; lists are replaced as a whole.
///
/// # Errors
/// [`LoadError::Refused`] with all findings; the others when a file or directory is unreadable.
pub fn load(source: &Source) -> Result<Loaded, LoadError> {
    let mut findings = Vec::new();
    let mut files = Vec::new();
    let mut merged = Node {
        place: Place {
            file: None,
            line: 1,
        },
        value: Value::Table(Vec::new()),
    };
    for path in select(source)? {
        let text = read_file(&path)?;
        if text.is_empty() {
            continue;
        }
        match fragment(&text, &path) {
            Ok((node, faults)) => {
                findings.extend(faults);
                merge(&mut merged, node);
            }
            Err(faults) => findings.extend(faults),
        }
        files.push(path);
    }
    let mut all = Findings::new(&merged);
    all.extend(findings);
    // What is at fault here has its finding from its own file.
    let (shape, _) = read::<Fragment>(&merged);
    let facts = HostFacts {
        machine_id: machine_id(Path::new(MACHINE_ID)),
    };
    let settings = shape.map(|shape| assemble(shape, &facts, &mut all));
    let findings = all.finish();
    match settings {
        Some(settings) if findings.is_empty() => Ok(Loaded {
            settings,
            files,
            origins: merged.places(),
        }),
        _ => Err(LoadError::Refused { findings }),
    }
}

/// The files of `source` in the order in which they are merged.
fn select(source: &Source) -> Result<Vec<PathBuf>, LoadError> {
    let (directories, missing_is_fine) = match source {
        Source::File(file) => return Ok(vec![file.clone()]),
        Source::Directories(directories) => (directories.clone(), false),
        Source::Standard => (STANDARD_DIRECTORIES.map(PathBuf::from).to_vec(), true),
    };
    let mut by_name = BTreeMap::new();
    for directory in directories {
        let failed = |source| LoadError::ListDirectory {
            path: directory.clone(),
            source,
        };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if missing_is_fine && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                by_name.insert(entry.file_name(), path);
            }
        }
    }
    Ok(by_name.into_values().collect())
}

/// The file's bytes; more than [`MAX_BYTES`] are not read, and are refused later for their number.
fn read_file(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::ReadFile {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(failed)?
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// One file's tree with the findings about single keys, or why it has no tree.
fn fragment(bytes: &[u8], path: &Path) -> Result<(Node, Vec<Finding>), Vec<Finding>> {
    let file: Arc<Path> = path.into();
    let place = |line| Place {
        file: Some(Arc::clone(&file)),
        line,
    };
    let text = str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        vec![Finding::new("", None, "cannot be read: not UTF-8").at(&place(line))]
    })?;
    let node = from_toml(text, Arc::clone(&file))?;
    let (shape, mut findings) = read::<Fragment>(&node);
    let version = shape.and_then(|shape| shape.version);
    let allowed = format!("{VERSION}, written as `version = {VERSION}` at the top of every file");
    let known = findings.iter().any(|finding| finding.field == "version");
    match version {
        Some(VERSION) => {}
        Some(other) => {
            let line = node.places().get("version").map_or(1, |place| place.line);
            let value = Some(other.to_string());
            findings.push(Finding::new("version", value, allowed).at(&place(line)));
        }
        None if known => {}
        None => {
            findings
                .push(Finding::new("version", None, format!("required: {allowed}")).at(&place(1)));
        }
    }
    Ok((node, findings))
}

/// Lays `over` on `under`: tables key by key, everything else as a whole.
fn merge(under: &mut Node, over: Node) {
    match (&mut under.value, over.value) {
        (Value::Table(below), Value::Table(above)) => {
            for entry in above {
                merge_entry(below, entry);
            }
        }
        (value, above) => {
            *value = above;
            under.place = over.place;
        }
    }
}

fn merge_entry(table: &mut Vec<Entry>, entry: Entry) {
    match table.iter_mut().find(|known| known.key == entry.key) {
        Some(known) => {
            known.place = entry.place;
            merge(&mut known.node, entry.node);
        }
        None => table.push(entry),
    }
}

/// The machine id, unless the file is missing or an image's placeholder (machine-id(5)).
fn machine_id(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let id = text.trim();
    let hex = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| id.to_owned())
}

/// The settings of a host that configures nothing but its id.
pub fn defaults(host_id: &str) -> Settings {
    let facts = HostFacts {
        machine_id: Some(host_id.to_owned()),
    };
    let nothing = Node {
        value: Value::Null,
        place: Place {
            file: None,
            line: 1,
        },
    };
    assemble(Fragment::default(), &facts, &mut Findings::new(&nothing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_no_machine_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        for (text, id) in [
            ("uninitialized\n", None),
            ("", None),
            (
                "3d1219c7c4c5404aaa1f6d2a48adfda4\n",
                Some("3d1219c7c4c5404aaa1f6d2a48adfda4"),
            ),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(machine_id(&path).as_deref(), id);
        }
        assert_eq!(machine_id(&dir.path().join("missing")), None);
    }

    #[test]
    fn without_a_machine_id_the_answer_says_how_to_name_the_host() {
        let root = from_toml("version = 1\n", Path::new("/x.toml").into()).unwrap();
        let mut findings = Findings::new(&root);
        let facts = HostFacts { machine_id: None };
        assemble(Fragment::default(), &facts, &mut findings);
        let findings = findings.finish();
        assert_eq!(
            findings[0].to_string(),
            "host.id: required, because /etc/machine-id is missing or not initialised: set id = \"...\" in [host], or run systemd-machine-id-setup"
        );
    }
}
