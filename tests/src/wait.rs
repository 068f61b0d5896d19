//! Waiting: level-triggered, bounded, and saying what was waited for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks.
const STEP: Duration = Duration::from_millis(5);

/// What one look found.
#[derive(Debug)]
pub enum Look<T> {
    /// It is there.
    Seen(T),
    /// Not there; this is what is there instead, for the message of a wait that ran out.
    NotYet(String),
}

/// Looks until `look` has seen `what`; fails when `within` has passed, or with the error of `look`.
pub fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<Look<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look()? {
            Look::Seen(value) => return Ok(value),
            Look::NotYet(instead) if start.elapsed() >= within => {
                bail!("waited {within:?} for {what}; at the end: {instead}")
            }
            Look::NotYet(_) => std::thread::sleep(STEP),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_runs_out_says_what_it_saw_last() {
        let mut looks = 0;
        let error = until("the moon", Duration::from_millis(12), || {
            looks += 1;
            Ok(Look::<()>::NotYet(format!("look {looks}")))
        })
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("waited 12ms for the moon; at the end: look {looks}")
        );
    }
}
