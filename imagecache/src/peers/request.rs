//! What a peer may ask: pure. Everything else is refused.

use std::ops::Range;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, RANGE};
use hyper::{Method, StatusCode};

use crate::Digest;

/// Who claims a blob: its address in the list.
pub(super) const PEER: HeaderName = HeaderName::from_static("nodeagent-peer");
/// Who neither had nor brought it.
pub(super) const FAILED: HeaderName = HeaderName::from_static("nodeagent-failed");
/// Sign of life of who brings it: a number that changes while something happens.
pub(super) const PROGRESS: HeaderName = HeaderName::from_static("nodeagent-progress");
/// `wait=SECONDS` (RFC 7240, section 4.3).
pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Longest path that is looked at: a repository has at most 255 characters.
const LONGEST_PATH: usize = 512;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// Whether the API is here.
    Api,
    /// A blob.
    Blob(Digest),
    /// A manifest or index.
    Manifest(Digest),
}

/// Reads method and path; the status of the refusal otherwise.
pub(super) fn asked(method: &Method, path: &str) -> Result<Asked, StatusCode> {
    if path.len() > LONGEST_PATH {
        return Err(StatusCode::URI_TOO_LONG);
    }
    if method != Method::GET && method != Method::HEAD {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return Err(StatusCode::NOT_FOUND);
    };
    if rest.is_empty() {
        return Ok(Asked::Api);
    }
    // The repository says nothing about content; it has to be one all the same.
    let mut parts: Vec<&str> = rest.split('/').collect();
    let (name, kind) = (parts.pop(), parts.pop());
    if parts.is_empty() || !parts.iter().all(|part| is_component(part)) {
        return Err(StatusCode::NOT_FOUND);
    }
    let digest = name.unwrap_or_default().parse::<Digest>();
    match (kind, digest) {
        (Some("blobs"), Ok(digest)) => Ok(Asked::Blob(digest)),
        (Some("manifests"), Ok(digest)) => Ok(Asked::Manifest(digest)),
        // Tags, and digests of other algorithms.
        _ => Err(StatusCode::NOT_FOUND),
    }
}

/// Part of a repository's name (distribution-spec, "Pull").
fn is_component(part: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    part.bytes()
        .all(|byte| inner(byte) || b"._-".contains(&byte))
        && part.bytes().next().is_some_and(inner)
        && part.bytes().next_back().is_some_and(inner)
}

/// Which bytes of so many are asked for: none when all; 416 when there are none such. What is no
/// single range of bytes is ignored, as RFC 9110 (section 14.2) has it.
pub(super) fn range(headers: &HeaderMap, size: u64) -> Result<Option<Range<u64>>, StatusCode> {
    let value = headers.get(RANGE).and_then(|value| value.to_str().ok());
    let Some(spec) = value.and_then(|value| value.strip_prefix("bytes=")) else {
        return Ok(None);
    };
    let Some((first, last)) = spec.split_once('-') else {
        return Ok(None);
    };
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u64>().ok(),
        false => None,
    };
    let range = match (first, last) {
        ("", last) => match number(last) {
            Some(count) => size.saturating_sub(count)..size,
            None => return Ok(None),
        },
        (first, "") => match number(first) {
            Some(first) => first..size,
            None => return Ok(None),
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
            _ => return Ok(None),
        },
    };
    match range.start < range.end {
        true => Ok(Some(range)),
        false => Err(StatusCode::RANGE_NOT_SATISFIABLE),
    }
}

/// How long the peer would wait for what is on its way.
pub(super) fn wait(headers: &HeaderMap) -> Duration {
    let value = headers.get(PREFER).and_then(|value| value.to_str().ok());
    let seconds = value
        .and_then(|value| value.strip_prefix("wait="))
        .and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn only_digests_below_v2_are_there() {
        let digest = Digest::of(b"x");
        let ask = |path: &str| asked(&Method::GET, path);
        assert_eq!(ask("/v2/"), Ok(Asked::Api));
        for name in ["web", "library/web", "a/b-c/d.e_f"] {
            assert_eq!(
                ask(&format!("/v2/{name}/blobs/{digest}")),
                Ok(Asked::Blob(digest.clone()))
            );
            let manifest = Ok(Asked::Manifest(digest.clone()));
            assert_eq!(ask(&format!("/v2/{name}/manifests/{digest}")), manifest);
        }
        let hex = digest.hex();
        for path in [
            "/".to_owned(),
            "/v2".to_owned(),
            "/v1/".to_owned(),
            "/v2/_catalog".to_owned(),
            "/v2/web/tags/list".to_owned(),
            "/v2/web/manifests/latest".to_owned(),
            format!("/v2/blobs/{digest}"),
            format!("/v2//blobs/{digest}"),
            format!("/v2/web//blobs/{digest}"),
            format!("/v2/../blobs/{digest}"),
            format!("/v2/web/../blobs/{digest}"),
            format!("/v2/Web/blobs/{digest}"),
            format!("/v2/web/blobs/{digest}/"),
            format!("/v2/web/blobs/sha256:{}", hex.to_uppercase()),
            format!("/v2/web/blobs/sha256:{}", &hex[1..]),
            format!("/v2/web/blobs/sha256%3A{hex}"),
            format!("/v2/web/blobs/sha512:{hex}{hex}"),
            "/v2/web/blobs/../../../etc/passwd".to_owned(),
            "/v2/web/blobs/%2e%2e%2fetc%2fpasswd".to_owned(),
            "/v2/web/blobs/uploads/".to_owned(),
        ] {
            assert_eq!(ask(&path), Err(StatusCode::NOT_FOUND), "{path}");
        }
        let long = format!("/v2/{}/blobs/{digest}", "a".repeat(500));
        assert_eq!(ask(&long), Err(StatusCode::URI_TOO_LONG));
        for method in [
            Method::PUT,
            Method::POST,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
        ] {
            let refused = asked(&method, &format!("/v2/web/blobs/{digest}"));
            assert_eq!(refused, Err(StatusCode::METHOD_NOT_ALLOWED), "{method}");
        }
    }

    #[test]
    fn ranges_are_exact() {
        let ask = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, HeaderValue::from_str(value).unwrap());
            range(&headers, 100)
        };
        for (value, expected) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=10-19", Some(10..20)),
            ("bytes=90-", Some(90..100)),
            ("bytes=90-1000", Some(90..100)),
            ("bytes=-10", Some(90..100)),
            ("bytes=-1000", Some(0..100)),
            ("bytes=0-18446744073709551615", Some(0..100)),
            ("bytes=5-2", None),
            ("bytes=a-b", None),
            ("bytes=+1-2", None),
            ("bytes=0-1,5-6", None),
            ("lines=0-1", None),
            ("bytes=99999999999999999999-", None),
        ] {
            assert_eq!(ask(value), Ok(expected), "{value}");
        }
        for value in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(
                ask(value),
                Err(StatusCode::RANGE_NOT_SATISFIABLE),
                "{value}"
            );
        }
        assert_eq!(range(&HeaderMap::new(), 100), Ok(None));
    }

    #[test]
    fn who_prefers_to_wait_says_how_long() {
        let mut headers = HeaderMap::new();
        assert_eq!(wait(&headers), Duration::ZERO);
        headers.insert(PREFER, HeaderValue::from_static("wait=7"));
        assert_eq!(wait(&headers), Duration::from_secs(7));
        headers.insert(PREFER, HeaderValue::from_static("respond-async"));
        assert_eq!(wait(&headers), Duration::ZERO);
    }
}
