//! One request and its answer: redirects are followed, and secrets stay at home.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use serde_json::Value;

use super::clients::{ClientError, Clients, Trust};
use crate::fetch::{Failure, retry_after};

/// More redirects than this are a loop.
const MOST_REDIRECTS: usize = 5;
/// Longest body of an error that is read, bytes.
const LONGEST_ERROR: u64 = 16 << 10;
/// Longest message of a registry that is passed on, characters.
const LONGEST_MESSAGE: usize = 300;

/// Speaks with one host, and with those to which it redirects.
#[derive(Clone)]
pub(crate) struct Http {
    pub clients: Arc<Clients>,
    /// For the host, and without our certificate also for those to which it redirects.
    pub trust: Arc<Trust>,
    /// `https://host[:port]` of the host: nobody else sees our certificate.
    pub home: Url,
    /// An answer has to begin, and go on, within this.
    pub patience: Duration,
}

/// A request.
pub(crate) struct Ask {
    pub method: Method,
    pub url: Url,
    /// Headers for whoever answers in the end.
    pub shared: HeaderMap,
    /// Headers for the host of `url` alone.
    pub private: HeaderMap,
    /// Sent as `application/x-www-form-urlencoded`.
    pub form: Option<String>,
}

/// What a registry said, when it was not what we asked for.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {status}{}{message}", if .message.is_empty() { "" } else { ": " })]
pub(crate) struct Said {
    pub status: StatusCode,
    pub message: String,
}

impl Http {
    /// Sends a request and follows redirects. The answer may have any status but a redirect's.
    pub(crate) async fn send(&self, ask: &Ask) -> Result<Response, Failure> {
        let mut url = ask.url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.send_once(ask, &url).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            url = target(&url, response.headers()).map_err(|why| refused(status, why))?;
        }
        Err(refused(
            StatusCode::LOOP_DETECTED,
            format!("more than {MOST_REDIRECTS} redirects"),
        ))
    }

    async fn send_once(&self, ask: &Ask, url: &Url) -> Result<Response, Failure> {
        let client = self.client(url).map_err(|source| Failure::Refused {
            source: source.into(),
        })?;
        let mut request = client
            .request(ask.method.clone(), url.clone())
            .headers(ask.shared.clone());
        if url.origin() == ask.url.origin() {
            request = request.headers(ask.private.clone());
            if let Some(form) = &ask.form {
                request = request
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form.clone());
            }
        }
        match tokio::time::timeout(self.patience, request.send()).await {
            Err(_) => Err(Failure::Stalled(self.patience)),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(broken(error)),
        }
    }

    /// The client for `url`; made when it is asked for.
    pub(crate) fn client(&self, url: &Url) -> Result<reqwest::Client, ClientError> {
        if url.origin() == self.home.origin() || self.trust.identity.is_none() {
            return self.clients.get(url, &self.trust);
        }
        let abroad = Trust {
            identity: None,
            ..(*self.trust).clone()
        };
        self.clients.get(url, &abroad)
    }

    /// The whole body, which may have `limit` bytes.
    pub(crate) async fn body(&self, mut response: Response, limit: u64) -> Result<Bytes, Failure> {
        let too_long =
            |got: u64| Failure::Malformed(format!("it has {got} bytes, {limit} are allowed"));
        if let Some(announced) = response.content_length()
            && announced > limit
        {
            return Err(too_long(announced));
        }
        let mut body = Vec::new();
        loop {
            match tokio::time::timeout(self.patience, response.chunk()).await {
                Err(_) => return Err(Failure::Stalled(self.patience)),
                Ok(Err(error)) => return Err(broken(error)),
                Ok(Ok(None)) => return Ok(body.into()),
                Ok(Ok(Some(bytes))) => body.extend_from_slice(&bytes),
            }
            if body.len() as u64 > limit {
                return Err(too_long(body.len() as u64));
            }
        }
    }

    /// What an answer means that is not the one hoped for.
    pub(crate) async fn failure(&self, response: Response) -> Failure {
        let status = response.status();
        let asked = response.headers().get(RETRY_AFTER);
        let retry_after = asked
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, SystemTime::now()));
        // Whatever is wrong with the body, the status says enough.
        let body = self.body(response, LONGEST_ERROR).await.unwrap_or_default();
        classify(status, &body, retry_after)
    }
}

/// The bytes of an answer's body as they come.
pub(crate) fn stream(response: Response) -> BoxStream<'static, Result<Bytes, Failure>> {
    response
        .bytes_stream()
        .map(|piece| piece.map_err(broken))
        .boxed()
}

/// Where a redirect leads. Never from HTTPS to plain HTTP.
fn target(from: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers
        .get(LOCATION)
        .and_then(|location| location.to_str().ok())
        .ok_or("a redirect without `Location`")?;
    // The location may carry a signature: it is not in the message.
    let mut url = from
        .join(location)
        .map_err(|error| format!("a redirect to no URL: {error}"))?;
    match (from.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        _ => {
            return Err(format!(
                "a redirect from {} to {}: https is allowed",
                from.scheme(),
                url.scheme()
            ));
        }
    }
    // `user:password@` would become credentials of ours.
    if url.set_username("").and(url.set_password(None)).is_err() {
        return Err("a redirect to a URL without a host".to_owned());
    }
    Ok(url)
}

