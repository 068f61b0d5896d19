//! Probes that the agent times and counts: TCP and HTTP from outside, commands by container-init.
//!
//! [`until_passed`] is for a start: the first probes come at 0, 1, 2, 4, 8, ... ms, because an
//! activation waits for them, and then every `period`. [`until_failed`] and [`until_again`] are for
//! an instance in service: one probe every `period`, begun at a moment of its own, so that a
//! thousand instances do not probe at once; no timer where there is nothing to probe. A probe never
//! follows a redirect and never trusts what a body says or how long it is. A command is one [`Inside`]
//! look each time; one of which nobody knows how it would have ended counts neither way.

mod attempt;
mod tls;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use attempt::Target;
pub use attempt::{AttemptFailed, Probed};

use crate::app::{Probe, ProbeTiming};

/// Why a start did not pass its probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeFailed {
    /// The time was over; the last attempt says what was wrong with it.
    #[error("not ready after {attempts} probes of {probed} in {waited:?}")]
    Deadline {
        /// What was probed.
        probed: Probed,
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
#[error("{probed} failed {failures} probes in a row")]
pub struct Lost {
    /// What was probed.
    pub probed: Probed,
    /// How often in a row.
    pub failures: u32,
    /// The last one.
    #[source]
    pub last: AttemptFailed,
}

/// Makes the looks of a probe that is a command.
pub trait Inside: Sync {
    /// One look of at most `within`.
    fn look(&self, within: Duration) -> impl Future<Output = Result<(), AttemptFailed>> + Send;
}

/// Where the looks of one probe go.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a, I> {
    /// The instance's address.
    pub address: IpAddr,
    /// The inside of the instance.
    pub inside: &'a I,
}

/// Waits until the instance at `place` passes `probe`, at most until `deadline` and at most
/// `initial_delay + period * failure_threshold`.
pub async fn until_passed<I: Inside>(
    probe: &Probe,
    place: Place<'_, I>,
    deadline: Instant,
) -> Result<(), ProbeFailed> {
    let (target, probed) = Target::of(&probe.look, place.address);
    target.check(&probed)?;
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
        let left = deadline.saturating_duration_since(Instant::now());
        match target
            .attempt(&probed, &place, timing.timeout.min(left))
            .await
        {
            Ok(()) => {
                passes += 1;
                if passes >= timing.success_threshold {
                    return Ok(());
                }
            }
            Err(failed) => {
                if !matches!(failed, AttemptFailed::NotKnown(_)) {
                    passes = 0;
                }
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
        probed,
        attempts,
        waited: began.elapsed(),
        last,
    })
}

/// Waits until the instance in service at `place` has failed `probe` `failure_threshold` times in
/// a row. `seed` chooses the moment within the period at which it is probed.
pub async fn until_failed<I: Inside>(probe: &Probe, place: Place<'_, I>, seed: u64) -> Lost {
    let (target, probed) = Target::of(&probe.look, place.address);
    let timing = probe.timing;
    let mut rounds = rounds(timing, timing.initial_delay, seed);
    let mut failures = 0;
    loop {
        rounds.tick().await;
        match target.attempt(&probed, &place, timing.timeout).await {
            Ok(()) => failures = 0,
            Err(AttemptFailed::NotKnown(_)) => {}
            Err(last) => {
                failures += 1;
                if failures >= timing.failure_threshold {
                    return Lost {
                        probed,
                        failures,
                        last,
                    };
                }
            }
        }
    }
}

