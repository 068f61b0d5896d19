//! IPv4 forwarding of the host (`net.ipv4.ip_forward`, Documentation/networking/ip-sysctl.rst):
//! without it nothing passes between instances and other hosts.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::NetworkError;
use crate::config::Forwarding;

/// Per network namespace: that of the thread that opens it.
const SYSCTL: &str = "/proc/sys/net/ipv4/ip_forward";

/// Whether the kernel forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwards {
    /// It did before.
    Already,
    /// It does from now on: it was switched on.
    SwitchedOn,
    /// It does not.
    No,
}

/// Looks whether the calling thread's network namespace forwards, and switches it on only when told
/// to.
///
/// # Errors
/// [`NetworkError::Netns`] when the kernel's setting cannot be read or written.
pub fn forwarding(setting: Forwarding) -> Result<Forwards, NetworkError> {
    let failed = |operation| {
        move |source| NetworkError::Netns {
            operation,
            path: PathBuf::from(SYSCTL),
            source,
        }
    };
    let now = fs::read_to_string(Path::new(SYSCTL)).map_err(failed("read"))?;
    if now.trim() != "0" {
        return Ok(Forwards::Already);
    }
    match setting {
        Forwarding::Check => Ok(Forwards::No),
        Forwarding::Enable => {
            fs::write(Path::new(SYSCTL), "1").map_err(failed("write"))?;
            Ok(Forwards::SwitchedOn)
        }
    }
}
