//! Registries: the file with credentials, and who is spoken to without TLS.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use imagecache::policy::Key;

use super::finding::Finding;
use crate::config;

/// What `[images]` names.
#[derive(Debug, Clone)]
pub(super) struct Images {
    pub insecure: Vec<String>,
    /// The file with credentials; its permission bits, or why it cannot be used.
    pub auth: Option<(PathBuf, Result<u32, String>)>,
    /// How many rules the policy has.
    pub rules: usize,
    /// What is wrong with keys of the policy.
    pub keys: Vec<String>,
}

pub(super) fn read(settings: &config::Images) -> Images {
    Images {
        insecure: settings.insecure_registries.clone(),
        auth: settings
            .auth_file
            .as_ref()
            .map(|path| (path.clone(), auth(path))),
        rules: settings.policy.rules.len(),
        keys: keys(settings),
    }
}

fn keys(settings: &config::Images) -> Vec<String> {
    let rules = settings.policy.rules.iter();
    let paths: BTreeSet<&PathBuf> = rules.flat_map(|rule| &rule.require_signature).collect();
    let read = paths.into_iter().map(|path| Key::read(path).key);
    read.filter_map(|key| Some(key.err()?.to_string()))
        .collect()
}

/// Only that it is a document of its kind: credentials are not looked at.
fn auth(path: &Path) -> Result<u32, String> {
    let said = |error: std::io::Error| error.to_string();
    let mode = std::fs::metadata(path).map_err(said)?.mode();
    let text = std::fs::read(path).map_err(said)?;
    match serde_json::from_slice::<serde_json::Value>(&text) {
        Ok(value) if value.get("auths").is_some() || value.get("credHelpers").is_some() => Ok(mode),
        Ok(_) => Err("it has no \"auths\"".to_owned()),
        // The error names a place, never the text.
        Err(error) => Err(format!("it is no JSON: {error}")),
    }
}

pub(super) fn judge(images: &Images) -> Vec<Finding> {
    let check = "images.registries";
    let registries = if images.insecure.is_empty() {
        Finding::full(check, "all by TLS, but those on the loopback interface")
    } else {
        Finding::full(
            check,
            format!("without TLS: {}", images.insecure.join(", ")),
        )
    };
    let check = "images.auth_file";
    let auth = images.auth.as_ref().map(|(path, mode)| match mode {
        Ok(mode) if mode & 0o077 == 0 => Finding::full(check, path.display().to_string()),
        Ok(mode) => Finding::part(
            check,
            format!("{} has mode {:04o}", path.display(), mode & 0o7777),
            "others on this host may read the credentials",
            format!("chmod 0600 {}", path.display()),
        ),
        Err(why) => Finding::part(
            check,
            format!("{}: {why}", path.display()),
            "images of registries that ask who calls cannot be pulled",
            "mend the file, or another one: images.auth_file",
        ),
    });
    let policy = policy(images);
    [registries].into_iter().chain(auth).chain(policy).collect()
}

fn policy(images: &Images) -> Option<Finding> {
    let check = "images.policy";
    match (images.rules, images.keys.as_slice()) {
        (0, _) => None,
        (rules, []) => Some(Finding::full(check, format!("{rules} rules"))),
        (_, keys) => Some(Finding::part(
            check,
            keys.join("; "),
            "images that have to be signed with this key are refused",
            "put the public key (PEM, ECDSA on P-256) there, or another file into the rule: images.policy.rules",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    #[test]
    fn credentials_that_all_may_read_work_in_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let look = || {
            let images = Images {
                insecure: Vec::new(),
                auth: Some((path.clone(), auth(&path))),
                rules: 0,
                keys: Vec::new(),
            };
            judge(&images)[1].clone()
        };
        assert!(look().found.contains("No such file"));
        std::fs::write(&path, r#"{"auths":{}}"#).unwrap();
        let mode = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&path, mode).unwrap();
        };
        mode(0o644);
        assert_eq!(look().works, Works::Part);
        mode(0o600);
        assert_eq!(look().works, Works::Full);
        std::fs::write(&path, "{\"auths\": \"sec\u{7}ret").unwrap();
        assert!(!look().found.contains("ret"), "{}", look().found);
    }
}
