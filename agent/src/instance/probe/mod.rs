//! Probes that the agent makes itself, from outside: TCP and HTTP.
//!
//! [`until_passed`] is for a start: the first probes come at 0, 1, 2, 4, 8, ... ms, because an
//! activation waits for them, and then every `period`. [`until_failed`] and [`until_again`] are for
//! an instance in service: one probe every `period`, begun at a moment of its own, so that a
//! thousand instances do not probe at once; no timer where there is nothing to probe. A probe never
//! follows a redirect and never trusts what a body says or how long it is. Commands inside the
//! container are container-init's.

mod attempt;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at};

pub use attempt::AttemptFailed;
use attempt::Target;

use crate::app::{Probe, ProbeTiming};

/// Why a start did not pass its probe.
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
    #[error("the probe of {address} is no HTTP request")]
    Request {
        /// What would have been probed.
        address: SocketAddr,
        /// What is wrong with it.
        #[source]
        source: hyper::http::Error,
    },
}

/// An instance in service failed its probe as often as the manifest says.
#[derive(Debug, thiserror::Error)]
#[error("{address} failed {failures} probes in a row")]
pub struct Lost {
    /// What was probed.
    pub address: SocketAddr,
    /// How often in a row.
    pub failures: u32,
    /// The last one.
    #[source]
    pub last: AttemptFailed,
}

