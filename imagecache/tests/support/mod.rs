//! A registry with a script: serves one repository's documents and blobs over HTTP/1.1, and does
//! wrong what it is told to do wrong. Listens on a loopback port of its own; ends when dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use imagecache::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How a path is answered.
#[derive(Clone)]
pub enum Answer {
    /// 200 with this content type and body.
    Body(&'static str, Vec<u8>),
    /// 200 announcing the body, of which only so many bytes come; then silence.
    Stall(Vec<u8>, usize),
    /// 200 announcing the body, of which only so many bytes come; then the connection closes.
    Cut(Vec<u8>, usize),
    /// This status with this body.
    Status(u16, &'static str),
    /// The connection is accepted and nothing is said.
    Silence,
    /// The other answer for who sends this `Authorization`; a basic challenge for everybody else.
    Guarded(&'static str, Box<Answer>),
}

type Script = Arc<Mutex<(BTreeMap<String, Answer>, Vec<String>)>>;

pub struct ScriptedRegistry {
    pub address: String,
    script: Script,
    server: tokio::task::JoinHandle<()>,
}

impl ScriptedRegistry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let script = Script::default();
        let served = Arc::clone(&script);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        let registry = Self {
            address,
            script,
            server,
        };
        registry.answer("/v2/", Answer::Body("application/json", b"{}".to_vec()));
        registry
    }

    pub fn answer(&self, path: &str, answer: Answer) {
        self.script
            .lock()
            .unwrap()
            .0
            .insert(path.to_owned(), answer);
    }

    pub fn manifest(&self, repository: &str, name: &str, media_type: &'static str, body: &[u8]) {
        for name in [name, Digest::of(body).as_str()] {
            let path = format!("/v2/{repository}/manifests/{name}");
            self.answer(&path, Answer::Body(media_type, body.to_vec()));
        }
    }

    pub fn blob(&self, repository: &str, digest: &Digest, answer: Answer) {
        self.answer(&format!("/v2/{repository}/blobs/{digest}"), answer);
    }

    /// Wants this `Authorization` for everything that is in the script so far.
    pub fn guard(&self, wanted: &'static str) {
        for answer in self.script.lock().unwrap().0.values_mut() {
            *answer = Answer::Guarded(wanted, Box::new(answer.clone()));
        }
    }

    /// Paths asked for so far, in order.
    pub fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().1.clone()
    }
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(mut stream: TcpStream, script: Script) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let answer = {
        let mut script = script.lock().unwrap();
        script.1.push(path.clone());
        script.0.get(&path).cloned()
    };
    let missing = r#"{"errors":[{"code":"NOT_FOUND","message":"not in the script"}]}"#;
    let answer = match answer.unwrap_or(Answer::Status(404, missing)) {
        Answer::Guarded(wanted, answer) => {
            let line = format!("authorization: {wanted}\r\n").to_lowercase();
            if head.to_lowercase().contains(&line) {
                *answer
            } else {
                Answer::Status(401, "{}")
            }
        }
        open => open,
    };
    let send = async {
        let (status, kind, body, sent) = match &answer {
            Answer::Body(kind, body) => (200, *kind, body.as_slice(), body.len()),
            Answer::Stall(body, sent) | Answer::Cut(body, sent) => {
                (200, "application/octet-stream", body.as_slice(), *sent)
            }
            Answer::Status(status, body) => {
                (*status, "application/json", body.as_bytes(), body.len())
            }
            Answer::Silence | Answer::Guarded(..) => return std::future::pending().await,
        };
        let challenge = match status {
            401 => "www-authenticate: Basic realm=\"scripted\"\r\n",
            _ => "",
        };
        let head = format!(
            "HTTP/1.1 {status} Scripted\r\n{challenge}content-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body[..sent]).await?;
        stream.flush().await?;
        if matches!(answer, Answer::Stall(..)) {
            std::future::pending::<()>().await;
        }
        stream.shutdown().await
    };
    let sent: std::io::Result<()> = send.await;
    // The client may have gone away in the middle: that is its right.
    drop(sent);
}
