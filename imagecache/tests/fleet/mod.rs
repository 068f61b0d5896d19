//! Hosts that are peers of one another, each with a store and a server on a loopback port of its
//! own, and a registry that counts what it sends.

#![allow(dead_code, reason = "each test that includes it uses some of it")]

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use imagecache::blobs::{Begun, Blobs};
use imagecache::fetch::{
    Budget, Failure, FetchOptions, Fetched, Fetcher, Hedge, Incoming, Source, SourceKind, Sources,
    Urgency,
};
use imagecache::memory::MemoryStore;
use imagecache::peers::{
    Access, Peer, Peers, PeersOptions, ServeOptions, Server, StoreDocuments, Token,
};
use imagecache::{Descriptor, Digest, PullError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub const TOKEN: &str = "token-of-the-peers";

pub fn token() -> Token {
    Token::new(TOKEN).unwrap()
}

pub fn content(size: usize, seed: u8) -> Vec<u8> {
    (0..size)
        .map(|at| (at * 31 + at / 251) as u8 ^ seed)
        .collect()
}

pub fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    }
}

pub fn peer(address: &str) -> Peer {
    Peer {
        address: address.to_owned(),
        zone: None,
        rack: None,
    }
}

pub struct Host {
    pub address: String,
    pub directory: tempfile::TempDir,
    pub blobs: Blobs,
    pub documents: MemoryStore,
    pub peers: Peers,
    pub fetcher: Fetcher,
    server: JoinHandle<()>,
}

