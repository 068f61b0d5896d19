//! Readiness as seen from outside: TCP and HTTP probes that the agent makes itself.
//!
//! The first probes come at 0, 1, 2, 4, 8, ... ms, because an activation waits for them, and then
//! every `period`. A probe never follows a redirect and never trusts what a body says or how long
//! it is. Notify and exec readiness are container-init's; for them there is nothing to do here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::http::uri::InvalidUri;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::app::{ProbeTiming, Readiness};

/// How much of an answer's body is read before the connection is closed, so that a server that
/// writes a page does not see a reset (Kubernetes reads 10 KiB, too).
const BODY_LIMIT: usize = 10 * 1024;

/// Why an instance did not become ready by probes.
#[derive(Debug, thiserror::Error)]
pub enum ProbeFailed {
    /// The time was over; the last attempt says what was wrong with it.
    #[error("not ready after {attempts} probes of {address} in {waited:?}")]
    Deadline {
        /// What was probed.
        address: SocketAddr,
        /// How often it was probed.
        attempts: u32,
        /// Time since the call.
        waited: Duration,
        /// The last probe's failure; none if the time was over before the first.
        #[source]
        last: Option<AttemptFailed>,
    },
    /// The manifest's path or headers make no HTTP request; no probe can succeed.
    #[error("the readiness probe of {address} is no HTTP request")]
    Request {
        /// What would have been probed.
        address: SocketAddr,
        /// What is wrong with it.
        #[source]
        source: hyper::http::Error,
    },
}

/// Why one probe failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptFailed {
    /// No connection.
    #[error("connect")]
    Connect(#[source] io::Error),
    /// No complete answer.
    #[error("request")]
    Request(#[source] hyper::Error),
    /// The answer was not 200..=399.
    #[error("answered {0}")]
    Status(StatusCode),
    /// `timeoutSeconds` were over.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

enum Target<'a> {
    Tcp,
    Http {
        path: &'a str,
        headers: &'a [(String, String)],
    },
}

/// Waits until the instance at `address` is ready as `readiness` defines it, at most until
/// `deadline` and at most `initial_delay + period * failure_threshold`. Returns at once for
/// readiness that is not probed from outside.
pub async fn ready(
    readiness: &Readiness,
    address: IpAddr,
    deadline: Instant,
) -> Result<(), ProbeFailed> {
    let (port, target, timing) = match readiness {
        Readiness::Tcp { port, timing } => (*port, Target::Tcp, timing),
        Readiness::Http {
            port,
            path,
            headers,
            timing,
        } => (*port, Target::Http { path, headers }, timing),
        Readiness::None | Readiness::Notify { .. } | Readiness::Exec { .. } => return Ok(()),
    };
    probe_until_ready(&target, SocketAddr::new(address, port), *timing, deadline).await
}

async fn probe_until_ready(
    target: &Target<'_>,
    address: SocketAddr,
    timing: ProbeTiming,
    deadline: Instant,
) -> Result<(), ProbeFailed> {
    target.check(address)?;
    let began = Instant::now();
    let deadline =
        deadline.min(began + timing.initial_delay + timing.period * timing.failure_threshold);
    let mut rhythm = Rhythm::new(timing.period);
    // An app that becomes ready shortly before the end is found, whatever the rhythm says.
    let last_chance = deadline.checked_sub(timing.timeout).unwrap_or(began);
    let mut next = began + timing.initial_delay;
    let (mut attempts, mut last) = (0, None);
    while next < deadline {
        sleep_until(next).await;
        attempts += 1;
        let limit = deadline.min(Instant::now() + timing.timeout);
        match timeout_at(limit, target.attempt(address)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failed)) => last = Some(failed),
            Err(_) => last = Some(AttemptFailed::Timeout(timing.timeout)),
        }
        let planned = (next + rhythm.pause()).max(Instant::now());
        next = if next < last_chance {
            planned.min(last_chance)
        } else {
            planned
        };
    }
    Err(ProbeFailed::Deadline {
        address,
        attempts,
        waited: began.elapsed(),
        last,
    })
}

/// Pauses that put probes at 0, 1, 2, 4, 8, ... ms and later `period` apart.
struct Rhythm {
    offset: Duration,
    period: Duration,
}

impl Rhythm {
    fn new(period: Duration) -> Self {
        Self {
            offset: Duration::ZERO,
            period,
        }
    }

    fn pause(&mut self) -> Duration {
        let pause = self.offset.max(Duration::from_millis(1)).min(self.period);
        self.offset = self.offset.saturating_add(pause);
        pause
    }
}

