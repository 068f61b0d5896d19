//! Who is asked next, when, and when it is enough: pure decisions on failures.
//!
//! Sources are asked in order. One that may do better later rests for a while, twice as long each
//! time, with jitter, or as long as it asks (`Retry-After`); meanwhile the next one is asked. One
//! that failed [`MOST_FAILURES`] times with nothing in between, or cannot have what is wanted, is
//! put aside. Every failure that may pass costs one of the pull's [`Budget`].

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::failure::Verdict;

/// A source that failed so often in a row is put aside.
const MOST_FAILURES: u32 = 4;
/// Rest after the first failure.
const FIRST_REST: Duration = Duration::from_millis(200);
/// Longest rest by our own choice.
const LONGEST_REST: Duration = Duration::from_secs(10);
/// Longest rest that a source may ask for; one that asks for more is put aside.
pub(crate) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);

/// How often one pull may still try again.
#[derive(Debug)]
pub struct Budget(AtomicU32);

impl Budget {
    /// For this many.
    pub fn new(retries: u32) -> Self {
        Self(AtomicU32::new(retries))
    }

    /// Takes one; false when there is none.
    fn take(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.is_ok()
    }
}

/// Who is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// This source, now.
    Ask(usize),
    /// Nobody before this.
    Rest(Instant),
    /// Nobody any more.
    Over,
}

/// The standing of all sources of one object.
#[derive(Debug)]
pub(crate) struct Attempts(Vec<Standing>);

#[derive(Debug, Clone, Default)]
struct Standing {
    /// Was found unwell by somebody else; asked after the others.
    unwell: bool,
    failures: u32,
    rests_until: Option<Instant>,
    aside: bool,
}

impl Attempts {
    /// One source for each item: whether it is well.
    pub(crate) fn new(well: impl IntoIterator<Item = bool>) -> Self {
        let standing = |well: bool| Standing {
            unwell: !well,
            ..Standing::default()
        };
        Self(well.into_iter().map(standing).collect())
    }

    /// Who is asked now; of those in `other_than` only when there is nobody else.
    pub(crate) fn turn(&self, now: Instant, other_than: Option<usize>) -> Turn {
        let waits = |standing: &Standing| standing.rests_until.is_some_and(|until| until > now);
        let best = (0..self.0.len())
            .filter(|source| !self.0[*source].aside && !waits(&self.0[*source]))
            .min_by_key(|source| (Some(*source) == other_than, self.0[*source].unwell, *source));
        if let Some(source) = best {
            return Turn::Ask(source);
        }
        let in_play = self.0.iter().filter(|standing| !standing.aside);
        match in_play.filter_map(|standing| standing.rests_until).min() {
            Some(until) => Turn::Rest(until),
            None => Turn::Over,
        }
    }

    /// A source failed. `jitter` is from 0 to 1.
    pub(crate) fn failed(
        &mut self,
        source: usize,
        verdict: Verdict,
        now: Instant,
        jitter: f64,
        budget: &Budget,
    ) {
        let Some(standing) = self.0.get_mut(source) else {
            return;
        };
        let Verdict::Later(asked) = verdict else {
            standing.aside = true;
            return;
        };
        standing.failures += 1;
        let too_long = asked.is_some_and(|asked| asked > LONGEST_RETRY_AFTER);
        if too_long || standing.failures >= MOST_FAILURES || !budget.take() {
            standing.aside = true;
            return;
        }
        let rest = rest(standing.failures, jitter);
        standing.rests_until = Some(now + asked.map_or(rest, |asked| asked.max(rest)));
    }

    /// A source did something useful: what was before does not count any more.
    pub(crate) fn succeeded(&mut self, source: usize) {
        if let Some(standing) = self.0.get_mut(source) {
            standing.failures = 0;
            standing.unwell = false;
        }
    }

    /// The source is not asked any more.
    pub(crate) fn put_aside(&mut self, source: usize) {
        if let Some(standing) = self.0.get_mut(source) {
            standing.aside = true;
        }
    }
}

