//! `nodeagent logs`

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::duration;
use super::{Options, Report};
use crate::api::LogRequest;

const EXAMPLES: &str = "\
Examples:
  nodeagent logs web-0
  nodeagent logs web-0 --tail 100
  nodeagent logs -f web-0 sidecar
  nodeagent logs web-0 --since 10m | grep error

What a process wrote has no times of its own: --since leaves out a log that was written to last
before that. The log goes with its instance. On a terminal control characters are shown, not obeyed.";

/// Show what a process in an instance has written
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Logs {
    /// Name of the instance, as in status: web-0
    instance: String,
    /// Name of the process: app, or an in-container agent's name
    #[arg(default_value = "app")]
    process: String,
    /// Go on with what is written later, until the instance is gone
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Nothing that was written to last longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
}

impl Logs {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = LogRequest {
            process: self.process.clone(),
            follow: self.follow,
            tail: self.tail,
            since: self.since,
        };
        let mut log = match options.client().log(&self.instance, &request).await {
            Ok(log) => log,
            Err(error) => return Report::failure(options.output, &error),
        };
        let mut out = std::io::stdout();
        let mut shown = Shown::new(out.is_terminal());
        loop {
            let piece = match log.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Report::done(),
                Err(error) => return Report::failure(options.output, &error),
            };
            let written = out
                .write_all(&shown.spell(&piece))
                .and_then(|()| out.flush());
            // A reader that closed its pipe (`| head`) has what it wanted.
            if written.is_err() {
                return Report::done();
            }
        }
    }
}

/// How bytes from a container get to stdout.
struct Shown {
    terminal: bool,
    /// The first byte of a C1 control in UTF-8 was the last of a piece.
    begun: bool,
}

impl Shown {
    fn new(terminal: bool) -> Self {
        Self {
            terminal,
            begun: false,
        }
    }

    /// As they are, for programs; for a terminal without anything that it would obey but line
    /// breaks and tabs: C0 and C1 controls and DEL (ECMA-48).
    fn spell(&mut self, piece: &[u8]) -> Vec<u8> {
        if !self.terminal {
            return piece.to_vec();
        }
        let mut text = Vec::with_capacity(piece.len());
        for byte in piece {
            if std::mem::take(&mut self.begun) {
                match byte {
                    0x80..=0x9f => {
                        text.extend_from_slice(format!("\\u{{{byte:x}}}").as_bytes());
                        continue;
                    }
                    _ => text.push(0xc2),
                }
            }
            match byte {
                0xc2 => self.begun = true,
                b'\n' | b'\t' => text.push(*byte),
                0..0x20 | 0x7f => text.extend_from_slice(format!("\\u{{{byte:x}}}").as_bytes()),
                _ => text.push(*byte),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_a_container_wrote() {
        let mut shown = Shown::new(true);
        let of = |shown: &mut Shown, bytes: &[u8]| String::from_utf8(shown.spell(bytes)).unwrap();
        assert_eq!(
            of(&mut shown, b"a\x1b[2Jb\tc\n\r"),
            "a\\u{1b}[2Jb\tc\n\\u{d}"
        );
        assert_eq!(of(&mut shown, "é\u{9b}x".as_bytes()), "é\\u{9b}x");
        let pieces = [&b"\xc2"[..], b"\x9b2J", b"\xc2", b"\xb5"];
        let told: Vec<u8> = pieces.iter().flat_map(|piece| shown.spell(piece)).collect();
        assert_eq!(String::from_utf8(told).unwrap(), "\\u{9b}2Jµ");
        assert_eq!(Shown::new(false).spell(b"\x1b[2J"), b"\x1b[2J");
    }
}
