//! The command line, as tini and dumb-init have it.
//!
//! Options end at the first word that is none, or at `--`; a short option's value stands behind it
//! or in the next word. Pure: what is wrong is named, nothing is printed.

use core::ffi::CStr;

use crate::decimal;
use crate::plan::Rewrite;

/// The most rewrites of signals, and of exit codes.
pub const MAX_REWRITES: usize = 64;

/// What the program is asked to do.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, and nowhere to allocate the larger one"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode<'a> {
    /// Run the processes of a plan file.
    Plan(&'a CStr),
    /// Run one command.
    Alone(Alone),
    /// Only stay.
    Hold,
    /// Say how it is used.
    Help,
    /// Say what it is.
    Version,
}

/// How one command is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alone {
    /// Which word of the command line is the command.
    pub command: usize,
    /// Signals reach the command's process group, not only the command.
    pub group: bool,
    /// The signal that we get when our parent ends; 0 for none.
    pub parent_death_signal: u8,
    /// Milliseconds from TERM to KILL; `u32::MAX` waits as long as it takes.
    pub grace_ms: u32,
    /// Signals that become others.
    pub signals: Table,
    /// Exit codes that become others.
    pub exit_codes: Table,
}

/// Rewrites, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    list: [Rewrite; MAX_REWRITES],
    length: usize,
}

impl Table {
    /// The rewrites.
    pub fn list(&self) -> &[Rewrite] {
        self.list.get(..self.length).unwrap_or_default()
    }

    fn push(&mut self, rewrite: Rewrite) -> Option<()> {
        *self.list.get_mut(self.length)? = rewrite;
        self.length += 1;
        Some(())
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            list: [Rewrite { from: 0, to: 0 }; MAX_REWRITES],
            length: 0,
        }
    }
}

/// What is wrong with a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misuse<'a> {
    /// No such option.
    Option(&'a CStr),
    /// The option has no value, or one that is not allowed.
    Value {
        /// The option, without dashes.
        option: &'static str,
        /// What it was given; empty for nothing.
        given: &'a [u8],
        /// What is allowed.
        allowed: &'static str,
    },
    /// No command, plan or other thing to do.
    Nothing,
}

/// Reads the words after the program's name.
pub fn parse<'a>(words: impl Iterator<Item = &'a CStr>) -> Result<Mode<'a>, Misuse<'a>> {
    let mut alone = Alone {
        command: 0,
        group: false,
        parent_death_signal: 0,
        grace_ms: u32::MAX,
        signals: Table::default(),
        exit_codes: Table::default(),
    };
    // The program's name is word 0.
    let mut words = words.enumerate().map(|(at, word)| (at + 1, word));
    while let Some((at, word)) = words.next() {
        let bytes = word.to_bytes();
        if !bytes.starts_with(b"-") || bytes == b"-" {
            return Ok(Mode::Alone(Alone {
                command: at,
                ..alone
            }));
        }
        let mut next = || words.next().map(|(_, word)| word);
        match bytes {
            b"--" => {
                let (command, _) = words.next().ok_or(Misuse::Nothing)?;
                return Ok(Mode::Alone(Alone { command, ..alone }));
            }
            b"--plan" => {
                return match (next(), next()) {
                    (Some(plan), None) => Ok(Mode::Plan(plan)),
                    (_, more) => Err(Misuse::Value {
                        option: "plan",
                        given: more.map(CStr::to_bytes).unwrap_or_default(),
                        allowed: "the path of a plan, and nothing behind it",
                    }),
                };
            }
            b"--hold" => return Ok(Mode::Hold),
            b"-h" | b"--help" => return Ok(Mode::Help),
            b"-V" | b"--version" => return Ok(Mode::Version),
            b"-g" | b"--group" => alone.group = true,
            // What the others ask for is always so: orphans are adopted, ends are not warned of, and
            // one process hears of signals.
            [b'-', flags @ ..]
                if !flags.is_empty() && flags.iter().all(|flag| b"gsvwc".contains(flag)) =>
            {
                alone.group |= flags.contains(&b'g');
            }
            _ => {
                let (option, value) = match bytes {
                    b"--grace" => (b't', None),
                    b"--rewrite" => (b'r', None),
                    b"--remap" => (b'e', None),
                    b"--parent-death-signal" => (b'p', None),
                    [b'-', option] => (*option, None),
                    [b'-', option, value @ ..] => (*option, Some(value)),
                    _ => (0, None),
                };
                if !matches!(option, b't' | b'r' | b'e' | b'p') {
                    return Err(Misuse::Option(word));
                }
                let value = value.or_else(|| next().map(CStr::to_bytes));
                let value = value.unwrap_or_default();
                set(&mut alone, option, value).ok_or_else(|| not_allowed(option, value))?;
            }
        }
    }
    Err(Misuse::Nothing)
}

