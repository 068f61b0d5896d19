//! One repository on one host: manifests by tag and digest, blobs and parts of them by digest
//! (distribution-spec, "Pull").

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, RANGE,
};
use reqwest::{Method, Response, StatusCode, Url};

use super::auth::Auth;
use super::hosts::Host;
use super::http::{self, Ask, Http};
use crate::fetch::{Failure, Incoming, Source, SourceKind};
use crate::manifest::{ACCEPTED, MANIFEST_LIMIT};
use crate::{Descriptor, Digest};

/// The digest of what was asked for (distribution-spec, "Pulling manifests").
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// How long a host that could not be reached is asked after the others.
const UNWELL: Duration = Duration::from_secs(30);

/// Whether a host could be reached; of all pulls of the process.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<Option<Instant>>);

impl Health {
    fn is_well(&self) -> bool {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_none_or(|until| until <= Instant::now())
    }

    fn saw<T>(&self, result: &Result<T, Failure>) {
        let until = match result {
            Err(Failure::Unreachable { .. } | Failure::Stalled(_)) => Some(Instant::now() + UNWELL),
            _ => None,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// One repository on one host.
pub(crate) struct Endpoint {
    pub host: Host,
    pub repository: String,
    pub http: Http,
    pub auth: Arc<Auth>,
    pub health: Arc<Health>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.host.kind, self.host.api)
    }
}

impl Endpoint {
    /// The index or manifest that `name` (a tag or a digest) names.
    pub(crate) async fn manifest(&self, name: &str) -> Result<Bytes, Failure> {
        let ask = self.ask(Method::GET, "manifests", name, accept());
        let response = self.success(ask).await?;
        let announced = content_digest(&response);
        let bytes = self.http.body(response, MANIFEST_LIMIT).await?;
        let expected = match name.parse::<Digest>() {
            Ok(digest) => Some(digest),
            Err(_) => announced,
        };
        let got = Digest::of(&bytes);
        match expected {
            Some(expected) if expected != got => Err(Failure::WrongDigest {
                expected: expected.to_string(),
                got: got.to_string(),
            }),
            _ => Ok(bytes),
        }
    }

    /// The digest that `tag` names; none when the host does not say it without the body.
    pub(crate) async fn digest_of(&self, tag: &str) -> Result<Option<Digest>, Failure> {
        let ask = self.ask(Method::HEAD, "manifests", tag, accept());
        let response = self.send(ask).await?;
        if response.status().is_success() {
            return Ok(content_digest(&response));
        }
        match self.http.failure(response).await {
            // An answer to HEAD has no body to say more.
            Failure::Refused { .. } => Ok(None),
            other => Err(other),
        }
    }

    async fn blob(&self, blob: &Descriptor, range: Range<u64>) -> Result<Incoming, Failure> {
        let mut headers = HeaderMap::new();
        // A body that is encoded on the way would have other bytes, and other offsets.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let whole = 0..blob.size;
        if range != whole {
            let value = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
            let value = HeaderValue::try_from(value);
            headers.insert(RANGE, value.map_err(|e| Failure::Malformed(e.to_string()))?);
        }
        // Only the digest is asked for: `urls` of a descriptor would lead to other hosts.
        let ask = self.ask(Method::GET, "blobs", blob.digest.as_str(), headers);
        let response = self.success(ask).await?;
        let length = response.content_length();
        let wrong_size = |got: u64| Failure::WrongSize {
            expected: blob.size,
            got,
        };
        let range = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let header = response.headers().get(CONTENT_RANGE);
                let header = header.and_then(|value| value.to_str().ok());
                let (sent, size) = header.and_then(http::content_range).ok_or_else(|| {
                    Failure::Malformed(format!("it came with Content-Range {header:?}"))
                })?;
                if let Some(size) = size
                    && size != blob.size
                {
                    return Err(wrong_size(size));
                }
                if sent.start > range.start || sent.end <= range.start || sent.end > blob.size {
                    return Err(Failure::Malformed(format!(
                        "bytes {}-{} were asked for, {}-{} came",
                        range.start, range.end, sent.start, sent.end
                    )));
                }
                sent
            }
            _ => match length {
                Some(length) if length != blob.size => return Err(wrong_size(length)),
                _ => whole,
            },
        };
        Ok(Incoming {
            range,
            bytes: http::stream(response),
        })
    }

    fn ask(&self, method: Method, what: &str, name: &str, shared: HeaderMap) -> Ask {
        let mut url: Url = self.host.api.clone();
        let root = url.path().trim_end_matches('/');
        let path = format!("{root}/{}/{what}/{name}", self.repository);
        url.set_path(&path);
        if let Some(namespace) = &self.host.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ask {
            method,
            url,
            shared,
            private: self.host.headers.clone(),
            form: None,
        }
    }

    async fn success(&self, ask: Ask) -> Result<Response, Failure> {
        let response = self.send(ask).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.http.failure(response).await)
    }

    /// Sends a request, with what the host wants to see of us.
    async fn send(&self, mut ask: Ask) -> Result<Response, Failure> {
        let sent = async {
            let pass = self.auth.pass(&self.http).await?;
            pass.show(&mut ask.private);
            let response = self.http.send(&ask).await?;
            // Of a host to which it redirects, a 401 is no question to us.
            let asked_us = response.url().origin() == ask.url.origin();
            if response.status() != StatusCode::UNAUTHORIZED || !asked_us {
                return Ok(response);
            }
            let pass = self.auth.answer(&response, &pass, &self.http).await?;
            pass.show(&mut ask.private);
            let response = self.http.send(&ask).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                return Err(self.auth.refusal().await);
            }
            Ok(response)
        };
        let result = sent.await;
        self.health.saw(&result);
        result
    }
}

impl Source for Endpoint {
    fn name(&self) -> &str {
        &self.host.name
    }

    fn repository(&self) -> &str {
        &self.repository
    }

    fn kind(&self) -> SourceKind {
        self.host.kind
    }

    fn is_well(&self) -> bool {
        self.health.is_well()
    }

    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Incoming, Failure>> {
        self.blob(blob, range).boxed()
    }
}

fn accept() -> HeaderMap {
    ACCEPTED
        .iter()
        .map(|media_type| (ACCEPT, HeaderValue::from_static(media_type)))
        .collect()
}

fn content_digest(response: &Response) -> Option<Digest> {
    let value = response.headers().get(CONTENT_DIGEST)?;
    value.to_str().ok()?.parse().ok()
}
