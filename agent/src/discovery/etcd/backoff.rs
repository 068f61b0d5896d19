//! Which member is asked next, and after what pause. Pure but for the dice.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Goes through the endpoints in turn; a round without success is followed by a pause, doubling
/// from 100 ms to 5 s and shortened by up to a half at random, so that the agents of a fleet do not
/// come back in one instant.
#[derive(Debug)]
pub(super) struct Rotation {
    endpoints: Vec<String>,
    next: usize,
    failed: usize,
}

impl Rotation {
    /// Begins at a random endpoint: the agents of a fleet spread over the members.
    pub(super) fn new(endpoints: Vec<String>) -> Self {
        let next = usize::from(random()) % endpoints.len().max(1);
        Self {
            endpoints,
            next,
            failed: 0,
        }
    }

    /// The endpoint to try now.
    pub(super) fn current(&self) -> &str {
        self.endpoints.get(self.next).map_or("", String::as_str)
    }

    /// The present endpoint works: the next failure begins a new count.
    pub(super) fn succeeded(&mut self) {
        self.failed = 0;
    }

    /// The present endpoint failed: the next one is due after this pause.
    pub(super) fn failed(&mut self) -> Duration {
        self.next = (self.next + 1) % self.endpoints.len().max(1);
        self.failed = self.failed.saturating_add(1);
        let rounds = self.failed / self.endpoints.len().max(1);
        if rounds == 0 || !self.failed.is_multiple_of(self.endpoints.len().max(1)) {
            return Duration::ZERO;
        }
        pause(rounds, random())
    }
}

fn pause(rounds: usize, dice: u8) -> Duration {
    let doublings = u32::try_from(rounds - 1).unwrap_or(u32::MAX).min(6);
    let longest = (SHORTEST * 2_u32.pow(doublings)).min(LONGEST);
    longest - longest * u32::from(dice) / 512
}

fn random() -> u8 {
    let mut byte = [0];
    // Cannot fail for one byte once the pool is initialised (getrandom(2)); 0 would do as well.
    let _ = rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::empty());
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_tried_before_the_first_pause() {
        let all = ["a", "b", "c"].map(str::to_owned);
        let mut rotation = Rotation::new(all.to_vec());
        let mut tried = Vec::new();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            tried.push(rotation.current().to_owned());
            pauses.push(rotation.failed());
        }
        tried[..3].sort();
        assert_eq!(tried[..3], all);
        let none = |pause: &Duration| pause.is_zero();
        assert!(
            pauses[..2].iter().chain(&pauses[3..5]).all(none),
            "{pauses:?}"
        );
        assert!((50..=100).contains(&pauses[2].as_millis()), "{pauses:?}");
        assert!((100..=200).contains(&pauses[5].as_millis()), "{pauses:?}");
    }

    #[test]
    fn pauses_grow_to_five_seconds_and_are_never_less_than_half() {
        for rounds in 1..100 {
            for dice in [0, 128, 255] {
                let pause = pause(rounds, dice);
                assert!(pause >= SHORTEST / 2 && pause <= LONGEST, "{rounds} {dice}");
            }
        }
        assert_eq!(pause(9, 0), LONGEST);
    }
}