/// Waits until the instance at `place`, which had lost its readiness, has passed `probe`
/// `success_threshold` times in a row.
pub async fn until_again<I: Inside>(probe: &Probe, place: Place<'_, I>, seed: u64) {
    let (target, probed) = Target::of(&probe.look, place.address);
    let timing = probe.timing;
    let mut rounds = rounds(timing, Duration::ZERO, seed);
    let mut passes = 0;
    while passes < timing.success_threshold {
        rounds.tick().await;
        passes = match target.attempt(&probed, &place, timing.timeout).await {
            Ok(()) => passes + 1,
            Err(AttemptFailed::NotKnown(_)) => passes,
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
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// The inside of an instance of which nothing is known, or this, look after look.
    #[derive(Default)]
    struct Scripted(Mutex<VecDeque<AttemptFailed>>, AtomicU32);

    static NOBODY: Scripted = Scripted(Mutex::new(VecDeque::new()), AtomicU32::new(0));

    impl Inside for Scripted {
        async fn look(&self, _: Duration) -> Result<(), AttemptFailed> {
            self.1.fetch_add(1, Ordering::Relaxed);
            match self.0.lock().unwrap().pop_front() {
                Some(AttemptFailed::Code(0)) => Ok(()),
                Some(failed) => Err(failed),
                None => Err(AttemptFailed::NotKnown("the script is over".into())),
            }
        }
    }

    impl Scripted {
        fn new(outcomes: impl IntoIterator<Item = AttemptFailed>) -> Self {
            Self(
                Mutex::new(outcomes.into_iter().collect()),
                AtomicU32::new(0),
            )
        }

        fn place(&self) -> Place<'_, Self> {
            Place {
                address: LOOPBACK,
                inside: self,
            }
        }
    }

    fn at() -> Place<'static, Scripted> {
        NOBODY.place()
    }

    fn command(timing: ProbeTiming) -> Probe {
        let look = Look::Exec {
            command: vec!["/bin/alive".into(), "-q".into()],
        };
        Probe { look, timing }
    }

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
        let probing = tokio::spawn(async move { until_passed(&probe, at(), soon()).await });
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
            at(),
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
        let failed = until_passed(&http(port, "/", timing(1, 1)), at(), soon())
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
        let failed = until_passed(&http(port, "/", slow), at(), soon())
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
        until_passed(&http(port, "/", timing(1000, 5)), at(), soon())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_path_that_is_no_request_target_fails_at_once() {
        let failed = until_passed(&http(1, "/a b", timing(1000, 3)), at(), soon())
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
        let lost = until_failed(&probe, at(), 7).await;
        assert_eq!(lost.failures, 2);
        assert!(matches!(lost.last, AttemptFailed::Status(status) if status == 500));
        until_again(&probe, at(), 7).await;
        assert_eq!(served.await.unwrap().len(), 8);
    }

    #[tokio::test]
    async fn a_command_counts_as_the_others_do_and_what_is_not_known_counts_neither_way() {
        use AttemptFailed::{Code, Killed, NotKnown};
        let unknown = || NotKnown("not connected".into());
        let mut timing = timing(5, 3);
        timing.success_threshold = 2;
        let probe = command(timing);
        let second = Duration::from_secs(1);
        let inside = Scripted::new([
            Code(1),
            unknown(),
            Killed(second),
            Code(0),
            Code(1),
            Code(1),
            unknown(),
            Killed(second),
        ]);
        let lost = until_failed(&probe, inside.place(), 7).await;
        assert_eq!(
            lost.to_string(),
            "the command \"/bin/alive\" failed 3 probes in a row"
        );
        assert!(matches!(lost.last, Killed(_)), "{lost:?}");
        assert_eq!(inside.1.load(Ordering::Relaxed), 8);

        let inside = Scripted::new([Code(0), Code(1), Code(0), unknown(), Code(0), Code(0)]);
        until_again(&probe, inside.place(), 7).await;
        assert_eq!(inside.1.load(Ordering::Relaxed), 5);
    }

    #[tokio::test]
    async fn a_start_waits_for_a_command_as_often_as_the_manifest_says() {
        use AttemptFailed::Code;
        let mut timing = timing(5, 20);
        timing.success_threshold = 2;
        let inside = Scripted::new([Code(0), Code(1), Code(0), Code(0)]);
        until_passed(&command(timing), inside.place(), soon())
            .await
            .unwrap();
        let inside = Scripted::new([]);
        let failed = until_passed(&command(timing), inside.place(), soon()).await;
        let failed = crate::chain::chain(&failed.unwrap_err());
        assert!(
            failed.ends_with("is not known: the script is over"),
            "{failed}"
        );
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
