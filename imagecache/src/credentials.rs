//! Credentials of registries, read from docker's `config.json` (its `auths` only: no helper
//! program is ever started).

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use serde_json::Value;

use crate::PullError;

/// The entry that docker writes for Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What `file` says about `registry`; anonymous without file or entry.
pub(crate) fn for_registry(file: Option<&Path>, registry: &str) -> Result<RegistryAuth, PullError> {
    let Some(path) = file else {
        return Ok(RegistryAuth::Anonymous);
    };
    let refuse = |why: String| PullError::Credentials {
        path: path.to_owned(),
        why,
    };
    let text = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    // The parser's message could quote a secret; line and column cannot.
    let config: Value = serde_json::from_slice(&text).map_err(|error| {
        refuse(format!(
            "not JSON at line {}, column {}",
            error.line(),
            error.column()
        ))
    })?;
    let names = match registry {
        "docker.io" => vec![DOCKER_HUB, "docker.io", "index.docker.io"],
        other => vec![other],
    };
    let entry = names.into_iter().find_map(|name| {
        let auths = config.get("auths")?;
        auths
            .get(name)
            .or_else(|| auths.get(format!("https://{name}")))
    });
    match entry {
        None => Ok(RegistryAuth::Anonymous),
        Some(entry) => read(entry).map_err(|why| refuse(format!("entry for {registry}: {why}"))),
    }
}

fn read(entry: &Value) -> Result<RegistryAuth, &'static str> {
    let text = |name: &str| {
        entry
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    if let Some(token) = text("registrytoken") {
        return Ok(RegistryAuth::Bearer(token.to_owned()));
    }
    if let (Some(user), Some(password)) = (text("username"), text("password")) {
        return Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()));
    }
    let Some(encoded) = text("auth") else {
        return Err("it has none of `auth`, `username` with `password`, `registrytoken`");
    };
    let decoded = STANDARD
        .decode(encoded.trim())
        .map_err(|_| "`auth` is not base64")?;
    let decoded = String::from_utf8(decoded).map_err(|_| "`auth` is not UTF-8")?;
    match decoded.split_once(':') {
        Some((user, password)) => Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned())),
        None => Err("`auth` is not user:password"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(text: &str, registry: &str) -> Result<RegistryAuth, PullError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        for_registry(Some(&path), registry)
    }

    #[test]
    fn dockers_spellings_are_understood() {
        let basic = RegistryAuth::Basic("joe".into(), "s3:cret".into());
        let auth = r#"{"auths": {"r.lan:5000": {"auth": "am9lOnMzOmNyZXQ="}}}"#;
        assert_eq!(ask(auth, "r.lan:5000").unwrap(), basic);
        assert_eq!(ask(auth, "other.lan").unwrap(), RegistryAuth::Anonymous);
        let plain = r#"{"auths": {"https://r.lan": {"username": "joe", "password": "s3:cret"}}}"#;
        assert_eq!(ask(plain, "r.lan").unwrap(), basic);
        let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "am9lOnMzOmNyZXQ="}}}"#;
        assert_eq!(ask(hub, "docker.io").unwrap(), basic);
        assert_eq!(
            for_registry(None, "docker.io").unwrap(),
            RegistryAuth::Anonymous
        );
    }

    #[test]
    fn a_broken_file_is_refused_without_quoting_it() {
        for (text, why) in [
            (r#"{"auths": {"r": {"auth": "s3cret!"}}}"#, "not base64"),
            (
                r#"{"auths": {"r": {"auth": "czNjcmV0"}}}"#,
                "not user:password",
            ),
            (r#"{"auths": {"r": {}}}"#, "none of"),
            ("s3cret", "line 1"),
        ] {
            let refused = ask(text, "r").unwrap_err().to_string();
            assert!(
                refused.contains(why) && !refused.contains("s3cret"),
                "{refused}"
            );
        }
    }
}