/// Rest after so many failures in a row: half of it certain, half of it by chance, so that a herd
/// spreads.
fn rest(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST_REST.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled
        .min(LONGEST_REST)
        .mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

/// `Retry-After`: seconds or a date (RFC 9110 section 10.2.3). A date that has passed is zero.
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Verdict = Verdict::Later(None);

    #[test]
    fn sources_are_asked_in_order_and_the_next_while_one_rests() {
        let (now, budget) = (Instant::now(), Budget::new(9));
        let mut attempts = Attempts::new([true, true]);
        assert_eq!(attempts.turn(now, None), Turn::Ask(0));
        attempts.failed(0, LATER, now, 1.0, &budget);
        assert_eq!(attempts.turn(now, None), Turn::Ask(1));
        attempts.failed(1, LATER, now, 0.0, &budget);
        let until = now + FIRST_REST / 2;
        assert_eq!(attempts.turn(now, None), Turn::Rest(until));
        assert_eq!(attempts.turn(until, None), Turn::Ask(1));
        assert_eq!(attempts.turn(now + FIRST_REST, None), Turn::Ask(0));
    }

    #[test]
    fn who_cannot_have_it_is_not_asked_again() {
        let (now, budget) = (Instant::now(), Budget::new(9));
        let mut attempts = Attempts::new([true, true]);
        attempts.failed(0, Verdict::PutAside, now, 0.0, &budget);
        assert_eq!(attempts.turn(now, None), Turn::Ask(1));
        attempts.failed(1, Verdict::PutAside, now, 0.0, &budget);
        assert_eq!(attempts.turn(now, None), Turn::Over);
        assert!(budget.take(), "what cannot pass costs nothing");
    }

    #[test]
    fn failures_in_a_row_end_it_and_success_in_between_does_not() {
        let (now, budget) = (Instant::now(), Budget::new(99));
        let mut attempts = Attempts::new([true]);
        for _ in 0..3 * MOST_FAILURES {
            attempts.failed(0, LATER, now, 0.5, &budget);
            attempts.succeeded(0);
        }
        assert!(matches!(attempts.turn(now, None), Turn::Rest(_)));
        for _ in 0..MOST_FAILURES {
            attempts.failed(0, LATER, now, 0.5, &budget);
        }
        assert_eq!(attempts.turn(now, None), Turn::Over);
    }

    #[test]
    fn without_budget_nobody_is_asked_twice() {
        let (now, budget) = (Instant::now(), Budget::new(1));
        let mut attempts = Attempts::new([true, true]);
        attempts.failed(0, LATER, now, 0.0, &budget);
        attempts.failed(1, LATER, now, 0.0, &budget);
        assert!(matches!(attempts.turn(now, None), Turn::Rest(_)));
        attempts.failed(0, LATER, now, 0.0, &budget);
        assert_eq!(attempts.turn(now, None), Turn::Over);
    }

    #[test]
    fn retry_after_is_kept_to_unless_it_is_too_long() {
        let (now, budget) = (Instant::now(), Budget::new(9));
        let mut attempts = Attempts::new([true]);
        let asked = Duration::from_secs(7);
        attempts.failed(0, Verdict::Later(Some(asked)), now, 1.0, &budget);
        assert_eq!(attempts.turn(now, None), Turn::Rest(now + asked));
        let asked = LONGEST_RETRY_AFTER + Duration::from_secs(1);
        attempts.failed(0, Verdict::Later(Some(asked)), now, 1.0, &budget);
        assert_eq!(attempts.turn(now, None), Turn::Over);
    }

    #[test]
    fn the_unwell_and_the_excluded_are_asked_last() {
        let now = Instant::now();
        let attempts = Attempts::new([false, true, true]);
        assert_eq!(attempts.turn(now, None), Turn::Ask(1));
        assert_eq!(attempts.turn(now, Some(1)), Turn::Ask(2));
        assert_eq!(Attempts::new([false]).turn(now, Some(0)), Turn::Ask(0));
    }

    #[test]
    fn rests_double_up_to_a_bound_and_jitter_takes_half_at_most() {
        assert_eq!(rest(1, 1.0), FIRST_REST);
        assert_eq!(rest(2, 1.0), 2 * FIRST_REST);
        assert_eq!(rest(2, 0.0), FIRST_REST);
        assert_eq!(rest(u32::MAX, 1.0), LONGEST_REST);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, wait) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let wait = wait.map(Duration::from_secs);
            assert_eq!(retry_after(value, now), wait, "{value}");
        }
    }
}
