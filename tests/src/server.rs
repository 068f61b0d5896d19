//! A small HTTP server inside a host's network, for what no real program does: issuing tokens to
//! order, and spoiling what passes. Blocking, one thread and one request a connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Longest silence on a connection, so that no thread outlives its test for long.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// Longest head of a message.
const LONGEST_HEAD: usize = 64 << 10;

/// A server; dropped, it accepts nobody any more.
#[derive(Debug)]
pub struct Server {
    netns: Netns,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Listens at `address` and gives every connection, numbered from 1, to `serve` on a thread.
    pub fn start(
        netns: &Netns,
        address: SocketAddr,
        serve: impl Fn(TcpStream, u64) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let server = Self {
            netns: netns.clone(),
            address,
            stop: Arc::new(AtomicBool::new(false)),
        };
        let (stop, serve) = (Arc::clone(&server.stop), Arc::new(serve));
        let number = AtomicU64::new(0);
        netns.run(|| {
            let listener =
                TcpListener::bind(address).with_context(|| format!("listen at {address}"))?;
            // Threads have the network namespace of the thread that made them.
            std::thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let serve = Arc::clone(&serve);
                    let number = number.fetch_add(1, Ordering::Relaxed) + 1;
                    // A client that gives up is part of every fault.
                    std::thread::spawn(move || {
                        let patient = client.set_read_timeout(Some(LONGEST_SILENCE));
                        drop(patient.and_then(|()| serve(client, number)));
                    });
                }
            });
            Ok(())
        })?;
        Ok(server)
    }

    /// Where it listens, inside the host's network.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then leaves.
        let wake = || TcpStream::connect(self.address).context("connect to the server");
        let _ = self.netns.run(wake);
    }
}

/// The head of a request or of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The request line or the status line.
    pub line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// Reads a head, byte by byte: what follows it stays in the stream.
    pub fn read(stream: &mut impl Read) -> std::io::Result<Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= LONGEST_HEAD {
                return Err(ErrorKind::InvalidData.into());
            }
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&head);
        let mut lines = text.trim_end().split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Self { line, fields })
    }

    /// Writes it.
    pub fn write(&self, stream: &mut impl Write) -> std::io::Result<()> {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        stream.write_all(text.as_bytes())
    }

    /// The first field of that name (lower case).
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut named = self.fields.iter().filter(|(known, _)| known == name);
        named.next().map(|(_, value)| value.as_str())
    }

    /// Removes every field of that name (lower case).
    pub fn remove(&mut self, name: &str) {
        self.fields.retain(|(known, _)| known != name);
    }

    /// Puts one field in the place of all of that name (lower case).
    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.fields.push((name.to_owned(), value.to_owned()));
    }

    /// Method and target of a request.
    pub fn request(&self) -> (&str, &str) {
        let mut words = self.line.split(' ');
        let method = words.next().unwrap_or_default();
        (method, words.next().unwrap_or_default())
    }

    /// Status of an answer; 0 when there is none.
    pub fn status(&self) -> u16 {
        let code = self.line.split(' ').nth(1);
        code.and_then(|code| code.parse().ok()).unwrap_or(0)
    }
}

/// A whole answer, after which the connection is closed.
pub fn answer(
    stream: &mut impl Write,
    status: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(text.as_bytes())
}