impl Host {
    /// On a listener whose address is in `list`.
    pub fn start(listener: TcpListener, list: &[Peer], uploads: usize, bandwidth: u64) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let own = list.iter().find(|peer| peer.address == address);
        let options = PeersOptions {
            own: own.cloned().unwrap_or_else(|| peer(&address)),
            peers: list.to_vec(),
            token: Some(token()),
            tls: None,
            slowest: 1 << 20,
        };
        let serve = ServeOptions {
            access: Access::Token(token()),
            uploads,
            bandwidth,
        };
        Self::with(listener, &options, &serve)
    }

    /// Fetches with these options.
    pub fn fetches(&mut self, options: &FetchOptions) {
        self.fetcher = Fetcher::new(options);
    }

    pub fn with(listener: TcpListener, options: &PeersOptions, serve: &ServeOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open_in_boot(directory.path(), "boot-1").unwrap();
        let documents = MemoryStore::default();
        let peers = Peers::new(options, &blobs).unwrap();
        let server = Server::new(&peers, Arc::new(StoreDocuments(documents.clone())), serve);
        Self {
            address: listener.local_addr().unwrap().to_string(),
            directory,
            blobs,
            documents,
            peers,
            fetcher: Fetcher::new(&FetchOptions::default()),
            server: tokio::spawn(async move { server.serve(listener).await }),
        }
    }

    pub async fn bring(
        &self,
        registry: &Arc<Registry>,
        blob: &Descriptor,
    ) -> Result<Fetched, PullError> {
        let sources = Sources {
            ordered: vec![Arc::clone(registry) as Arc<dyn Source>],
            budget: Arc::new(Budget::new(4)),
            stall_timeout: Duration::from_secs(5),
            hedge: Hedge::Anybody,
        };
        let urgency = Urgency::PrePull;
        let bring = self
            .peers
            .blob(&self.fetcher, &sources, "layer", blob, urgency);
        bring.await
    }

    pub fn put(&self, bytes: &[u8]) -> Descriptor {
        let blob = descriptor(bytes);
        match self.blobs.begin(&blob).unwrap() {
            Begun::Partial(partial) => {
                partial.write_at(0, bytes).unwrap();
                partial.commit().unwrap();
            }
            other => panic!("{other:?}"),
        }
        blob
    }

    /// Its server ends, with all its connections.
    pub async fn die(&mut self) {
        self.server.abort();
        drop((&mut self.server).await);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// An address at which nobody listens.
pub async fn dead_address() -> String {
    listener().await.local_addr().unwrap().to_string()
}

/// So many hosts with one list.
pub async fn fleet(count: usize) -> Vec<Host> {
    fleet_with(count, &[]).await
}

/// The same with other peers in the list.
pub async fn fleet_with(count: usize, others: &[Peer]) -> Vec<Host> {
    let mut listeners = Vec::new();
    for _ in 0..count {
        listeners.push(listener().await);
    }
    let ours = listeners
        .iter()
        .map(|it| peer(&it.local_addr().unwrap().to_string()));
    let list: Vec<Peer> = ours.chain(others.iter().cloned()).collect();
    let start = |listener| Host::start(listener, &list, 16, 0);
    listeners.into_iter().map(start).collect()
}

/// A registry that counts.
#[derive(Default)]
pub struct Registry {
    blobs: Mutex<HashMap<Digest, Bytes>>,
    pub sent: AtomicU64,
    pub gone: AtomicBool,
    /// What each 64 KiB take on its link, which all hosts share.
    pub pause: Duration,
    link: Arc<tokio::sync::Mutex<()>>,
}

impl Registry {
    pub fn with(blobs: &[Vec<u8>]) -> Arc<Self> {
        Self::slow(blobs, Duration::ZERO)
    }

    pub fn slow(blobs: &[Vec<u8>], pause: Duration) -> Arc<Self> {
        let of = |bytes: &Vec<u8>| (Digest::of(bytes), Bytes::from(bytes.clone()));
        Arc::new(Self {
            blobs: Mutex::new(blobs.iter().map(of).collect()),
            pause,
            ..Self::default()
        })
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registry")
    }
}

impl Source for Registry {
    fn name(&self) -> &str {
        "registry.example"
    }

    fn repository(&self) -> &str {
        "library/web"
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Registry
    }

    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Incoming, Failure>> {
        async move {
            if self.gone.load(Ordering::Relaxed) {
                let source = "the registry is gone".into();
                return Err(Failure::Unreachable { source });
            }
            let bytes = self.blobs.lock().unwrap().get(&blob.digest).cloned();
            let bytes = bytes.ok_or(Failure::NotFound)?;
            let part = bytes.slice(range.start as usize..range.end as usize);
            // Counted when it is asked for: more than what comes in the end.
            self.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
            let (pause, link) = (self.pause, Arc::clone(&self.link));
            let pieces = stream::unfold((part, link), move |(mut rest, link)| async move {
                if rest.is_empty() {
                    return None;
                }
                if !pause.is_zero() {
                    let _link = link.lock().await;
                    tokio::time::sleep(pause).await;
                }
                let piece = rest.split_to(rest.len().min(64 << 10));
                Some((Ok(piece), (rest, link)))
            });
            Ok(Incoming {
                range,
                bytes: pieces.boxed(),
            })
        }
        .boxed()
    }
}

/// Somebody at a peer's address that answers as it likes, and remembers what it was asked.
pub struct Impostor {
    pub address: String,
    pub asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Impostor {
    /// `answer` makes the raw answer to a request's head; with none nothing is ever said.
    pub async fn start(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = listener().await;
        let address = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (noted, answer) = (Arc::clone(&asked), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
                connections.spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let head = String::from_utf8(head).unwrap();
                    noted.lock().unwrap().push(head.clone());
                    match answer(&head) {
                        Some(bytes) => drop(stream.write_all(&bytes).await),
                        None => std::future::pending().await,
                    }
                });
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer as it goes over the wire.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Sends a request as it is written here, with the token, and reads to the end.
pub async fn ask(address: &str, line: &str, headers: &[(&str, &str)]) -> Answer {
    let bearer = format!("Bearer {TOKEN}");
    let mut all = vec![("Authorization", bearer.as_str())];
    all.extend(headers);
    ask_raw(address, line, &all).await
}

/// Without the token.
pub async fn ask_raw(address: &str, line: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    send(&mut stream, line, headers).await;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer
        .windows(4)
        .position(|at| at == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        body: answer[end + 4..].to_vec(),
        head,
    }
}

pub async fn send(stream: &mut TcpStream, line: &str, headers: &[(&str, &str)]) {
    let mut request = format!("{line} HTTP/1.1\r\nHost: peer\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
}
