//! A registry with faults: a proxy before a real one that spoils what passes, as rules say that can
//! be set while it runs, and that records every request and how much of its answer was passed on.

mod record;
mod rules;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::ground::Ground;
use crate::registry::Registry;
use crate::server::{Head, LONGEST_SILENCE, Server, answer};

use self::rules::{Asked, decide};

pub use record::Exchange;
pub use rules::{At, Fault, Rule};

/// Port of the proxy.
pub const PORT: u16 = 5001;

/// Bytes that are passed on at once.
const PIECE: usize = 32 << 10;

/// A proxy on loopback of the host's network.
#[derive(Debug)]
pub struct FaultyRegistry {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    upstream: SocketAddr,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Exchange>>,
}

impl FaultyRegistry {
    /// Starts it before the host's registry, faultless.
    pub fn start(ground: &Ground) -> Result<Self> {
        Self::start_at(ground, PORT, Registry::address())
    }

    /// The same at another port, before another registry that speaks plain HTTP.
    pub fn start_at(ground: &Ground, port: u16, upstream: SocketAddr) -> Result<Self> {
        let state = Arc::new(State {
            upstream,
            rules: Mutex::default(),
            log: Mutex::default(),
        });
        let serving = Arc::clone(&state);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let server = Server::start(ground.netns(), address, move |client, number| {
            serving.serve(client, number)
        })?;
        Ok(Self { server, state })
    }

    /// Where the one at [`PORT`] listens.
    pub fn address() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, PORT).into()
    }

    /// The reference of `name` (`web:1`) by way of the one at [`PORT`].
    pub fn reference(name: &str) -> String {
        format!("{}/{name}", Self::address())
    }

    /// Where this one listens.
    pub fn listens(&self) -> SocketAddr {
        self.server.address()
    }

    /// What happens from now on, to answers that have not begun; nothing without rules.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        *locked(&self.state.rules) = rules.into_iter().collect();
    }

    /// What passed so far, in the order of the requests.
    pub fn log(&self) -> Vec<Exchange> {
        locked(&self.state.log).clone()
    }

    /// How often layers were asked for so far.
    pub fn layers_asked_for(&self) -> usize {
        let log = locked(&self.state.log);
        log.iter().filter(|exchange| exchange.layer).count()
    }

    /// Bytes of layers that were passed on so far.
    pub fn layer_bytes(&self) -> u64 {
        let log = locked(&self.state.log);
        let layers = log.iter().filter(|exchange| exchange.layer);
        layers.map(|exchange| exchange.sent).sum()
    }

    /// How often the blob was asked for, and how many bytes of it were passed on, so far.
    pub fn passed(&self, digest: &str) -> (usize, u64) {
        let log = locked(&self.state.log);
        let asked = |exchange: &&Exchange| exchange.blob.as_deref() == Some(digest);
        let sent = log.iter().map(|exchange| exchange.bytes_of(digest)).sum();
        (log.iter().filter(asked).count(), sent)
    }

    /// Bytes of the blob that were passed on more than once so far.
    pub fn sent_twice(&self, digest: &str) -> u64 {
        record::sent_twice(&locked(&self.state.log), digest)
    }
}

impl State {
    /// One request, one answer, and the connection is closed.
    fn serve(&self, mut client: TcpStream, connection: u64) -> std::io::Result<()> {
        let mut request = Head::read(&mut client)?;
        request.set("connection", "close");
        let (mut upstream, mut head) = self.ask(&request)?;
        let asked = asked(&request, &head);
        let fault = decide(&mut locked(&self.rules), &asked);
        if fault == Some(Fault::RangeIgnored) && request.field("range").is_some() {
            let mut whole = request.clone();
            whole.remove("range");
            (upstream, head) = self.ask(&whole)?;
        }
        let mut exchange = Exchange {
            connection,
            request: request.line.replace(" HTTP/1.1", ""),
            range: request.field("range").map(str::to_owned),
            authorization: request.field("authorization").is_some(),
            status: head.status(),
            blob: asked.blob().filter(|_| asked.get).map(str::to_owned),
            layer: asked.is_layer(),
            offset: range(&head).map_or(0, |(first, _)| first),
            sent: 0,
            fault,
        };
        match fault {
            Some(Fault::Status(status, retry_after)) => {
                exchange.status = status;
                self.record(exchange);
                let retry = retry_after.map(|time| time.as_secs().to_string());
                let fields = retry.as_deref().map(|seconds| ("Retry-After", seconds));
                let fields: Vec<(&str, &str)> = fields.into_iter().collect();
                answer(&mut client, &format!("{status} Fault"), &fields, "")
            }
            Some(Fault::Redirect(to)) => {
                exchange.status = 307;
                self.record(exchange);
                let location = format!("http://{to}{}", asked.target);
                let fields = [("Location", location.as_str())];
                answer(&mut client, "307 Temporary Redirect", &fields, "")
            }
            _ => {
                let entry = self.record(exchange);
                head.write(&mut client)?;
                let length = head.field("content-length").and_then(|l| l.parse().ok());
                let body = Body {
                    state: self,
                    entry,
                    length: length.unwrap_or(0),
                };
                body.pass(&mut upstream, &mut client, fault)
            }
        }
    }

