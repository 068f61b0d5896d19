//! Commands that look at the app while it runs, each when the agent asks for it.

use super::MAX_STRINGS;
use super::lists::Strings;
use crate::protocol::LookKind;
use crate::wire::{Malformed, Reader, Writer};

/// Run as the app's user in its directory, without output; exit 0 is a yes. Empty where the app has
/// no such command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looks<'a> {
    /// Is it ready?
    pub readiness: Strings<'a>,
    /// Is it alive?
    pub liveness: Strings<'a>,
    /// Has it started?
    pub startup: Strings<'a>,
}

impl Default for Looks<'_> {
    fn default() -> Self {
        Self {
            readiness: Strings::new(&[]),
            liveness: Strings::new(&[]),
            startup: Strings::new(&[]),
        }
    }
}

impl<'a> Looks<'a> {
    /// The command of this kind; `None` where there is none.
    pub fn argv(&self, kind: LookKind) -> Option<Strings<'a>> {
        let argv = match kind {
            LookKind::Readiness => self.readiness,
            LookKind::Liveness => self.liveness,
            LookKind::Startup => self.startup,
        };
        (!argv.is_empty()).then_some(argv)
    }

    pub(super) fn check(&self) -> Result<(), Malformed> {
        let cannot_work = |argv: &Strings<'_>| {
            argv.iter().next().is_some_and(|program| program.is_empty()) || argv.len() > MAX_STRINGS
        };
        let mut argvs = LookKind::ALL.iter().filter_map(|kind| self.argv(*kind));
        if argvs.any(|argv| cannot_work(&argv)) {
            return Err(Malformed::Invalid("looks"));
        }
        Ok(())
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        self.readiness.encode(w);
        self.liveness.encode(w);
        self.startup.encode(w);
    }

    pub(super) fn decode(r: &mut Reader<'a>) -> Self {
        Self {
            readiness: Strings::decode(r, "looks"),
            liveness: Strings::decode(r, "looks"),
            startup: Strings::decode(r, "looks"),
        }
    }
}
