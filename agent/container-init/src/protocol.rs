//! Frames between the agent and container-init, version 2.
//!
//! A frame never changes its layout; what is new has a kind of its own. The agent reads what every
//! version from [`OLDEST_VERSION`] says, and asks an older init for nothing that it does not know. An
//! older agent hangs up on the hello of a newer init, which then speaks the older version: its next
//! hello says so, and events that came later are left out.
//!
//! A frame is a u32 length (of what follows, at most [`MAX_FRAME_BODY`]), a u8 kind and a body;
//! integers are little-endian, strings a u16 length and UTF-8. [`Request`]s go to init,
//! [`Report`]s come from it. Both encode into a caller's buffer and decode by borrowing; a
//! decoded value and one built from slices are the same type. Nothing here carries a path or a
//! descriptor, and nothing decoded is ever used as one.

mod event;
mod look;
mod process;
mod report;
mod request;

pub use event::{Event, EventKind, ExitStatus, Memory};
pub use look::{Look, LookKind, LookOutcome, Looked};
pub use process::{ProcessState, ProcessStatus, Processes};
pub use report::{AgentState, AgentStatus, Agents, Hello, Refusal, Report, Status};
pub use request::{Adopt, EnvList, Request, RequestKind, Restart, Start};

use crate::wire::Malformed;

/// Protocol version that init says in its hello, unless the agent is older.
pub const VERSION: u16 = 2;
/// The oldest that both sides still speak.
pub const OLDEST_VERSION: u16 = 1;
/// The longest kind + body.
pub const MAX_FRAME_BODY: usize = 65_532;
/// The most entries in the environment of a start.
pub const MAX_ENV_OVERLAY: usize = 1024;
/// The longest frame on the wire, with its length.
pub const MAX_FRAME: usize = MAX_FRAME_BODY + 4;

/// One frame at the beginning of received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Kind and body, for [`Request::decode`] or [`Report::decode`].
    pub body: &'a [u8],
    /// How many received bytes the frame took.
    pub length: usize,
}

/// Takes the first frame off `received`; `None` while it is not complete. A length of zero or
/// beyond the limit is a fault: the stream cannot be continued after it.
pub fn first_frame(received: &[u8]) -> Result<Option<Frame<'_>>, Malformed> {
    let Some((length, rest)) = received.split_first_chunk() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_FRAME_BODY {
        return Err(Malformed::Invalid("frame length"));
    }
    Ok(rest.get(..length).map(|body| Frame {
        body,
        length: length + 4,
    }))
}

#[cfg(test)]
mod version_1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_frame_is_waited_for() {
        let mut buf = [0u8; 64];
        let length = Request::Stop { budget_ms: 7 }.encode(&mut buf).unwrap();
        for cut in 0..length {
            assert_eq!(first_frame(&buf[..cut]), Ok(None), "cut at {cut}");
        }
        let frame = first_frame(&buf).unwrap().unwrap();
        assert_eq!(frame.length, length);
        assert_eq!(
            Request::decode(frame.body),
            Ok(Request::Stop { budget_ms: 7 })
        );
    }

    #[test]
    fn a_length_beyond_the_limit_ends_the_stream() {
        for length in [0, MAX_FRAME_BODY as u32 + 1, u32::MAX] {
            assert_eq!(
                first_frame(&length.to_le_bytes()),
                Err(Malformed::Invalid("frame length"))
            );
        }
    }
}