fn refused(status: StatusCode, message: String) -> Failure {
    Failure::Refused {
        source: Said { status, message }.into(),
    }
}

/// The network's word. URLs may carry signatures, so they are taken out.
fn broken(error: reqwest::Error) -> Failure {
    let error = error.without_url();
    if error.is_builder() {
        return Failure::Refused {
            source: error.into(),
        };
    }
    Failure::Unreachable {
        source: error.into(),
    }
}

/// Decides by status, and by the codes of the body (distribution-spec, "Error Codes").
fn classify(status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Failure {
    let (code, message) = envelope(body);
    let said = Said {
        status,
        message: shorten(&[code.as_str(), message.as_str()]),
    };
    let missing = [
        "MANIFEST_UNKNOWN",
        "NAME_UNKNOWN",
        "BLOB_UNKNOWN",
        "MANIFEST_BLOB_UNKNOWN",
        "NOT_FOUND",
    ];
    match status.as_u16() {
        404 => Failure::NotFound,
        401 | 403 => Failure::Unauthorised {
            message: said.to_string(),
        },
        408 | 429 | 500.. => Failure::Unavailable {
            retry_after,
            source: said.into(),
        },
        _ if missing.contains(&code.as_str()) => Failure::NotFound,
        _ if ["UNAUTHORIZED", "DENIED"].contains(&code.as_str()) => Failure::Unauthorised {
            message: said.to_string(),
        },
        _ if code == "TOOMANYREQUESTS" => Failure::Unavailable {
            retry_after,
            source: said.into(),
        },
        _ => Failure::Refused {
            source: said.into(),
        },
    }
}

/// First code and message of an error's body; empty where there is none.
fn envelope(body: &[u8]) -> (String, String) {
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        return (String::new(), String::new());
    };
    let text = |name: &str| {
        let first = answer.get("errors").and_then(|errors| errors.get(0));
        let value = first.and_then(|first| first.get(name));
        value.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    (text("code"), text("message"))
}

/// One line, without control characters, not too long: it ends up in logs and terminals.
fn shorten(parts: &[&str]) -> String {
    let present: Vec<&str> = parts
        .iter()
        .copied()
        .filter(|part| !part.is_empty())
        .collect();
    let line = present.join(": ");
    let plain = line.chars().filter(|character| !character.is_control());
    plain.take(LONGEST_MESSAGE).collect()
}

/// `Content-Range: bytes 0-9/10` as range and whole size, where it is known (RFC 9110 section
/// 14.4).
pub(crate) fn content_range(value: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, size) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let size = match size.trim() {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    let end = last.checked_add(1)?;
    (first < end && size.is_none_or(|size| end <= size)).then_some((first..end, size))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn to(from: &str, location: &'static str) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_static(location));
        target(&from.parse().unwrap(), &headers).map(String::from)
    }

    #[test]
    fn a_redirect_leads_to_http_or_better_and_without_credentials() {
        let from = "https://r.lan/v2/web/blobs/x";
        for (location, leads) in [
            ("https://cdn.lan/x?sig=1", "https://cdn.lan/x?sig=1"),
            ("/other", "https://r.lan/other"),
            ("https://joe:s3cret@cdn.lan/", "https://cdn.lan/"),
        ] {
            assert_eq!(to(from, location).unwrap(), leads);
        }
        for wrong in ["http://cdn.lan/", "file:///etc/passwd", "ftp://cdn.lan/"] {
            let why = to(from, wrong).unwrap_err();
            assert!(why.contains("https is allowed"), "{why}");
        }
        assert_eq!(to("http://r/", "http://cdn/").unwrap(), "http://cdn/");
    }

    #[test]
    fn a_content_range_is_read_or_refused() {
        for (value, range) in [
            ("bytes 0-9/10", Some((0..10, Some(10)))),
            ("bytes 5-9/*", Some((5..10, None))),
            ("bytes 9-5/10", None),
            ("bytes 0-10/10", None),
            ("bytes */10", None),
            ("items 0-9/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("", None),
        ] {
            assert_eq!(content_range(value), range, "{value}");
        }
    }

    #[test]
    fn statuses_and_codes_say_what_follows() {
        let of = |status: u16, body: &str| {
            classify(
                StatusCode::from_u16(status).unwrap(),
                body.as_bytes(),
                Some(Duration::from_secs(3)),
            )
        };
        let unknown = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"m"}]}"#;
        assert!(matches!(of(404, ""), Failure::NotFound));
        assert!(matches!(of(400, unknown), Failure::NotFound));
        let denied = r#"{"errors":[{"code":"DENIED","message":"no\u001b[31m"}]}"#;
        assert!(matches!(of(403, denied), Failure::Unauthorised { message }
                if message == "HTTP 403 Forbidden: DENIED: no[31m"));
        for status in [408, 429, 500, 502, 503] {
            assert!(
                matches!(of(status, ""), Failure::Unavailable { retry_after: Some(wait), source }
                    if wait.as_secs() == 3 && source.to_string().contains(&status.to_string())),
                "{status}"
            );
        }
        let long = format!(
            r#"{{"errors":[{{"code":"X","message":"{}"}}]}}"#,
            "y".repeat(999)
        );
        let Failure::Refused { source } = of(400, &long) else {
            panic!("400 is no refusal")
        };
        assert!(source.to_string().len() < 350, "{source}");
    }
}
