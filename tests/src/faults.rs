//! A registry with faults: a proxy before the real one that spoils what passes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ground::Ground;
use crate::netns::Netns;
use crate::registry::Registry;

/// Port of the proxy.
pub const PORT: u16 = 5001;

/// Longest silence that the proxy keeps up, so that no thread outlives its test for long.
const LONGEST_STALL: Duration = Duration::from_secs(60);

/// Smaller blobs are configs, and pass.
const SMALLEST_LAYER: usize = 16 << 10;

/// What happens to answers for layers. Everything else passes unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// One bit of the body is another.
    WrongByte,
    /// The connection closes in the middle of the body.
    CutOff,
    /// In the middle of the body nothing more comes, and the connection stays.
    Stall,
    /// 500 instead of the layer.
    ServerError,
}

/// A proxy on loopback of the host's network.
#[derive(Debug)]
pub struct FaultyRegistry {
    netns: Netns,
    fault: Arc<Mutex<Fault>>,
    layers: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl FaultyRegistry {
    /// Starts it, faultless.
    pub fn start(ground: &Ground) -> Result<Self> {
        let proxy = Self {
            netns: ground.netns().clone(),
            fault: Arc::new(Mutex::new(Fault::None)),
            layers: Arc::default(),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let (fault, layers, stop) = (
            Arc::clone(&proxy.fault),
            Arc::clone(&proxy.layers),
            Arc::clone(&proxy.stop),
        );
        proxy.netns.run(|| {
            let listener = TcpListener::bind(Self::address()).context("listen for the proxy")?;
            // Threads have the network namespace of the thread that made them.
            std::thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (fault, layers) = (Arc::clone(&fault), Arc::clone(&layers));
                    // A client that gives up is part of every fault.
                    std::thread::spawn(move || drop(serve(client, &fault, &layers)));
                }
            });
            Ok(())
        })?;
        Ok(proxy)
    }

    /// Where it listens.
    pub fn address() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, PORT).into()
    }

    /// The reference of `name` (`web:1`) by way of the proxy.
    pub fn reference(name: &str) -> String {
        format!("{}/{name}", Self::address())
    }

    /// What happens from now on.
    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// How often layers were asked for so far.
    pub fn layers_asked_for(&self) -> usize {
        self.layers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

impl Drop for FaultyRegistry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then leaves.
        let wake = || TcpStream::connect(Self::address()).context("connect to the proxy");
        let _ = self.netns.run(wake);
    }
}

/// One request, one answer, and the connection is closed.
fn serve(
    mut client: TcpStream,
    fault: &Mutex<Fault>,
    layers: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    client.set_read_timeout(Some(LONGEST_STALL))?;
    let head = read_head(&mut client)?;
    let mut upstream = TcpStream::connect(Registry::address())?;
    upstream.set_read_timeout(Some(LONGEST_STALL))?;
    upstream.write_all(with_connection_close(&head).as_bytes())?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = body.map_or(answer.len(), |end| end + 4);
    let target = head.lines().next().unwrap_or_default().to_owned();
    let fault = if is_layer(&target, answer.len() - body, layers) {
        *fault.lock().unwrap_or_else(PoisonError::into_inner)
    } else {
        Fault::None
    };
    let middle = body + (answer.len() - body) / 2;
    match fault {
        Fault::None => client.write_all(&answer),
        Fault::ServerError => client.write_all(
            b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
        Fault::WrongByte => {
            if let Some(byte) = answer.get_mut(middle) {
                *byte ^= 1;
            }
            client.write_all(&answer)
        }
        Fault::CutOff => {
            client.write_all(&answer[..middle])?;
            client.shutdown(Shutdown::Both)
        }
        Fault::Stall => {
            client.write_all(&answer[..middle])?;
            // Until the client gives up, or the deadline of this socket.
            client.read(&mut [0]).map(drop)
        }
    }
}

/// Whether `request` is for a layer; what once was one is one for the rest of it, too.
fn is_layer(request: &str, length: usize, layers: &Mutex<Vec<String>>) -> bool {
    let mut layers = layers.lock().unwrap_or_else(PoisonError::into_inner);
    let blob = request.starts_with("GET ") && request.contains("/blobs/");
    let layer = blob && (length >= SMALLEST_LAYER || layers.iter().any(|known| known == request));
    if layer {
        layers.push(request.to_owned());
    }
    layer
}

fn read_head(client: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The same head, but the server closes after its answer.
fn with_connection_close(head: &str) -> String {
    let kept = head
        .trim_end()
        .split("\r\n")
        .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let mut head: String = kept.map(|line| format!("{line}\r\n")).collect();
    head.push_str("Connection: close\r\n\r\n");
    head
}
