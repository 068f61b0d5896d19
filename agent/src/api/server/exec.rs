//! A command's streams on an upgraded connection.

use std::io;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::ExecSession;
use crate::api::exec::{ExecInput, ExecOutput, PROTOCOL, read, write};
use crate::api::v1::{Problem, ProblemCode};

/// Fails unless the caller can take the streams.
pub(super) fn check_upgrade(headers: &HeaderMap) -> Result<(), Problem> {
    let asked = headers.get(header::UPGRADE).map(HeaderValue::as_bytes);
    if asked.is_some_and(|name| name.eq_ignore_ascii_case(PROTOCOL.as_bytes())) {
        return Ok(());
    }
    let detail = format!(
        "a command's streams need the connection: send `Connection: Upgrade` and `Upgrade: {PROTOCOL}`"
    );
    Err(Problem::new(ProblemCode::InvalidRequest, detail))
}

/// Answers that the connection is the command's from here on, and serves it until the command has
/// ended, the client has left, or `stop`.
pub(super) fn answer(
    session: ExecSession,
    upgrade: OnUpgrade,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) -> Response {
    tokio::spawn(async move {
        let _permit = permit;
        match upgrade.await {
            Ok(stream) => serve(TokioIo::new(stream), session, stop).await,
            Err(error) => {
                tracing::debug!(%error, "a command's client left before it heard anything")
            }
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    response
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    session: ExecSession,
    stop: CancellationToken,
) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let ExecSession { input, mut output } = session;
    let ended = tokio::select! {
        ended = tell(&mut writer, &mut output) => ended,
        ended = hear(&mut reader, input) => ended,
        () = stop.cancelled() => {
            let why = "the agent is stopping, and the command was ended".to_owned();
            write(&mut writer, ExecOutput::Failed(why)).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a command's connection broke");
    }
    // With the session the command ends, if it has not yet.
    drop(output);
    writer.shutdown().await.ok();
}

/// Until the last was told.
async fn tell(
    writer: &mut (impl AsyncWrite + Unpin),
    output: &mut mpsc::Receiver<ExecOutput>,
) -> io::Result<()> {
    while let Some(piece) = output.recv().await {
        write(writer, piece).await?;
    }
    Ok(())
}

/// Until the client has left.
async fn hear(
    reader: &mut (impl AsyncRead + Unpin),
    input: mpsc::Sender<ExecInput>,
) -> io::Result<()> {
    while let Some(piece) = read(reader).await? {
        // A command that reads no more may still write.
        input.send(piece).await.ok();
    }
    Ok(())
}
