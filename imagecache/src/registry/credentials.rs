//! Credentials of registries, as docker's `config.json` has them: `auths`, and the programs named
//! in `credHelpers` and `credsStore`.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::credential_helper;
use crate::fetch::Failure;
use crate::{Digest, PullError};

/// The name under which docker keeps Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What proves who we are. Never shown, not even for debugging.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// Nothing does.
    Anonymous,
    /// User and password.
    Basic { user: String, password: String },
    /// A token that is exchanged for others (docker's `identitytoken`).
    Identity(String),
    /// A token that the registry takes itself (docker's `registrytoken`).
    Token(String),
}

impl Credentials {
    /// The value of `Authorization` with user and password (RFC 7617); none for the others.
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Self::Basic { user, password } => Some(format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{password}"))
            )),
            _ => None,
        }
    }

    pub(crate) fn are_there(&self) -> bool {
        *self != Self::Anonymous
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic",
            Self::Identity(_) => "Identity",
            Self::Token(_) => "Token",
        })
    }
}

/// Where the credentials for one registry are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// Here.
    Known(Credentials),
    /// A program has them; where it has none, these.
    Helper {
        /// The file that names it, for errors.
        file: PathBuf,
        /// `docker-credential-<name>`, with its directory unless `PATH` says it.
        program: PathBuf,
        /// What the program is asked for.
        server: String,
        /// What `auths` says.
        otherwise: Credentials,
    },
}

impl Login {
    /// The credentials; runs the helper where there is one.
    pub(crate) async fn credentials(&self) -> Result<Credentials, Failure> {
        match self {
            Self::Known(credentials) => Ok(credentials.clone()),
            Self::Helper {
                file,
                program,
                server,
                otherwise,
            } => match credential_helper::get(program, server).await {
                Ok(Some(credentials)) => Ok(credentials),
                Ok(None) => Ok(otherwise.clone()),
                Err(error) => Err(Failure::Credentials {
                    path: file.clone(),
                    why: format!("for {server}: {error}"),
                }),
            },
        }
    }

    /// Differs for every change, and tells nothing: names what is cached for these credentials.
    pub(crate) fn fingerprint(&self) -> Digest {
        let parts: [&str; 3] = match self {
            Self::Known(Credentials::Anonymous) => ["anonymous", "", ""],
            Self::Known(Credentials::Basic { user, password }) => ["basic", user, password],
            Self::Known(Credentials::Identity(token)) => ["identity", token, ""],
            Self::Known(Credentials::Token(token)) => ["token", token, ""],
            Self::Helper {
                program, server, ..
            } => ["helper", &program.to_string_lossy(), server],
        };
        Digest::of(parts.join("\0").as_bytes())
    }
}

/// Docker's `config.json`.
#[derive(Debug)]
pub(crate) struct DockerConfig {
    path: PathBuf,
    config: Value,
    helpers: Option<PathBuf>,
}

impl DockerConfig {
    /// Reads the file. Helpers are in `helpers`, else where `PATH` says.
    pub(crate) fn read(path: &Path, helpers: Option<&Path>) -> Result<Self, PullError> {
        let refuse = |why: String| PullError::Credentials {
            path: path.to_owned(),
            why,
        };
        let text = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
        // The parser's message could quote a secret; line and column cannot.
        let config = serde_json::from_slice(&text).map_err(|error| {
            refuse(format!(
                "not JSON at line {}, column {}",
                error.line(),
                error.column()
            ))
        })?;
        Ok(Self {
            path: path.to_owned(),
            config,
            helpers: helpers.map(Path::to_owned),
        })
    }

