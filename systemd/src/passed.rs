//! sd_listen_fds(3): sockets that the service manager opened, or keeps for us.
//!
//! Those of socket units come first, then those of the FD store. Each has a name:
//! `FileDescriptorName=` of its unit, or the `FDNAME=` that it was stored under.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::fd::{OwnedFd, RawFd};

use crate::sys;

/// The first descriptor that is passed, `SD_LISTEN_FDS_START` of sd-daemon.h.
const FIRST: RawFd = 3;
/// More are no service manager's: `FileDescriptorStoreMax=` and two sockets stay far below.
const MOST: usize = 1024;
/// The name of a descriptor that has none (sd_listen_fds(3)).
const UNNAMED: &str = "unknown";

const PID: &str = "LISTEN_PID";
const COUNT: &str = "LISTEN_FDS";
const NAMES: &str = "LISTEN_FDNAMES";

/// A descriptor that was passed.
#[derive(Debug)]
pub struct Passed {
    /// Its name, `unknown` when it has none.
    pub name: String,
    /// The descriptor, close-on-exec.
    pub descriptor: OwnedFd,
}

/// Why what was passed cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// `LISTEN_FDS` is no number, or too large a one.
    #[error("LISTEN_FDS={} is not a number up to {MOST}", value.display())]
    Count {
        /// The variable's value.
        value: OsString,
    },
    /// The variables name descriptors that are not open.
    #[error("not every descriptor of LISTEN_FDS={count} is open")]
    NotOpen {
        /// How many were named.
        count: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The variables cannot be removed.
    #[error("cannot remove {PID}, {COUNT} and {NAMES} from the environment")]
    Forget(#[source] io::Error),
}

/// Takes what was passed to this process; nothing when the variables are for another one. The
/// variables are removed, so that no child takes them for its own. Call it before any thread is
/// started.
pub(crate) fn take() -> Result<Vec<Passed>, PassedError> {
    let [pid, count, names] = [PID, COUNT, NAMES].map(std::env::var_os);
    if pid.is_none() && count.is_none() {
        return Ok(Vec::new());
    }
    sys::forget(&[PID, COUNT, NAMES]).map_err(PassedError::Forget)?;
    let Some((numbers, names)) = read(std::process::id(), pid, count, names)? else {
        return Ok(Vec::new());
    };
    let count = numbers.len();
    let taken = sys::take(numbers).map_err(|source| PassedError::NotOpen { count, source })?;
    Ok(names
        .into_iter()
        .zip(taken)
        .map(|(name, descriptor)| Passed { name, descriptor })
        .collect())
}

type Numbered = (Range<RawFd>, Vec<String>);

/// What the variables say to the process `own`.
fn read(
    own: u32,
    pid: Option<OsString>,
    count: Option<OsString>,
    names: Option<OsString>,
) -> Result<Option<Numbered>, PassedError> {
    let for_us = pid.is_some_and(|pid| pid.to_str().and_then(|pid| pid.parse().ok()) == Some(own));
    let (true, Some(value)) = (for_us, count) else {
        return Ok(None);
    };
    let count = value.to_str().and_then(|count| count.parse().ok());
    let Some(count) = count.filter(|count: &usize| *count <= MOST) else {
        return Err(PassedError::Count { value });
    };
    let names = names.unwrap_or_default();
    let names = names.to_string_lossy();
    let mut given = names.split(':');
    let names = (0..count).map(|_| match given.next() {
        None | Some("") => UNNAMED.to_owned(),
        Some(name) => name.to_owned(),
    });
    let names = names.collect();
    // At most MOST, which fits.
    let end = FIRST + count as RawFd;
    Ok(Some((FIRST..end, names)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pid: &str, count: &str, names: &str) -> Result<Option<Numbered>, PassedError> {
        read(7, Some(pid.into()), Some(count.into()), Some(names.into()))
    }

    #[test]
    fn names_belong_to_descriptors_in_order_and_may_be_fewer() {
        let (numbers, names) = said("7", "3", "api:gate").unwrap().unwrap();
        assert_eq!(numbers, 3..6);
        assert_eq!(names, ["api", "gate", "unknown"]);
    }

    #[test]
    fn what_is_for_another_process_is_left_alone() {
        assert!(said("8", "3", "api:gate").unwrap().is_none());
        assert!(said("", "3", "").unwrap().is_none());
        assert!(read(7, Some("7".into()), None, None).unwrap().is_none());
        assert!(read(7, None, Some("1".into()), None).unwrap().is_none());
    }

    #[test]
    fn a_count_that_is_none_is_refused_with_its_value() {
        for bad in ["", "two", "-1", "1025"] {
            let error = said("7", bad, "").unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("LISTEN_FDS={bad} is not a number up to 1024")
            );
        }
        assert_eq!(said("7", "0", "").unwrap().unwrap().0, 3..3);
    }
}
