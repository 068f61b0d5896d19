//! Where a process's output goes.

use core::ffi::CStr;

use crate::wire::{Malformed, Reader, Writer};

/// Where an output stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output<'a> {
    /// Where container-init's own goes.
    Inherit,
    /// Appended to this file, which is made when it is missing.
    File(&'a CStr),
    /// To the process's [`Log`], line by line.
    Log,
}

/// A log in the CRI format (`2016-10-06T00:17:09.669794202Z stdout F text`), written by
/// container-init from a pipe, so that it can be rotated under a process that does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log<'a> {
    /// Where; rotated files are beside it as `PATH.1` (the newest), `PATH.2`, ...
    pub path: &'a CStr,
    /// Bytes after which a new file begins; 0 for never.
    pub max_bytes: u64,
    /// Files that are kept, the one that is written included; not 0.
    pub max_files: u8,
    /// Whether container-init writes it to its own stdout and stderr too.
    pub pass_through: bool,
}

impl<'a> Output<'a> {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Inherit => w.u8(0),
            Self::File(path) => {
                w.u8(1);
                w.c_text(path);
            }
            Self::Log => w.u8(2),
        }
    }

    pub(super) fn decode(r: &mut Reader<'a>, what: &'static str) -> Self {
        match r.u8(what) {
            0 => Self::Inherit,
            1 => Self::File(r.c_text(what)),
            2 => Self::Log,
            _ => r.known(what, None, Self::Inherit),
        }
    }
}

impl<'a> Log<'a> {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        match self.path.to_bytes().starts_with(b"/") && self.max_files != 0 {
            true => Ok(()),
            false => Err(Malformed::Invalid("log")),
        }
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.c_text(self.path);
        w.u64(self.max_bytes);
        w.u8(self.max_files);
        w.flag(self.pass_through);
    }

    pub(super) fn decode(r: &mut Reader<'a>) -> Self {
        let what = "log";
        Self {
            path: r.c_text(what),
            max_bytes: r.u64(what),
            max_files: r.u8(what),
            pass_through: r.flag(what),
        }
    }
}