    /// What the file says about `registry` (`host[:port]`); anonymous without an entry. A helper
    /// of this registry goes before the common one, as docker has it.
    pub(crate) fn login(&self, registry: &str) -> Result<Login, PullError> {
        let names = match registry {
            "docker.io" | "index.docker.io" | "registry-1.docker.io" => {
                vec![DOCKER_HUB, "docker.io", "index.docker.io"]
            }
            other => vec![other],
        };
        let refuse = |why: String| PullError::Credentials {
            path: self.path.clone(),
            why: format!("entry for {registry}: {why}"),
        };
        let find = |section: &str| {
            let section = self.config.get(section)?;
            names.iter().find_map(|name| {
                section
                    .get(name)
                    .or_else(|| section.get(format!("https://{name}")))
            })
        };
        let known = match find("auths") {
            // Beside `credsStore`, docker leaves empty entries as a note of what the store has.
            None => Credentials::Anonymous,
            Some(entry) => match read(entry) {
                Ok(credentials) => credentials,
                Err(_) if self.config.get("credsStore").is_some() => Credentials::Anonymous,
                Err(why) => return Err(refuse(why.to_owned())),
            },
        };
        let Some(helper) = find("credHelpers").or_else(|| self.config.get("credsStore")) else {
            return Ok(Login::Known(known));
        };
        let named = helper.as_str().unwrap_or_default();
        if named.is_empty() {
            return Ok(Login::Known(known));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !named.chars().all(allowed) {
            return Err(refuse(format!(
                "credential helper {named:?}: letters, digits, `-`, `_`, `.` are allowed"
            )));
        }
        let program = PathBuf::from(format!("docker-credential-{named}"));
        Ok(Login::Helper {
            file: self.path.clone(),
            program: match &self.helpers {
                Some(directory) => directory.join(program),
                None => program,
            },
            server: names[0].to_owned(),
            otherwise: known,
        })
    }
}

fn read(entry: &Value) -> Result<Credentials, &'static str> {
    let text = |name: &str| {
        entry
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    if let Some(token) = text("registrytoken") {
        return Ok(Credentials::Token(token.to_owned()));
    }
    if let Some(token) = text("identitytoken") {
        return Ok(Credentials::Identity(token.to_owned()));
    }
    if let (Some(user), Some(password)) = (text("username"), text("password")) {
        return Ok(basic(user, password));
    }
    let Some(encoded) = text("auth") else {
        return Err(
            "it has none of `auth`, `username` with `password`, `identitytoken`, `registrytoken`",
        );
    };
    let decoded = STANDARD
        .decode(encoded.trim())
        .map_err(|_| "`auth` is not base64")?;
    let decoded = String::from_utf8(decoded).map_err(|_| "`auth` is not UTF-8")?;
    match decoded.split_once(':') {
        Some((user, password)) => Ok(basic(user, password)),
        None => Err("`auth` is not user:password"),
    }
}

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic {
        user: user.to_owned(),
        password: password.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(text: &str, registry: &str) -> Result<Login, PullError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        DockerConfig::read(&path, None)?.login(registry)
    }

    #[test]
    fn dockers_spellings_are_understood() {
        let joe = Login::Known(basic("joe", "s3:cret"));
        let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "am9lOnMzOmNyZXQ="}}}"#;
        for (text, registry, login) in [
            (
                r#"{"auths": {"r.lan:5000": {"auth": "am9lOnMzOmNyZXQ="}}}"#,
                "r.lan:5000",
                joe.clone(),
            ),
            (
                r#"{"auths": {"r.lan:5000": {"auth": "am9lOnMzOmNyZXQ="}}}"#,
                "other.lan",
                Login::Known(Credentials::Anonymous),
            ),
            (
                r#"{"auths": {"https://r.lan": {"username": "joe", "password": "s3:cret"}}}"#,
                "r.lan",
                joe.clone(),
            ),
            (hub, "docker.io", joe.clone()),
            (hub, "registry-1.docker.io", joe),
            (
                r#"{"auths": {"r": {"auth": "am9lOg==", "identitytoken": "i"}}}"#,
                "r",
                Login::Known(Credentials::Identity("i".to_owned())),
            ),
            ("{}", "r", Login::Known(Credentials::Anonymous)),
        ] {
            assert_eq!(ask(text, registry).unwrap(), login, "{text}");
        }
    }

    #[test]
    fn a_helper_of_the_registry_goes_before_the_common_one() {
        let text = r#"{"auths": {"r.lan": {}, "other": {"auth": "am9lOnMzOmNyZXQ="}},
            "credHelpers": {"r.lan": "pass"}, "credsStore": "secretservice"}"#;
        for (registry, helper, otherwise) in [
            ("r.lan", "pass", Credentials::Anonymous),
            ("other", "secretservice", basic("joe", "s3:cret")),
            ("docker.io", "secretservice", Credentials::Anonymous),
        ] {
            let login = ask(text, registry).unwrap();
            let Login::Helper {
                program,
                otherwise: known,
                server,
                ..
            } = login
            else {
                panic!("{registry}: no helper")
            };
            let helper = PathBuf::from(format!("docker-credential-{helper}"));
            assert_eq!((program, known), (helper, otherwise), "{registry}");
            assert_eq!(server == DOCKER_HUB, registry == "docker.io");
        }
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
            (r#"{"credHelpers": {"r": "../s3"}}"#, "are allowed"),
        ] {
            let refused = ask(text, "r").unwrap_err().to_string();
            assert!(
                refused.contains(why) && !refused.contains("s3cret"),
                "{refused}"
            );
        }
    }

    #[test]
    fn no_secret_is_shown() {
        for secret in [
            basic("joe", "s3cret"),
            Credentials::Identity("s3cret".to_owned()),
            Credentials::Token("s3cret".to_owned()),
        ] {
            assert!(!format!("{:?}", Login::Known(secret)).contains("s3cret"));
        }
    }
}
