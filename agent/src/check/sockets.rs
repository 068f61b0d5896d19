//! The agent's own socket and volatile directory: free, in use by an agent, or in somebody's way.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;

use super::facts::writable;
use super::finding::Finding;
use crate::api::{Client, ClientError};
use crate::config::Paths;

/// How long a running agent may take to say how it is.
const DEADLINE: Duration = Duration::from_secs(2);

/// Who has the socket.
#[derive(Debug, Clone)]
pub(super) struct Sockets {
    pub api: PathBuf,
    pub holder: Holder,
    /// Whether the volatile directory can be written to; or why not.
    pub runtime: (PathBuf, Result<(), String>),
}

/// What lies at the API's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nothing, or a socket that nobody listens on.
    Nobody,
    /// An agent.
    Agent {
        pid: Option<i32>,
        version: String,
        ready: bool,
    },
    /// An agent that does not serve this caller.
    Closed { pid: Option<i32>, why: String },
    /// Something else that listens, or a file that is no socket.
    Other(String),
}

impl Sockets {
    /// The running agent, as the socket's peer.
    pub fn agent_pid(&self) -> Option<i32> {
        match self.holder {
            Holder::Agent { pid, .. } | Holder::Closed { pid, .. } => pid,
            Holder::Nobody | Holder::Other(_) => None,
        }
    }
}

pub(super) async fn read(paths: &Paths) -> Sockets {
    Sockets {
        api: paths.api_socket.clone(),
        holder: holder(&paths.api_socket).await,
        runtime: (paths.runtime.clone(), writable(&paths.runtime)),
    }
}

async fn holder(socket: &Path) -> Holder {
    match std::fs::symlink_metadata(socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Holder::Nobody,
        Err(error) => return Holder::Other(error.to_string()),
        Ok(file) if !file.file_type().is_socket() => {
            return Holder::Other("a file that is no socket".to_owned());
        }
        Ok(_) => {}
    }
    let pid = match std::os::unix::net::UnixStream::connect(socket) {
        Ok(stream) => socket_peercred(&stream)
            .ok()
            .map(|p| p.pid.as_raw_nonzero().get()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Holder::Nobody,
        Err(error) => {
            let why = error.to_string();
            return Holder::Closed { pid: None, why };
        }
    };
    match Client::new(socket).with_deadline(DEADLINE).status().await {
        Ok(status) => Holder::Agent {
            pid,
            version: status.host.version,
            ready: status.host.ready,
        },
        Err(ClientError::Problem(problem)) => Holder::Closed {
            pid,
            why: problem.detail,
        },
        Err(error) => Holder::Other(error.to_string()),
    }
}

pub(super) fn judge(sockets: &Sockets) -> Vec<Finding> {
    let check = "agent.socket";
    let at = sockets.api.display();
    let own = env!("CARGO_PKG_VERSION");
    let holder = match &sockets.holder {
        Holder::Nobody => Finding::full(check, format!("{at} is free: no agent runs")),
        Holder::Agent { version, ready, .. } if version == own => {
            let ready = if *ready {
                "ready"
            } else {
                "observing its instances"
            };
            Finding::full(check, format!("agent {version} answers on {at}: {ready}"))
        }
        Holder::Agent { version, .. } => Finding::part(
            check,
            format!("agent {version} answers on {at}, this is nodeagent {own}"),
            "the agent that runs is not the program that is installed",
            "systemctl restart nodeagent: containers and registrations stay",
        ),
        Holder::Closed { why, .. } => Finding::part(
            check,
            format!("{at}: {why}"),
            "whether the agent is ready is not known",
            "run the check as root",
        ),
        Holder::Other(what) => Finding::not(
            check,
            format!("{at}: {what}"),
            "the agent cannot listen there",
            "remove it, or another path: paths.api_socket",
        ),
    };
    let (directory, writable) = &sockets.runtime;
    let check = "agent.runtime_directory";
    let directory = directory.display();
    let runtime = match writable {
        Ok(()) => Finding::full(check, format!("{directory} can be written to")),
        Err(why) => Finding::not(
            check,
            format!("{directory} cannot be written to: {why}"),
            "no sockets and no network namespaces: the agent does not start",
            "run as root; or another directory: paths.runtime",
        ),
    };
    vec![holder, runtime]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    fn works(holder: Holder) -> Works {
        let sockets = Sockets {
            api: "/run/x.sock".into(),
            holder,
            runtime: ("/run".into(), Ok(())),
        };
        judge(&sockets)[0].works
    }

    #[test]
    fn an_agent_of_this_version_or_nobody_may_have_the_socket() {
        let agent = |version: &str| Holder::Agent {
            pid: Some(7),
            version: version.to_owned(),
            ready: true,
        };
        assert_eq!(works(Holder::Nobody), Works::Full);
        assert_eq!(works(agent(env!("CARGO_PKG_VERSION"))), Works::Full);
        assert_eq!(works(agent("0.0.1")), Works::Part);
        assert_eq!(works(Holder::Other("a file".into())), Works::Not);
    }

    #[tokio::test]
    async fn what_lies_at_the_path_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        assert_eq!(holder(&path).await, Holder::Nobody);
        std::fs::write(&path, "").unwrap();
        assert_eq!(
            holder(&path).await,
            Holder::Other("a file that is no socket".into())
        );
        std::fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(holder(&path).await, Holder::Nobody);
    }
}
