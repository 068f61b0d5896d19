//! The environment of a process: the plan's, with what a start adds or replaces.

use core::ffi::{CStr, c_char};

use container_init::plan::{MAX_STRINGS, Process};
use container_init::protocol::{MAX_ENV_OVERLAY, MAX_FRAME, Start};

use super::sys::Pointers;

/// Task id, traceparent, notify socket.
const OWN: usize = 3;
const PLACES: usize = MAX_STRINGS + MAX_ENV_OVERLAY + OWN + 1;
/// A frame's worth of overlay, the own keys and the notify socket's path.
const TEXT: usize = MAX_FRAME + 1024;

/// Room for the environment of one process, used again for the next.
pub struct Room {
    pointers: [*const c_char; PLACES],
    text: [u8; TEXT],
}

impl Room {
    pub const fn new() -> Self {
        Self {
            pointers: [core::ptr::null(); PLACES],
            text: [0; TEXT],
        }
    }

    /// Builds the environment; `None` when it is larger than there is room for.
    pub fn build<'a>(
        &'a mut self,
        process: &Process<'a>,
        start: Option<Start<'_>>,
        notify: Option<&CStr>,
    ) -> Option<Environment<'a>> {
        let own = own(start, notify);
        let overlay = || start.iter().flat_map(|start| start.env.iter());
        let is_own = |key: &[u8]| own.iter().flatten().any(|(own, _)| *own == key);
        let mut length = 0;
        for (index, (key, value)) in overlay().enumerate() {
            let later = overlay().skip(index + 1).any(|(other, _)| other == key);
            if !later && !is_own(key.as_bytes()) {
                append(
                    &mut self.text,
                    &mut length,
                    key.as_bytes(),
                    value.as_bytes(),
                )?;
            }
        }
        for (key, value) in own.iter().flatten() {
            append(&mut self.text, &mut length, key, value)?;
        }
        let text: &'a [u8] = self.text.get(..length)?;
        let added = || {
            text.split_inclusive(|byte| *byte == 0)
                .filter_map(|entry| CStr::from_bytes_with_nul(entry).ok())
        };
        let kept = process
            .env
            .iter()
            .filter(|entry| !added().any(|other| key_of(other) == key_of(entry)));
        let path = added()
            .chain(kept)
            .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        let kept = process
            .env
            .iter()
            .filter(|entry| !added().any(|other| key_of(other) == key_of(entry)));
        Some(Environment {
            list: Pointers::collect(&mut self.pointers, kept.chain(added()))?,
            path,
        })
    }
}

/// What a process gets.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// For execve.
    pub list: Pointers<'a>,
    /// Value of `PATH`.
    pub path: Option<&'a [u8]>,
}

type Entry<'a> = (&'a [u8], &'a [u8]);

/// What the contract names; wins over plan and overlay.
fn own<'a>(start: Option<Start<'a>>, notify: Option<&'a CStr>) -> [Option<Entry<'a>>; OWN] {
    let given =
        |key: &'static [u8], value: &'a str| (!value.is_empty()).then_some((key, value.as_bytes()));
    [
        start.and_then(|start| given(b"NODEAGENT_TASK_ID", start.task_id)),
        start.and_then(|start| given(b"TRACEPARENT", start.traceparent)),
        notify.map(|path| (&b"NOTIFY_SOCKET"[..], path.to_bytes())),
    ]
}

fn append(text: &mut [u8], length: &mut usize, key: &[u8], value: &[u8]) -> Option<()> {
    for part in [key, b"=", value, b"\0"] {
        text.get_mut(*length..)?
            .get_mut(..part.len())?
            .copy_from_slice(part);
        *length += part.len();
    }
    Some(())
}

fn key_of(entry: &CStr) -> &[u8] {
    let bytes = entry.to_bytes();
    bytes.split(|byte| *byte == b'=').next().unwrap_or(bytes)
}
