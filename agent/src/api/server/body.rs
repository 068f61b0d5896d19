//! Reading a body: whole, bounded, in time.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::Limits;
use crate::api::v1::{Problem, ProblemCode};

/// The most that is read and thrown away of a body over the limit, so that a client which only
/// reads once it has written still gets its answer.
const DISCARD: u64 = 64 * 1024 * 1024;

/// The body, or why not. A body over the limit is never held in memory.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
) -> Result<Bytes, Problem> {
    match tokio::time::timeout(limits.read, collect(headers, body, limits.body)).await {
        Ok(read) => read,
        Err(_) => Err(Problem::new(
            ProblemCode::Timeout,
            format!(
                "the body did not arrive within {} s",
                limits.read.as_secs_f64()
            ),
        )),
    }
}

async fn collect(headers: &HeaderMap, mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    if let Some(length) = declared_length(headers)
        && length > limit as u64
    {
        // A client that asks first (RFC 9110, 10.1.1) sends nothing after this answer.
        if !headers.contains_key(header::EXPECT) {
            discard(&mut body).await?;
        }
        return Err(too_large(limit));
    }
    let mut whole = BytesMut::new();
    while let Some(data) = next(&mut body).await? {
        if whole.len() + data.len() > limit {
            drop(whole);
            discard(&mut body).await?;
            return Err(too_large(limit));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

async fn discard(body: &mut Body) -> Result<(), Problem> {
    let mut discarded = 0;
    while let Some(data) = next(body).await? {
        discarded += data.len() as u64;
        if discarded > DISCARD {
            break;
        }
    }
    Ok(())
}

async fn next(body: &mut Body) -> Result<Option<Bytes>, Problem> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            // Seldom read: whoever cut the request off is mostly gone.
            Problem::new(
                ProblemCode::InvalidRequest,
                format!("the body was cut off: {error}"),
            )
        })?;
        // Trailers carry nothing that we know.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        ProblemCode::TooLarge,
        format!("a body may have at most {limit} bytes"),
    )
}
