//! Bodies of answers: a blob from its file, piece by piece, or a few bytes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::served::Upload;
use crate::fetch::Bandwidth;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;

/// Bytes read at a time: what one upload holds in memory.
const PIECE: u64 = 256 * 1024;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A few bytes.
pub(super) fn small(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A part of a blob. `upload` is over when the last byte was taken, or nobody takes any.
pub(super) fn part(
    file: File,
    range: Range<u64>,
    bandwidth: Arc<Bandwidth>,
    upload: Upload,
) -> Body {
    let file = Arc::new(file);
    let pieces = stream::try_unfold((range, upload), move |(range, upload)| {
        let (file, bandwidth) = (Arc::clone(&file), Arc::clone(&bandwidth));
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = (range.start + PIECE).min(range.end);
            let length = usize::try_from(end - range.start).unwrap_or(0);
            bandwidth.spend(length).await;
            let start = range.start;
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; length];
                file.read_exact_at(&mut piece, start)?;
                Ok::<_, io::Error>(piece)
            });
            let piece = read.await.map_err(io::Error::other)??;
            upload.sent(piece.len());
            let rest = (end..range.end, upload);
            Ok(Some((Frame::data(Bytes::from(piece)), rest)))
        }
    });
    StreamBody::new(pieces.boxed()).boxed_unsync()
}
