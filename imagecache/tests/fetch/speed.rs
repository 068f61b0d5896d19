//! How fast a large blob comes from loopback into the store: network, write, hash, commit.
//!
//! ```text
//! cargo test --release -p imagecache --test fetch -- --ignored --nocapture speed
//! ```

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use imagecache::blobs::Blobs;
use imagecache::fetch::{FetchOptions, Fetcher, Urgency};
use imagecache::registry::Registries;
use imagecache::{Descriptor, Hasher};

/// The blob is this buffer, so many times.
const BUFFER: usize = 32 << 20;
const TIMES: usize = 32;
const ROUNDS: usize = 7;

#[test]
#[ignore = "measures; wants a release build and a quiet machine"]
fn speed() {
    let buffer: Arc<Vec<u8>> = Arc::new(
        (0..BUFFER as u64 / 8)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect(),
    );
    let mut hasher = Hasher::default();
    let start = Instant::now();
    for _ in 0..TIMES {
        hasher.update(&buffer);
    }
    let blob = Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        digest: hasher.finish(),
        size: (BUFFER * TIMES) as u64,
    };
    let rate = |seconds: f64| blob.size as f64 / seconds / 1e9;
    println!(
        "sha256 alone: {:.2} GB/s",
        rate(start.elapsed().as_secs_f64())
    );
    let address = serve(Arc::clone(&buffer));
    for connections in [1, 2, 4] {
        let mut seconds: Vec<f64> = (0..ROUNDS)
            .map(|_| fetch(&address, &blob, connections))
            .collect();
        seconds.sort_by(f64::total_cmp);
        println!(
            "{connections} connections: p50 {:.2} GB/s, worst {:.2} GB/s (n = {ROUNDS})",
            rate(seconds[ROUNDS / 2]),
            rate(seconds[ROUNDS - 1])
        );
    }
}

fn fetch(address: &str, blob: &Descriptor, connections: usize) -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(directory.path()).unwrap();
    let options = FetchOptions {
        connections_per_blob: connections,
        ..FetchOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let reference = format!("{address}/web:1").parse().unwrap();
    runtime.block_on(async {
        let sources = Registries::new(&options)
            .open(&reference)
            .unwrap()
            .sources();
        let start = Instant::now();
        let fetched = Fetcher::new(&options)
            .blob(&sources, "layer", blob, &blobs, Urgency::PrePull)
            .await
            .unwrap();
        assert_eq!(fetched.shares[0].bytes, blob.size);
        start.elapsed().as_secs_f64()
    })
}

/// A server that costs as little as one can: threads that write from memory.
fn serve(buffer: Arc<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let buffer = Arc::clone(&buffer);
            // A client that goes away ends its thread.
            std::thread::spawn(move || answer(stream.unwrap(), &buffer).unwrap_or_default());
        }
    });
    address
}

fn answer(stream: TcpStream, buffer: &[u8]) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let size = buffer.len() * TIMES;
    loop {
        let (mut first, mut last) = (0, size - 1);
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
                let (from, to) = range.trim().split_once('-').unwrap();
                (first, last) = (from.parse().unwrap(), to.parse().unwrap());
            }
        }
        let length = last - first + 1;
        write!(
            stream,
            "HTTP/1.1 206 Partial\r\ncontent-length: {length}\r\ncontent-range: bytes {first}-{last}/{size}\r\n\r\n"
        )?;
        while first <= last {
            let at = first % buffer.len();
            let piece = (buffer.len() - at).min(last - first + 1);
            stream.write_all(&buffer[at..at + piece])?;
            first += piece;
        }
    }
}
