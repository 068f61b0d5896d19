//! How the test outside and the `vm-guest` inside talk: JSON lines over a virtio port.
//!
//! Orders carry a number, and the answers name it: they come when their command has ended, in any
//! order. What was asked of a machine that lost its power is never answered.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// A command to run inside, by its words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Its number.
    pub id: u64,
    /// Program and arguments.
    pub words: Vec<String>,
}

/// How a command inside ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Number of the order.
    pub id: u64,
    /// Exit code; `None` when a signal ended it or it could not be started.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error, or why it could not be started.
    pub stderr: String,
}

impl Said {
    /// The output of a command that succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.code == Some(0),
            "ended with {:?}:\n{}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }
}

/// Our end of the port.
#[derive(Debug)]
pub(super) struct Control {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    /// What of a line has come so far: a read that runs out of time keeps it.
    line: Vec<u8>,
    next: u64,
    answers: BTreeMap<u64, Said>,
}

impl Control {
    pub(super) fn connect(socket: &Path) -> std::io::Result<Self> {
        let writer = UnixStream::connect(socket)?;
        let reader = BufReader::new(writer.try_clone()?);
        Ok(Self {
            writer,
            reader,
            line: Vec::new(),
            next: 1,
            answers: BTreeMap::new(),
        })
    }

    /// Sends an order and does not wait; returns its number.
    pub(super) fn send(&mut self, words: &[&str]) -> Result<u64> {
        let order = Order {
            id: self.next,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
        };
        self.next += 1;
        let mut line = serde_json::to_vec(&order).context("write an order")?;
        line.push(b'\n');
        self.writer.write_all(&line).context("send an order")?;
        Ok(order.id)
    }

    /// The answer to order `id`, if it comes in time.
    pub(super) fn answer(&mut self, id: u64, within: Duration) -> Result<Option<Said>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(said) = self.answers.remove(&id) {
                return Ok(Some(said));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.read(left)?;
        }
    }

    fn read(&mut self, within: Duration) -> Result<()> {
        let socket = self.reader.get_ref();
        socket
            .set_read_timeout(Some(within))
            .context("set a deadline")?;
        match self.reader.read_until(b'\n', &mut self.line) {
            Ok(0) => anyhow::bail!("the machine has closed its port"),
            Ok(_) if self.line.ends_with(b"\n") => {
                // A boot that ended in the middle of a line leaves a half one before the next.
                if let Ok(said) = serde_json::from_slice::<Said>(&self.line) {
                    self.answers.insert(said.id, said);
                }
                self.line.clear();
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(())
            }
            Err(error) => Err(error).context("read from the machine"),
        }
    }
}
