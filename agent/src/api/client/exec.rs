//! A command in an instance, and its streams.

use hyper::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{ReadHalf, WriteHalf};

use super::{Client, ClientError, segment};
use crate::api::exec::{ExecInput, ExecOutput, PROTOCOL, read, write};
use crate::api::v1::ExecRequest;

type Stream = TokioIo<Upgraded>;

/// What a command says. The command is ended when this and its [`ExecWriter`] are dropped.
#[derive(Debug)]
pub struct ExecReader(ReadHalf<Stream>);

/// What a command is told.
#[derive(Debug)]
pub struct ExecWriter(WriteHalf<Stream>);

impl Client {
    /// `POST /v1/instances/{name}/exec`. The deadline is that of the command's start.
    pub async fn exec(
        &self,
        instance: &str,
        request: &ExecRequest,
    ) -> Result<(ExecReader, ExecWriter), ClientError> {
        let path = format!("/v1/instances/{}/exec", segment(instance));
        let builder = Request::post(path)
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, PROTOCOL);
        // Strings and numbers: its JSON always exists.
        let body = serde_json::to_vec(request).unwrap_or_default();
        let begun = async {
            let (response, _connection) = self.send(builder, body.into()).await?;
            let status = response.status();
            if status != StatusCode::SWITCHING_PROTOCOLS {
                let answer = self.collect(response).await?;
                return Err(self.refusal(status, &answer));
            }
            let upgraded = hyper::upgrade::on(response).await;
            upgraded.map_err(|source| self.broken(source))
        };
        let upgraded = tokio::time::timeout(self.deadline, begun)
            .await
            .map_err(|_| ClientError::Deadline {
                agent: self.address(),
                deadline: self.deadline,
            })??;
        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
        Ok((ExecReader(reader), ExecWriter(writer)))
    }
}

impl ExecReader {
    /// The next piece; none when the agent went away before the command's end.
    ///
    /// # Errors
    /// The connection broke, or what came is no frame.
    pub async fn next(&mut self) -> std::io::Result<Option<ExecOutput>> {
        read(&mut self.0).await
    }
}

impl ExecWriter {
    /// Tells the command.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn tell(&mut self, input: ExecInput) -> std::io::Result<()> {
        write(&mut self.0, input).await
    }
}
