//! An HTTP/1.1 server of a test: a function answers requests, and may do wrong on the way. Listens
//! on a loopback port of its own, keeps connections open, and ends when it is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// What came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// First and last byte of `Range: bytes=a-b`.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What is sent.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Arc<Vec<u8>>,
    /// The part of the body that is sent; all of it when there is none.
    pub part: Option<(usize, usize)>,
    pub fault: Fault,
}

/// What goes wrong while the body is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// So many bytes, then the connection closes.
    Cut(usize),
    /// So many bytes, then silence as long as the client bears it.
    Stall(usize),
    /// Nothing, not even a status.
    Silence,
    /// So many bytes at a time, with this pause before each.
    Trickle(usize, Duration),
    /// The body is chunked: nothing says how long it is.
    Chunked,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub fn body(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            body: Arc::new(body.into()),
            ..Self::default()
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// The part of `blob` that `request` asks for.
    pub fn ranged(request: &Request, blob: &Arc<Vec<u8>>) -> Self {
        let whole = Self {
            status: 200,
            body: Arc::clone(blob),
            ..Self::default()
        };
        let Some((first, last)) = request.range() else {
            return whole;
        };
        let last = last.min(blob.len() - 1);
        Self {
            status: 206,
            part: Some((first, last + 1)),
            ..whole
        }
        .header(
            "content-range",
            format!("bytes {first}-{last}/{}", blob.len()),
        )
    }
}

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server.
pub struct Server {
    /// `127.0.0.1:port`.
    pub address: String,
    asked: Arc<Mutex<Vec<Request>>>,
    count: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer).await
    }

    /// By TLS, when there is an acceptor.
    pub async fn start_with(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (counted, count) = watch::channel(0);
        let (answer, counted): (Arc<Answer>, _) = (Arc::new(answer), Arc::new(counted));
        let kept = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            // Ends the connections together with the server.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, kept) = (Arc::clone(&answer), Arc::clone(&kept));
                let counted = Arc::clone(&counted);
                let tls = tls.clone();
                connections.spawn(async move {
                    stream.set_nodelay(true)?;
                    // A client that goes away in the middle is part of every fault.
                    match tls {
                        None => serve(stream, &answer, &kept, &counted).await,
                        Some(tls) => {
                            serve(tls.accept(stream).await?, &answer, &kept, &counted).await
                        }
                    }
                });
            }
        });
        Self {
            address,
            asked,
            count,
            task,
        }
    }

    /// Requests so far, in order.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// Closes its port.
    pub async fn stop(&mut self) {
        self.task.abort();
        drop((&mut self.task).await);
    }

    /// Waits until so many requests came.
    pub async fn until_asked(&self, times: usize) {
        let mut count = self.count.clone();
        let wait = count.wait_for(|count| *count >= times);
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        waited.expect("the requests did not come").unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    answer: &Arc<Answer>,
    asked: &Mutex<Vec<Request>>,
    counted: &watch::Sender<usize>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(request) = read(&mut stream, asked).await? else {
            return Ok(());
        };
        counted.send_modify(|count| *count += 1);
        let reply = answer(&request);
        if !send(stream.get_mut(), &request, &reply).await? {
            return stream.get_mut().shutdown().await;
        }
    }
}

async fn read<S: AsyncRead + Unpin>(
    stream: &mut BufReader<S>,
    asked: &Mutex<Vec<Request>>,
) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let method = words.next().unwrap().to_owned();
    let target = words.next().unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length");
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await?;
    let request = Request {
        method,
        path,
        query,
        headers,
        body: String::from_utf8(body).unwrap(),
    };
    asked.lock().unwrap().push(request.clone());
    Ok(Some(request))
}

/// Whether the connection goes on.
async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    request: &Request,
    reply: &Reply,
) -> std::io::Result<bool> {
    let (first, end) = reply.part.unwrap_or((0, reply.body.len()));
    let body = &reply.body[first..end];
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let announced = reply
        .headers
        .iter()
        .any(|(name, _)| name == "content-length");
    if reply.fault == Fault::Chunked {
        head.push_str("transfer-encoding: chunked\r\n");
    } else if !announced {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    if reply.fault == Fault::Silence {
        return std::future::pending().await;
    }
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    match reply.fault {
        Fault::None | Fault::Silence => stream.write_all(body).await?,
        Fault::Cut(after) => {
            stream.write_all(&body[..after.min(body.len())]).await?;
            return Ok(false);
        }
        Fault::Stall(after) => {
            stream.write_all(&body[..after.min(body.len())]).await?;
            stream.flush().await?;
            return std::future::pending().await;
        }
        Fault::Trickle(bytes, pause) => {
            for piece in body.chunks(bytes) {
                tokio::time::sleep(pause).await;
                stream.write_all(piece).await?;
            }
        }
        Fault::Chunked => {
            for piece in body.chunks(64 << 10) {
                stream
                    .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                    .await?;
                stream.write_all(piece).await?;
                stream.write_all(b"\r\n").await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
        }
    }
    stream.flush().await?;
    Ok(true)
}