impl Target<'_> {
    fn check(&self, address: SocketAddr) -> Result<(), ProbeFailed> {
        match self.request(address) {
            Ok(_) => Ok(()),
            Err(source) => Err(ProbeFailed::Request { address, source }),
        }
    }

    /// The request of an HTTP probe; nothing for TCP.
    fn request(
        &self,
        address: SocketAddr,
    ) -> Result<Option<Request<Empty<Bytes>>>, hyper::http::Error> {
        let Self::Http { path, headers } = self else {
            return Ok(None);
        };
        let target: hyper::Uri = path
            .parse()
            .map_err(|e: InvalidUri| hyper::http::Error::from(e))?;
        let mut request = Request::get(target);
        for (name, value) in *headers {
            request = request.header(name, value);
        }
        let mut request = request.body(Empty::new())?;
        let given = request.headers_mut();
        if !given.contains_key(header::HOST) {
            given.insert(header::HOST, address.to_string().try_into()?);
        }
        if !given.contains_key(header::USER_AGENT) {
            given.insert(
                header::USER_AGENT,
                header::HeaderValue::from_static("nodeagent-probe/1"),
            );
        }
        given.insert(
            header::CONNECTION,
            header::HeaderValue::from_static("close"),
        );
        Ok(Some(request))
    }

    async fn attempt(&self, address: SocketAddr) -> Result<(), AttemptFailed> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(AttemptFailed::Connect)?;
        match self.request(address) {
            Ok(Some(request)) => http(stream, request).await,
            // `check` has seen that the request can be made.
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

async fn http(stream: TcpStream, request: Request<Empty<Bytes>>) -> Result<(), AttemptFailed> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(AttemptFailed::Request)?;
    let exchange = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(AttemptFailed::Request)?;
        let status = answer.status();
        let mut body = answer.into_body();
        let mut seen = 0;
        // A body that breaks off does not make a good status bad.
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen >= BODY_LIMIT {
                break;
            }
        }
        if (200..=399).contains(&status.as_u16()) {
            Ok(())
        } else {
            Err(AttemptFailed::Status(status))
        }
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The connection ends first when the server closes; the exchange then has its answer.
        _ = &mut connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn timing(period_ms: u64, failure_threshold: u32) -> ProbeTiming {
        ProbeTiming {
            initial_delay: Duration::ZERO,
            period: Duration::from_millis(period_ms),
            timeout: Duration::from_secs(1),
            failure_threshold,
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn http_readiness(port: u16, path: &str, timing: ProbeTiming) -> Readiness {
        Readiness::Http {
            port,
            path: path.into(),
            headers: vec![("X-Probe".into(), "yes".into())],
            timing,
        }
    }

    /// Answers one connection after another with `answers`; the requests come back.
    async fn server(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                requests.push(String::from_utf8_lossy(&request[..length]).into_owned());
                // A probe may have seen enough and gone.
                drop(stream.write_all(answer.as_bytes()).await);
            }
            requests
        });
        (port, served)
    }

    #[tokio::test]
    async fn a_port_that_opens_late_is_found() {
        let taken = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let address = taken.local_addr().unwrap();
        drop(taken);
        let readiness = Readiness::Tcp {
            port: address.port(),
            timing: timing(20, 500),
        };
        let probing = tokio::spawn(async move { ready(&readiness, LOOPBACK, soon()).await });
        tokio::task::yield_now().await;
        let _listener = TcpListener::bind(address).await.unwrap();
        probing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn http_is_ready_from_200_to_399_and_sends_what_the_manifest_says() {
        let (port, served) = server(vec![
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 2\r\n\r\nhi",
        ])
        .await;
        ready(
            &http_readiness(port, "/healthz?full=1", timing(5, 1000)),
            LOOPBACK,
            soon(),
        )
        .await
        .unwrap();
        let requests = served.await.unwrap();
        assert!(
            requests[1].starts_with("GET /healthz?full=1 HTTP/1.1\r\n"),
            "{requests:?}"
        );
        assert!(requests[1].contains("x-probe: yes\r\n"), "{requests:?}");
        assert!(
            requests[1].contains(&format!("host: 127.0.0.1:{port}\r\n")),
            "{requests:?}"
        );
    }

    #[tokio::test]
    async fn a_failure_names_the_last_attempt() {
        let (port, served) = server(vec!["HTTP/1.1 404 Not Found\r\n\r\n"; 1]).await;
        let failed = ready(&http_readiness(port, "/", timing(1, 1)), LOOPBACK, soon())
            .await
            .unwrap_err();
        served.abort();
        match failed {
            ProbeFailed::Deadline {
                attempts: 1, last, ..
            } => assert!(last.is_some()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_server_that_never_answers_costs_one_timeout_a_probe() {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut slow = timing(30, 1);
        slow.timeout = Duration::from_millis(10);
        let failed = ready(&http_readiness(port, "/", slow), LOOPBACK, soon())
            .await
            .unwrap_err();
        match failed {
            ProbeFailed::Deadline {
                attempts,
                waited,
                last: Some(AttemptFailed::Timeout(_)),
                ..
            } => {
                assert!((1..=4).contains(&attempts), "{attempts}");
                assert!(
                    waited >= Duration::from_millis(20) && waited < Duration::from_secs(5),
                    "{waited:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_endless_body_does_not_hold_the_probe() {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n";
            stream.write_all(head).await.unwrap();
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        ready(
            &http_readiness(port, "/", timing(1000, 5)),
            LOOPBACK,
            soon(),
        )
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_path_that_is_no_request_target_fails_at_once() {
        let failed = ready(
            &http_readiness(1, "/a b", timing(1000, 3)),
            LOOPBACK,
            soon(),
        )
        .await
        .unwrap_err();
        assert_eq!(
            failed.to_string(),
            "the readiness probe of 127.0.0.1:1 is no HTTP request"
        );
    }

    #[test]
    fn the_first_probes_come_at_powers_of_two_and_then_every_period() {
        let mut rhythm = Rhythm::new(Duration::from_millis(10));
        let mut at = 0;
        let offsets: Vec<u128> = std::iter::from_fn(|| {
            at += rhythm.pause().as_millis();
            Some(at)
        })
        .take(7)
        .collect();
        assert_eq!(offsets, [1, 2, 4, 8, 16, 26, 36]);
    }
}
