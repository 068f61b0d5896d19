//! The wall clock: whether somebody keeps it right.

use super::finding::Finding;
use crate::sys::{self, ClockState};

/// What adjtimex(2) says.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    pub state: Result<ClockState, String>,
}

pub(super) fn read() -> Clock {
    Clock {
        state: sys::clock_state().map_err(|error| error.to_string()),
    }
}

pub(super) fn judge(clock: &Clock) -> Vec<Finding> {
    let check = "clock.synchronised";
    let means =
        "times in trails and logs of two hosts cannot be compared; deadlines are not affected";
    let mend = "systemctl enable --now systemd-timesyncd (or chrony)";
    vec![match &clock.state {
        Ok(ClockState::Synchronised { max_error_us }) => Finding::full(
            check,
            format!("within {:.0} ms", f64::from(*max_error_us) / 1000.0),
        ),
        Ok(ClockState::Unsynchronised) => {
            Finding::part(check, "nobody synchronises the clock", means, mend)
        }
        Err(why) => Finding::part(check, format!("adjtimex: {why}"), means, mend),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    #[test]
    fn a_clock_that_nobody_keeps_works_in_part() {
        let of = |state| judge(&Clock { state })[0].clone();
        let good = of(Ok(ClockState::Synchronised {
            max_error_us: 12_400,
        }));
        assert_eq!(
            (good.works, good.found.as_str()),
            (Works::Full, "within 12 ms")
        );
        assert_eq!(of(Ok(ClockState::Unsynchronised)).works, Works::Part);
        assert_eq!(of(Err("no".to_owned())).works, Works::Part);
        assert!(read().state.is_ok());
    }
}
