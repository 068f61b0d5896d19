//! The logs of instances, by name.

use std::time::SystemTime;

use super::node::Node;
use crate::api::v1::{Problem, ProblemCode};
use crate::api::{Log, LogRequest};
use crate::gate::UntrustedError;
use crate::instance::ContainerId;
use crate::logs::{self, Extent, Follow};
use crate::pool::Effects;

use super::executor::blocking;

impl<E: Effects> Node<E> {
    pub(super) async fn read_log(
        &self,
        instance: &str,
        request: LogRequest,
    ) -> Result<Log, Problem> {
        let (name, found) = self.instance(instance).await?;
        let container = ContainerId::new(name, found.create_generation);
        let directory = self.directories.of(&container).log;
        let process = request.process.clone();
        let extent = Extent {
            tail: request.tail,
            since: request.since.map(|since| since.point(SystemTime::now())),
            stream: request.stream,
            timestamps: request.timestamps,
            follow: if request.follow {
                Follow::Yes
            } else {
                Follow::No
            },
        };
        let open = move || {
            let opened = logs::read(&directory, &process, &extent);
            opened.map_err(|error| (error, logs::processes(&directory)))
        };
        let pieces = blocking(open)
            .await
            .map_err(|failure| Problem::new(ProblemCode::Internal, failure.detail))?
            .map_err(|(error, there)| unopened(&container, &request.process, &error, &there))?;
        Ok(Log {
            container: container.to_string(),
            pieces,
        })
    }
}

fn unopened(
    container: &ContainerId,
    process: &str,
    error: &UntrustedError,
    there: &[String],
) -> Problem {
    let about = format!("/v1/instances/{}/logs", container.instance);
    match error {
        UntrustedError::Open(source) if source.kind() == std::io::ErrorKind::NotFound => {
            let there = match there {
                [] => "no process of it has written yet".to_owned(),
                names => format!("there are: {}", names.join(", ")),
            };
            let detail = format!("{container} has no log of {process:?}; {there}");
            Problem::new(ProblemCode::NotFound, detail).about(about)
        }
        UntrustedError::Open(source) if source.kind() == std::io::ErrorKind::TimedOut => {
            let detail = format!("the log of {process:?} in {container}: {source}");
            Problem::new(ProblemCode::Unavailable, detail).about(about)
        }
        UntrustedError::Open(source) => {
            let detail = format!("the log of {process:?} in {container} cannot be read: {source}");
            Problem::new(ProblemCode::Internal, detail).about(about)
        }
        UntrustedError::Forged(_) => {
            let detail = format!("the log of {process:?} in {container} is not read: {error}");
            Problem::new(ProblemCode::Unavailable, detail).about(about)
        }
    }
}