/// Waits until the instance at `address` passes `probe`, at most until `deadline` and at most
/// `initial_delay + period * failure_threshold`. Returns at once for a command, which is not
/// probed from outside.
pub async fn until_passed(
    probe: &Probe,
    address: IpAddr,
    deadline: Instant,
) -> Result<(), ProbeFailed> {
    let Some((target, address)) = Target::of(&probe.look, address) else {
        return Ok(());
    };
    target.check(address)?;
    let timing = probe.timing;
    let began = Instant::now();
    let deadline = deadline.min(began + timing.deadline());
    let mut rhythm = Rhythm::new(timing.period);
    // An app that becomes ready shortly before the end is found, whatever the rhythm says.
    let last_chance = deadline.checked_sub(timing.timeout).unwrap_or(began);
    let mut next = began + timing.initial_delay;
    let (mut attempts, mut passes, mut last) = (0, 0, None);
    while next < deadline {
        sleep_until(next).await;
        attempts += 1;
        let limit = deadline.min(Instant::now() + timing.timeout);
        match attempt(&target, address, timing, limit).await {
            Ok(()) => {
                passes += 1;
                if passes >= timing.success_threshold {
                    return Ok(());
                }
            }
            Err(failed) => {
                passes = 0;
                last = Some(failed);
            }
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

/// Waits until the instance in service at `address` has failed `probe` `failure_threshold` times in
/// a row. `seed` chooses the moment within the period at which it is probed.
pub async fn until_failed(probe: &Probe, address: IpAddr, seed: u64) -> Lost {
    let Some((target, address)) = Target::of(&probe.look, address) else {
        return std::future::pending().await;
    };
    let timing = probe.timing;
    let mut rounds = rounds(timing, timing.initial_delay, seed);
    let mut failures = 0;
    loop {
        rounds.tick().await;
        let limit = Instant::now() + timing.timeout;
        match attempt(&target, address, timing, limit).await {
            Ok(()) => failures = 0,
            Err(last) => {
                failures += 1;
                if failures >= timing.failure_threshold {
                    return Lost {
                        address,
                        failures,
                        last,
                    };
                }
            }
        }
    }
}

/// Waits until the instance at `address`, which had lost its readiness, has passed `probe`
/// `success_threshold` times in a row.
pub async fn until_again(probe: &Probe, address: IpAddr, seed: u64) {
    let Some((target, address)) = Target::of(&probe.look, address) else {
        return;
    };
    let timing = probe.timing;
    let mut rounds = rounds(timing, Duration::ZERO, seed);
    let mut passes = 0;
    while passes < timing.success_threshold {
        rounds.tick().await;
        let limit = Instant::now() + timing.timeout;
        passes = match attempt(&target, address, timing, limit).await {
            Ok(()) => passes + 1,
            Err(_) => 0,
        };
    }
}

/// Every `period`, from `delay` and a part of a period on.
fn rounds(timing: ProbeTiming, delay: Duration, seed: u64) -> tokio::time::Interval {
    let first = first_round(timing, Instant::now() + delay, seed);
    let mut rounds = interval_at(first, timing.period);
    // After a stop of the agent itself, missed rounds are not made up for.
    rounds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    rounds
}

fn first_round(timing: ProbeTiming, from: Instant, seed: u64) -> Instant {
    let thousandths = u32::try_from(seed % 1000).unwrap_or(0);
    from + timing.period * thousandths / 1000
}

async fn attempt(
    target: &Target<'_>,
    address: SocketAddr,
    timing: ProbeTiming,
    limit: Instant,
) -> Result<(), AttemptFailed> {
    match timeout_at(limit, target.attempt(address)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(AttemptFailed::Timeout(timing.timeout)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{Look, Scheme};
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn timing(period_ms: u64, failure_threshold: u32) -> ProbeTiming {
        ProbeTiming {
            initial_delay: Duration::ZERO,
            period: Duration::from_millis(period_ms),
            timeout: Duration::from_secs(1),
            success_threshold: 1,
            failure_threshold,
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn http(port: u16, path: &str, timing: ProbeTiming) -> Probe {
        let look = Look::Http {
            port,
            host: None,
            scheme: Scheme::Http,
            path: path.into(),
            headers: vec![("X-Probe".into(), "yes".into())],
        };
        Probe { look, timing }
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
        let probe = Probe {
            look: Look::Tcp {
                port: address.port(),
                host: None,
            },
            timing: timing(20, 500),
        };
        let probing = tokio::spawn(async move { until_passed(&probe, LOOPBACK, soon()).await });
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
        until_passed(
            &http(port, "/healthz?full=1", timing(5, 1000)),
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
        let failed = until_passed(&http(port, "/", timing(1, 1)), LOOPBACK, soon())
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
        let failed = until_passed(&http(port, "/", slow), LOOPBACK, soon())
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
        until_passed(&http(port, "/", timing(1000, 5)), LOOPBACK, soon())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_path_that_is_no_request_target_fails_at_once() {
        let failed = until_passed(&http(1, "/a b", timing(1000, 3)), LOOPBACK, soon())
            .await
            .unwrap_err();
        assert_eq!(
            failed.to_string(),
            "the probe of 127.0.0.1:1 is no HTTP request"
        );
    }

    #[tokio::test]
    async fn in_service_only_failures_in_a_row_count() {
        let bad = "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n";
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let (port, served) = server(vec![bad, good, bad, bad, good, bad, good, good]).await;
        let mut timing = timing(5, 2);
        timing.success_threshold = 2;
        let probe = http(port, "/", timing);
        let lost = until_failed(&probe, LOOPBACK, 7).await;
        assert_eq!(lost.failures, 2);
        assert!(matches!(lost.last, AttemptFailed::Status(status) if status == 500));
        until_again(&probe, LOOPBACK, 7).await;
        assert_eq!(served.await.unwrap().len(), 8);
    }

    #[test]
    fn instances_are_probed_at_moments_of_their_own() {
        let began = Instant::now();
        let delay = Duration::from_secs(5);
        let moment = |seed| first_round(timing(1000, 3), began + delay, seed) - began;
        let moments: std::collections::BTreeSet<Duration> = (0..5000).map(moment).collect();
        assert!(moments.len() > 900, "{}", moments.len());
        let within = |at: &Duration| *at >= delay && *at < delay + Duration::from_secs(1);
        assert!(moments.iter().all(within), "{moments:?}");
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