/// Gives an option its value; `None` when there is no such option or the value is not allowed.
fn set(alone: &mut Alone, option: u8, value: &[u8]) -> Option<()> {
    match option {
        b't' => {
            alone.grace_ms = decimal::parse::<u32>(value)?.checked_mul(1000)?;
        }
        b'p' => alone.parent_death_signal = signal(value).filter(|signal| *signal != 0)?,
        b'r' => {
            let (from, to) = pair(value)?;
            // Nobody hears of KILL and STOP.
            let from = signal(from).filter(|signal| !matches!(signal, 0 | 9 | 19))?;
            let to = signal(to)?;
            alone.signals.push(Rewrite { from, to })?;
        }
        b'e' => {
            // tini's form names a code that becomes 0.
            let (from, to) = pair(value).unwrap_or((value, b"0"));
            let (from, to) = (decimal::parse(from)?, decimal::parse(to)?);
            alone.exit_codes.push(Rewrite { from, to })?;
        }
        _ => return None,
    }
    Some(())
}

fn not_allowed(option: u8, given: &[u8]) -> Misuse<'_> {
    let (option, allowed) = match option {
        b't' => ("grace", "seconds, at most 4294967"),
        b'p' => (
            "parent-death-signal",
            "a signal: a name like TERM or a number 1 to 64",
        ),
        b'r' => (
            "rewrite",
            "FROM:TO, signals like TERM or 15, FROM neither KILL nor STOP, TO may be 0 for none, at most 64 times",
        ),
        _ => (
            "remap",
            "CODE or FROM:TO, exit codes 0 to 255, at most 64 times",
        ),
    };
    Misuse::Value {
        option,
        given,
        allowed,
    }
}

fn pair(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = value.iter().position(|byte| *byte == b':')?;
    Some((value.get(..at)?, value.get(at + 1..)?))
}

/// Names of signal(7), in the order of their numbers.
const NAMES: [&[u8]; 31] = [
    b"HUP", b"INT", b"QUIT", b"ILL", b"TRAP", b"ABRT", b"BUS", b"FPE", b"KILL", b"USR1", b"SEGV",
    b"USR2", b"PIPE", b"ALRM", b"TERM", b"STKFLT", b"CHLD", b"CONT", b"STOP", b"TSTP", b"TTIN",
    b"TTOU", b"URG", b"XCPU", b"XFSZ", b"VTALRM", b"PROF", b"WINCH", b"IO", b"PWR", b"SYS",
];

