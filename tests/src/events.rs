//! The agent's server-sent events as a reader of the documentation reads them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Longest silence: the agent says that it lives every 15 s.
const SILENCE: Duration = Duration::from_secs(30);

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `reset`, `synced`, `app`, `instance`, `task`, `alarm` or `pull`.
    pub name: String,
    /// Its document.
    pub data: Value,
}

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    lines: BufReader<UnixStream>,
    /// The last id that was told.
    pub last_id: Option<String>,
}

impl Stream {
    /// `GET target` at the agent's socket, going on after `last_id`. HTTP/1.0: the body has no
    /// frames of its own.
    pub fn open(socket: &Path, target: &str, last_id: Option<&str>) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).context("connect")?;
        stream
            .set_read_timeout(Some(SILENCE))
            .context("set a deadline")?;
        let resume = last_id.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        let head = format!("GET {target} HTTP/1.0\r\nHost: a\r\n{resume}\r\n");
        stream.write_all(head.as_bytes()).context("ask")?;
        let mut open = Self {
            lines: BufReader::new(stream),
            last_id: None,
        };
        let status = open.line()?;
        ensure!(status.starts_with("HTTP/1.0 200"), "{target}: {status}");
        while !open.line()?.is_empty() {}
        Ok(open)
    }

    /// The next event.
    pub fn next_event(&mut self) -> Result<Event> {
        let (mut name, mut data) = (String::new(), String::new());
        loop {
            let line = self.line()?;
            let (field, value) = line.split_once(": ").unwrap_or((&line, ""));
            match field {
                "event" => value.clone_into(&mut name),
                "data" => value.clone_into(&mut data),
                "id" => self.last_id = Some(value.to_owned()),
                "" if line.is_empty() && !data.is_empty() => {
                    let data = serde_json::from_str(&data)
                        .with_context(|| format!("the document of {name}: {data}"))?;
                    return Ok(Event { name, data });
                }
                _ => {}
            }
        }
    }

    /// Reads until `wanted` has seen its event; returns everything read.
    pub fn until(
        &mut self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Vec<Event>> {
        let start = Instant::now();
        let mut seen = Vec::new();
        loop {
            let event = self
                .next_event()
                .with_context(|| format!("{what} after {seen:?}"))?;
            seen.push(event);
            if seen.last().is_some_and(&wanted) {
                return Ok(seen);
            }
            if start.elapsed() > within {
                bail!("no {what} within {within:?}: {seen:?}");
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).context("read a line")?;
        ensure!(read > 0, "the stream ended");
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}
