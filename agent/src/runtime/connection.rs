//! The channel to containerd: dials when it must, names the namespace, keeps the deadlines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::error::{Answer, RuntimeError, Unanswered};
use crate::config;

/// Creates and deletes are given this many times the deadline of a plain call: they start
/// processes and wait for the kernel.
const SLOW_FACTOR: u32 = 4;

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub name: &'static str,
    pub length: Duration,
}

/// One lazily dialled HTTP/2 connection over containerd's unix socket.
#[derive(Clone)]
pub(super) struct Connection {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    namespace_name: String,
    socket: PathBuf,
    snapshotter: String,
    timeout: Duration,
}

impl Connection {
    pub(super) fn lazy(settings: &config::Containerd) -> Result<Self, RuntimeError> {
        let unusable = |setting, value: &str, allowed| RuntimeError::Setting {
            setting,
            value: value.to_owned(),
            allowed,
        };
        let socket = settings.socket.to_string_lossy();
        let endpoint = match settings.socket.to_str() {
            Some(path) if Path::new(path).is_absolute() => {
                Endpoint::from_shared(format!("unix://{path}")).ok()
            }
            _ => None,
        };
        let endpoint = endpoint
            .ok_or_else(|| unusable("containerd.socket", &socket, "an absolute path in UTF-8"))?;
        let namespace = settings
            .namespace
            .parse()
            .map_err(|_| unusable("containerd.namespace", &settings.namespace, "visible ASCII"))?;
        Ok(Self {
            channel: endpoint.connect_timeout(settings.timeout).connect_lazy(),
            namespace,
            namespace_name: settings.namespace.clone(),
            socket: settings.socket.clone(),
            snapshotter: settings.snapshotter.clone(),
            timeout: settings.timeout,
        })
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace_name
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn snapshotter(&self) -> String {
        self.snapshotter.clone()
    }

    /// Deadline of a plain call.
    pub(super) fn plain(&self) -> Deadline {
        Deadline {
            name: "containerd.timeout",
            length: self.timeout,
        }
    }

    /// Deadline of a call that starts or ends processes.
    pub(super) fn slow(&self) -> Deadline {
        Deadline {
            name: "4 x containerd.timeout",
            length: self.timeout * SLOW_FACTOR,
        }
    }

    /// A request in our namespace.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request in our namespace whose deadline containerd and its shim are told. A shim is not
    /// told when we merely go away: it would go on with a create that nobody waits for.
    pub(super) fn bounded_request<T>(&self, deadline: Deadline, message: T) -> Request<T> {
        let mut request = self.request(message);
        request.set_timeout(deadline.length);
        request
    }

    /// Awaits a call; what containerd says comes back as it is.
    pub(super) async fn answer<T>(
        &self,
        deadline: Deadline,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Answer> {
        let overdue = Unanswered::Overdue {
            name: deadline.name,
            deadline: deadline.length,
        };
        match tokio::time::timeout(deadline.length, call).await {
            Ok(Ok(value)) => Ok(value),
            // The deadline of `bounded_request`, found by tonic or by containerd first.
            Ok(Err(status))
                if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) =>
            {
                Err(Answer::Unavailable(overdue))
            }
            Ok(Err(status)) => Err(Answer::of(status, &self.socket)),
            Err(_) => Err(Answer::Unavailable(overdue)),
        }
    }

    /// Awaits a plain call for which every error is an error.
    pub(super) async fn call<T>(
        &self,
        operation: &'static str,
        object: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RuntimeError> {
        let answer = self.answer(self.plain(), call).await;
        answer
            .map(Response::into_inner)
            .map_err(|said| said.into_error(operation, object))
    }
}