    fn ask(&self, request: &Head) -> std::io::Result<(TcpStream, Head)> {
        let mut upstream = TcpStream::connect(self.upstream)?;
        upstream.set_read_timeout(Some(LONGEST_SILENCE))?;
        request.write(&mut upstream)?;
        let head = Head::read(&mut upstream)?;
        Ok((upstream, head))
    }

    /// Adds an entry and says where it is.
    fn record(&self, exchange: Exchange) -> usize {
        let mut log = locked(&self.log);
        log.push(exchange);
        log.len() - 1
    }
}

/// The body of an answer on its way.
struct Body<'a> {
    state: &'a State,
    entry: usize,
    length: u64,
}

impl Body<'_> {
    fn pass(
        self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        fault: Option<Fault>,
    ) -> std::io::Result<()> {
        match fault {
            Some(Fault::WrongByte(at)) => {
                self.some(from, to, at.of(self.length), None)?;
                let mut byte = [0];
                if from.read(&mut byte)? == 1 {
                    to.write_all(&[byte[0] ^ 1])?;
                    self.count(1);
                }
                self.some(from, to, u64::MAX, None)
            }
            Some(Fault::CutOff(at)) => {
                self.some(from, to, at.of(self.length), None)?;
                to.shutdown(Shutdown::Both)
            }
            Some(Fault::Stall(at)) => {
                self.some(from, to, at.of(self.length), None)?;
                // Until the client gives up, or the deadline of this socket.
                to.read(&mut [0]).map(drop)
            }
            Some(Fault::Pause(at, time)) => {
                self.some(from, to, at.of(self.length), None)?;
                to.set_read_timeout(Some(time))?;
                match to.read(&mut [0]) {
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                    {
                        self.some(from, to, u64::MAX, None)
                    }
                    // The client gave up.
                    other => other.map(drop),
                }
            }
            Some(Fault::Slow(rate)) => self.some(from, to, u64::MAX, Some(rate)),
            _ => self.some(from, to, u64::MAX, None),
        }
    }

    /// Passes on `most` bytes, or what there is, at most so many a second.
    fn some(
        &self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        most: u64,
        rate: Option<u64>,
    ) -> std::io::Result<()> {
        let start = Instant::now();
        let mut buffer = vec![0; PIECE];
        let mut passed: u64 = 0;
        while passed < most {
            let piece = usize::try_from(most - passed).unwrap_or(PIECE).min(PIECE);
            let read = from.read(&mut buffer[..piece])?;
            if read == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..read])?;
            passed += read as u64;
            self.count(read as u64);
            if let Some(rate) = rate {
                let due = Duration::from_millis(passed.saturating_mul(1000) / rate.max(1));
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
        Ok(())
    }

    fn count(&self, bytes: u64) {
        if let Some(exchange) = locked(&self.state.log).get_mut(self.entry) {
            exchange.sent += bytes;
        }
    }
}

/// What is asked for, with the size of the whole where the answer says it.
fn asked(request: &Head, answer: &Head) -> Asked {
    let (method, target) = request.request();
    let length = || answer.field("content-length")?.parse().ok();
    let size = range(answer).map(|(_, size)| size).or_else(length);
    Asked {
        get: method == "GET",
        target: target.to_owned(),
        size: size.filter(|_| answer.status() < 300).unwrap_or(0),
    }
}

/// First byte and size of the whole (RFC 9110, 14.4: `bytes 10-19/100`).
fn range(answer: &Head) -> Option<(u64, u64)> {
    let range = answer.field("content-range")?.strip_prefix("bytes ")?;
    let (part, size) = range.split_once('/')?;
    let (first, _) = part.split_once('-')?;
    Some((first.parse().ok()?, size.parse().ok()?))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
