//! What passed the proxy: one entry a request, so that a test can say what was fetched twice.

use super::rules::Fault;

/// One request and what was passed on of its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Number of its connection, from 1.
    pub connection: u64,
    /// `GET /v2/web/blobs/sha256:…`.
    pub request: String,
    /// The value of `Range`, if it had one.
    pub range: Option<String>,
    /// Whether it brought an `Authorization`.
    pub authorization: bool,
    /// Status of what was passed on.
    pub status: u16,
    /// The digest, where the request is a GET of a blob.
    pub blob: Option<String>,
    /// Whether it is large enough to be a layer.
    pub layer: bool,
    /// Offset of the body in the blob.
    pub offset: u64,
    /// Bytes of the body passed on so far.
    pub sent: u64,
    /// The fault that happened to it.
    pub fault: Option<Fault>,
}

impl Exchange {
    /// Bytes of the blob `digest` that were passed on; a refusal has a body, too, and none of them.
    pub(super) fn bytes_of(&self, digest: &str) -> u64 {
        let blob = self.blob.as_deref() == Some(digest) && matches!(self.status, 200 | 206);
        if blob { self.sent } else { 0 }
    }
}

/// Bytes of the blob `digest` that were passed on more than once.
pub(super) fn sent_twice(log: &[Exchange], digest: &str) -> u64 {
    let mut parts: Vec<(u64, u64)> = log
        .iter()
        .map(|exchange| (exchange.offset, exchange.offset + exchange.bytes_of(digest)))
        .collect();
    parts.sort_unstable();
    let (mut twice, mut end) = (0, 0);
    for (from, to) in parts {
        twice += to.min(end).saturating_sub(from);
        end = end.max(to);
    }
    twice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64, sent: u64) -> Exchange {
        Exchange {
            connection: 1,
            request: "GET /v2/web/blobs/sha256:ab".to_owned(),
            range: None,
            authorization: false,
            status: 206,
            blob: Some("sha256:ab".to_owned()),
            layer: true,
            offset,
            sent,
            fault: None,
        }
    }

    #[test]
    fn parts_side_by_side_are_not_twice_and_overlaps_are() {
        let beside = [part(10, 10), part(0, 10)];
        assert_eq!(sent_twice(&beside, "sha256:ab"), 0);
        let resumed = [part(0, 60), part(50, 50)];
        assert_eq!(sent_twice(&resumed, "sha256:ab"), 10);
        let refused = Exchange {
            status: 401,
            ..part(0, 149)
        };
        assert_eq!(sent_twice(&[refused, part(0, 100)], "sha256:ab"), 0);
        let whole = [part(0, 100), part(20, 10), part(0, 100)];
        assert_eq!(sent_twice(&whole, "sha256:ab"), 110);
        assert_eq!(sent_twice(&whole, "sha256:cd"), 0);
    }
}