/// A signal by number (0 included) or by name, with or without `SIG`.
fn signal(text: &[u8]) -> Option<u8> {
    if let Some(number) = decimal::parse::<u8>(text) {
        return (number <= 64).then_some(number);
    }
    let name = text.strip_prefix(b"SIG").unwrap_or(text);
    let at = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::CString;
    use std::vec::Vec;

    fn read(words: &'static [&'static CStr]) -> Result<Mode<'static>, Misuse<'static>> {
        parse(words.iter().copied())
    }

    fn alone(words: &'static [&'static CStr]) -> Alone {
        match read(words) {
            Ok(Mode::Alone(alone)) => alone,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_begins_at_the_first_word_that_is_no_option() {
        assert_eq!(alone(&[c"true"]).command, 1);
        assert_eq!(alone(&[c"-g", c"true", c"-g"]).command, 2);
        assert_eq!(alone(&[c"--", c"-g"]).command, 2);
        assert_eq!(alone(&[c"-s", c"--", c"sh", c"--"]).command, 3);
        assert_eq!(alone(&[c"-", c"x"]).command, 1);
        assert_eq!(read(&[]), Err(Misuse::Nothing));
        assert_eq!(read(&[c"-g", c"--"]), Err(Misuse::Nothing));
    }

    #[test]
    fn options_of_tini_and_dumb_init_are_understood() {
        assert!(alone(&[c"-gvc", c"sh"]).group);
        assert!(!alone(&[c"-swc", c"sh"]).group);
        let tini = alone(&[
            c"-s", c"-g", c"-vvv", c"-w", c"-p", c"SIGKILL", c"-e", c"143", c"sh",
        ]);
        assert!(tini.group);
        assert_eq!(tini.parent_death_signal, 9);
        assert_eq!(tini.exit_codes.list(), [Rewrite { from: 143, to: 0 }]);
        assert_eq!(tini.grace_ms, u32::MAX);
        let dumb = alone(&[
            c"-r",
            c"15:3",
            c"--rewrite",
            c"HUP:0",
            c"-rUSR1:64",
            c"-t5",
            c"sh",
        ]);
        let rewrite = |from, to| Rewrite { from, to };
        assert_eq!(
            dumb.signals.list(),
            [rewrite(15, 3), rewrite(1, 0), rewrite(10, 64)]
        );
        assert_eq!(dumb.grace_ms, 5000);
        let ours = alone(&[
            c"--remap",
            c"143:7",
            c"--grace",
            c"0",
            c"--parent-death-signal",
            c"1",
            c"sh",
        ]);
        assert_eq!(ours.exit_codes.list(), [rewrite(143, 7)]);
        assert_eq!((ours.grace_ms, ours.parent_death_signal), (0, 1));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (words, option) in [
            (&[c"-t", c"x", c"sh"][..], "grace"),
            (&[c"-t"], "grace"),
            (&[c"-t", c"4294968", c"sh"], "grace"),
            (&[c"-p", c"0", c"sh"], "parent-death-signal"),
            (&[c"-p", c"65", c"sh"], "parent-death-signal"),
            (&[c"-r", c"15", c"sh"], "rewrite"),
            (&[c"-r", c"0:1", c"sh"], "rewrite"),
            (&[c"-r", c"NOPE:1", c"sh"], "rewrite"),
            (&[c"-r", c"KILL:TERM", c"sh"], "rewrite"),
            (&[c"-r", c"19:TERM", c"sh"], "rewrite"),
            (&[c"-e", c"256", c"sh"], "remap"),
            (&[c"--plan"], "plan"),
            (&[c"--plan", c"/plan", c"sh"], "plan"),
        ] {
            match parse(words.iter().copied()) {
                Err(Misuse::Value { option: named, .. }) => assert_eq!(named, option),
                other => panic!("{words:?}: {other:?}"),
            }
        }
        for word in [c"-x", c"--nope", c"--graceful", c"-gx"] {
            assert_eq!(parse([word, c"sh"].into_iter()), Err(Misuse::Option(word)));
        }
    }

    #[test]
    fn the_other_modes() {
        assert_eq!(read(&[c"--plan", c"/p"]), Ok(Mode::Plan(c"/p")));
        assert_eq!(read(&[c"--hold"]), Ok(Mode::Hold));
        assert_eq!(read(&[c"-h"]), Ok(Mode::Help));
        assert_eq!(read(&[c"--version"]), Ok(Mode::Version));
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(words in proptest::collection::vec("[-a-z0-9:]{0,6}", 0..8)) {
            let words: Vec<CString> = words.iter().map(|word| CString::new(word.as_str()).unwrap()).collect();
            if let Ok(Mode::Alone(alone)) = parse(words.iter().map(CString::as_c_str)) {
                prop_assert!((1..=words.len()).contains(&alone.command));
            }
        }
    }
}
