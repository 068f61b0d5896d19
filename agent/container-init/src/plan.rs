//! The flat plan that the agent compiles a manifest into: everything PID 1 needs, no parser.
//!
//! Magic, u16 version, u16 zero, u32 length and CRC-32 of the body, then the body. Strings that go
//! to the kernel end in NUL inside the file, so that init uses them where they lie. A [`Plan`]
//! built from slices and one decoded from bytes are the same type. [`Plan::decode`] checks the
//! whole plan once; after it no iterator can fail. Deliberately knows no defaults: the agent
//! writes down all of it.

mod lifecycle;
mod limits;
mod lists;
mod looks;
mod output;
mod process;
mod readiness;

use core::ffi::CStr;

pub use lifecycle::{Delivery, Essential, Restart, RestartPolicy, Rewrite, after_previous};
pub use limits::{Limits, Rlimit};
pub(crate) use lists::Item;
pub use lists::{Groups, List, Ports, Processes, Rewrites, Rlimits, Strings};
pub use looks::Looks;
pub use output::{Log, Output};
pub use process::{Process, ProcessKind};
pub use readiness::Readiness;

use crate::wire::{Malformed, Reader, TooLarge, Writer, crc32};

/// The largest plan that init reads.
pub const MAX_PLAN: usize = 256 * 1024;
/// The most processes in a plan, the app included.
pub const MAX_PROCESSES: usize = 16;
/// The longest name of a process, in bytes.
pub const MAX_NAME: usize = 63;
/// The most strings in an argv or an environment.
pub const MAX_STRINGS: usize = 4096;
/// The most supplementary groups of a process.
pub const MAX_GROUPS: usize = 256;
/// Exit code of init for a plan that it cannot read.
pub const EXIT_BAD_PLAN: u8 = 125;

const MAGIC: &[u8; 8] = b"\x7fnaplan\n";
/// A plan lies beside the program that reads it, both from the same agent: there is one version.
const VERSION: u16 = 3;

/// What one container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan<'a> {
    /// `<app>-<ordinal>.g<generation>`, said in the hello.
    pub container_id: &'a str,
    /// Generation that created the container.
    pub create_generation: u64,
    /// Socket to dial, normally [`crate::paths::CTL_SOCKET`].
    pub ctl_socket: &'a CStr,
    /// Where notify sockets are made, normally [`crate::paths::RUN_DIR`].
    pub run_dir: &'a CStr,
    /// The exit ring, normally [`crate::paths::EXITS`]; empty for none.
    pub exits: &'a CStr,
    /// Milliseconds from TERM to KILL when the stop comes from outside and no agent gives a budget;
    /// `u32::MAX` waits for the app as long as it takes.
    pub stop_grace_ms: u32,
    /// Signals from outside that reach the app as others; to 0: not at all.
    pub signals: Rewrites<'a>,
    /// Exit codes of the container that become others.
    pub exit_codes: Rewrites<'a>,
    /// In-container agents in the order of their start, then the app.
    pub processes: Processes<'a>,
    /// What is executed beside the app when the agent asks for a look.
    pub looks: Looks<'a>,
}

impl<'a> Plan<'a> {
    /// Writes the whole file into `buf` and returns its length; [`MAX_PLAN`] bytes suffice for
    /// every plan that init accepts.
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, TooLarge> {
        let mut w = Writer::new(buf);
        w.bytes(MAGIC);
        w.u16(VERSION);
        w.u16(0);
        let body = w.open();
        // The checksum is not part of the body but stands before it; filled in last.
        w.u32(0);
        w.text(self.container_id);
        w.u64(self.create_generation);
        w.c_text(self.ctl_socket);
        w.c_text(self.run_dir);
        w.c_text(self.exits);
        w.u32(self.stop_grace_ms);
        self.signals.encode(&mut w);
        self.exit_codes.encode(&mut w);
        self.processes.encode(&mut w);
        self.looks.encode(&mut w);
        w.close(body);
        let length = w.finish()?;
        let (crc_at, body_at) = (body + 4, body + 8);
        let crc = crc32(buf.get(body_at..length).ok_or(TooLarge)?);
        buf.get_mut(crc_at..body_at)
            .ok_or(TooLarge)?
            .copy_from_slice(&crc.to_le_bytes());
        if length <= MAX_PLAN {
            Ok(length)
        } else {
            Err(TooLarge)
        }
    }

    /// Reads a whole plan file and checks all of it; the fault names the object.
    pub fn decode(file: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(file);
        if r.bytes(MAGIC.len(), "plan magic") != MAGIC {
            r.invalid("plan magic");
        }
        if r.u16("plan version") != VERSION {
            r.invalid("plan version");
        }
        r.u16("plan header");
        let sealed = r.block("plan body");
        r.end("plan")?;
        let mut r = Reader::new(sealed);
        let crc = r.u32("plan checksum");
        if crc != crc32(r.rest_ref()) {
            r.invalid("plan checksum");
        }
        let plan = Self {
            container_id: r.text("container id"),
            create_generation: r.u64("create generation"),
            ctl_socket: r.c_text("ctl socket path"),
            run_dir: r.c_text("run directory"),
            exits: r.c_text("exit ring path"),
            stop_grace_ms: r.u32("stop grace"),
            signals: Rewrites::decode(&mut r, "signal rewrites"),
            exit_codes: Rewrites::decode(&mut r, "exit code rewrites"),
            processes: Processes::decode(&mut r, "processes"),
            looks: Looks::decode(&mut r),
        };
        r.end("plan body")?;
        plan.check()?;
        Ok(plan)
    }

    /// Rules that a single field cannot tell.
    fn check(&self) -> Result<(), Malformed> {
        let count = self.processes.len();
        if count == 0 || count > MAX_PROCESSES {
            return Err(Malformed::Invalid("number of processes"));
        }
        self.looks.check()?;
        if self
            .signals
            .iter()
            .any(|rewrite| !(1..=64).contains(&rewrite.from) || rewrite.to > 64)
        {
            return Err(Malformed::Invalid("signal rewrite"));
        }
        for (index, process) in self.processes.iter().enumerate() {
            process.check()?;
            if u32::from(process.after) >> index != 0 {
                return Err(Malformed::Invalid(
                    "dependencies (not on an earlier process)",
                ));
            }
            if (process.kind == ProcessKind::App) != (index + 1 == count) {
                return Err(Malformed::Invalid("place of the app (one, and the last)"));
            }
            if self
                .processes
                .iter()
                .take(index)
                .any(|earlier| earlier.name == process.name)
            {
                return Err(Malformed::Invalid("process name (used twice)"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
