//! Credential helpers: programs that keep secrets (docker's `docker-credential-<name>` protocol).
//!
//! `get` is asked with the server on standard input; the answer is JSON on standard output. A
//! helper gets [`DEADLINE`] and may say [`LONGEST`] bytes; what it says is never in an error.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::credentials::Credentials;

/// A helper that takes longer has failed, and is killed.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest answer in bytes.
const LONGEST: u64 = 64 << 10;
/// What helpers print where they have nothing (docker-credential-helpers, `errors.go`).
const NOTHING: &str = "credentials not found in native keychain";

/// Why a helper was of no help.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperError {
    #[error("{program} could not be run: {why}")]
    Run { program: String, why: String },
    #[error("{program} did not answer within {} s", DEADLINE.as_secs())]
    Deadline { program: String },
    #[error("{program} failed with {status}")]
    Failed { program: String, status: String },
    #[error("{program} said something that is no credentials: {why}")]
    Answer { program: String, why: &'static str },
}

/// What the helper has for `server`; none when it has nothing.
pub(crate) async fn get(program: &Path, server: &str) -> Result<Option<Credentials>, HelperError> {
    match tokio::time::timeout(DEADLINE, ask(program, server)).await {
        Ok(answer) => answer,
        Err(_) => Err(HelperError::Deadline {
            program: program.display().to_string(),
        }),
    }
}

async fn ask(path: &Path, server: &str) -> Result<Option<Credentials>, HelperError> {
    let program = &*path.to_string_lossy();
    let run = |error: std::io::Error| HelperError::Run {
        program: program.to_owned(),
        why: error.to_string(),
    };
    let mut child = Command::new(path)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read says so by its exit.
        drop(stdin.write_all(format!("{server}\n").as_bytes()).await);
    }
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut bounded = stdout.take(LONGEST + 1);
        bounded.read_to_end(&mut said).await.map_err(run)?;
    }
    if said.len() as u64 > LONGEST {
        return Err(HelperError::Answer {
            program: program.to_owned(),
            why: "it is too long",
        });
    }
    let status = child.wait().await.map_err(run)?;
    if status.success() {
        let answer = read(&said);
        return answer.map(Some).map_err(|why| HelperError::Answer {
            program: program.to_owned(),
            why,
        });
    }
    if String::from_utf8_lossy(&said).trim() == NOTHING {
        return Ok(None);
    }
    Err(HelperError::Failed {
        program: program.to_owned(),
        status: status.to_string(),
    })
}

fn read(said: &[u8]) -> Result<Credentials, &'static str> {
    let answer: Value = serde_json::from_slice(said).map_err(|_| "it is not JSON")?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    let user = text("Username").ok_or("`Username` is missing")?;
    let secret = text("Secret").ok_or("`Secret` is missing")?;
    Ok(match user {
        "<token>" => Credentials::Identity(secret.to_owned()),
        user => Credentials::Basic {
            user: user.to_owned(),
            password: secret.to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_user_and_secret_or_a_token() {
        let answer = read(br#"{"ServerURL":"r","Username":"joe","Secret":"s"}"#).unwrap();
        assert_eq!(answer.basic().unwrap(), "Basic am9lOnM=");
        let token = read(br#"{"Username":"<token>","Secret":"s"}"#).unwrap();
        assert_eq!(token, Credentials::Identity("s".to_owned()));
        assert_eq!(read(b"s3cret").unwrap_err(), "it is not JSON");
        assert_eq!(
            read(br#"{"Username":"joe"}"#).unwrap_err(),
            "`Secret` is missing"
        );
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named() {
        let error = get(Path::new("docker-credential-nodeagent-has-none"), "r.lan")
            .await
            .unwrap_err();
        assert!(
            matches!(&error, HelperError::Run { program, .. }
                if program == "docker-credential-nodeagent-has-none"),
            "{error}"
        );
    }
}
