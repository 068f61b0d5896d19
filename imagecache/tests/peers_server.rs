//! What the server of a host gives to its peers, and what it refuses.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod fleet;

use std::time::{Duration, Instant};

use fleet::{TOKEN, ask, ask_raw, content, descriptor, fleet, listener, send};
use imagecache::blobs::{Begun, Blobs};
use imagecache::peers::Token;
use imagecache::{BlobWriter as _, ContentStore as _, Digest};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

#[tokio::test]
async fn blobs_are_served_whole_and_in_parts() {
    let host = &fleet(1).await[0];
    let bytes = content(1 << 20, 1);
    let blob = host.put(&bytes);
    let path = format!("/v2/library/web/blobs/{}", blob.digest);
    let api = ask(&host.address, "GET /v2/", &[]).await;
    assert_eq!((api.status, &api.body[..]), (200, &b"{}"[..]));

    let whole = ask(&host.address, &format!("GET {path}"), &[]).await;
    assert_eq!((whole.status, whole.body == bytes), (200, true));
    assert_eq!(
        whole.header("docker-content-digest"),
        Some(blob.digest.as_str())
    );
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));

    let head = ask(&host.address, &format!("HEAD {path}"), &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some("1048576"));
    assert_eq!(host.peers.served().bytes, 1 << 20, "only of the upload");

    for (range, expected, said) in [
        ("bytes=0-0", 0..1, "bytes 0-0/1048576"),
        (
            "bytes=1000-400000",
            1000..400_001,
            "bytes 1000-400000/1048576",
        ),
        (
            "bytes=1048575-",
            1_048_575..1_048_576,
            "bytes 1048575-1048575/1048576",
        ),
        (
            "bytes=-7",
            1_048_569..1_048_576,
            "bytes 1048569-1048575/1048576",
        ),
    ] {
        let part = ask(&host.address, &format!("GET {path}"), &[("Range", range)]).await;
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(part.header("content-range"), Some(said));
        assert!(part.body == bytes[expected], "{range}");
    }
    let behind = ask(
        &host.address,
        &format!("GET {path}"),
        &[("Range", "bytes=1048576-")],
    )
    .await;
    assert_eq!(behind.status, 416);
    assert_eq!(behind.header("content-range"), Some("bytes */1048576"));
}

#[tokio::test]
async fn documents_are_served_by_digest_with_their_media_type() {
    let host = &fleet(1).await[0];
    let text = br#"{"schemaVersion":2,"manifests":[]}"#;
    let document = descriptor(text);
    if let imagecache::Begun::Writer(mut writer) = host.documents.begin(&document).await.unwrap() {
        writer.write(text.to_vec().into()).await.unwrap();
        writer.commit().await.unwrap();
    }
    let path = format!("GET /v2/web/manifests/{}", document.digest);
    let manifest = ask(&host.address, &path, &[]).await;
    assert_eq!((manifest.status, &manifest.body[..]), (200, &text[..]));
    assert_eq!(
        manifest.header("content-type"),
        Some("application/vnd.oci.image.index.v1+json")
    );
    let path = format!("GET /v2/web/blobs/{}", document.digest);
    assert_eq!(ask(&host.address, &path, &[]).await.body, text);
}

#[tokio::test]
async fn everything_else_is_refused() {
    let host = &fleet(1).await[0];
    let blob = host.put(&content(100, 1));
    let (digest, hex) = (blob.digest.as_str(), blob.digest.hex());
    let other = Digest::of(b"another");
    for (line, status) in [
        (format!("GET /v2/web/blobs/{other}"), 404),
        (format!("GET /v2/web/manifests/{digest}"), 404),
        ("GET /v2/web/manifests/latest".to_owned(), 404),
        ("GET /v2/web/tags/list".to_owned(), 404),
        ("GET /v2/_catalog".to_owned(), 404),
        ("GET /".to_owned(), 404),
        (format!("GET /v2/../v2/web/blobs/{digest}"), 404),
        (format!("GET /v2/web/blobs/../blobs/{digest}"), 404),
        (format!("GET /v2/web/blobs/sha256/{hex}"), 404),
        (format!("GET /v2/web/blobs/{digest}%00"), 404),
        (
            format!("GET /v2/web/blobs/{digest}/../../../../etc/passwd"),
            404,
        ),
        (format!("POST /v2/web/blobs/uploads/?digest={digest}"), 405),
        (format!("DELETE /v2/web/blobs/{digest}"), 405),
        (format!("PUT /v2/web/manifests/{digest}"), 405),
    ] {
        let refused = ask(&host.address, &line, &[]).await;
        assert_eq!(refused.status, status, "{line}");
        let text = String::from_utf8(refused.body).unwrap();
        assert!(text.contains("\"errors\""), "{line}: {text}");
        assert!(
            !text.contains(&host.directory.path().display().to_string()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn nothing_is_served_before_it_was_verified() {
    let host = &fleet(1).await[0];
    let bytes = content(100, 1);
    let blob = descriptor(&bytes);
    let Begun::Partial(partial) = host.blobs.begin(&blob).unwrap() else {
        panic!("busy")
    };
    partial.write_at(0, &bytes).unwrap();
    let path = format!("GET /v2/web/blobs/{}", blob.digest);
    assert_eq!(ask(&host.address, &path, &[]).await.status, 404);
    partial.commit().unwrap();
    assert_eq!(ask(&host.address, &path, &[]).await.status, 200);
}

#[tokio::test]
async fn a_blob_that_an_unclean_boot_damaged_is_not_served() {
    let first = listener().await;
    let directory = tempfile::tempdir().unwrap();
    let bytes = content(100, 1);
    let before = Blobs::open_in_boot(directory.path(), "boot-0").unwrap();
    let blob = descriptor(&bytes);
    if let Begun::Partial(partial) = before.begin(&blob).unwrap() {
        partial.write_at(0, &bytes).unwrap();
        let path = partial.commit().unwrap().path;
        std::fs::write(path, content(100, 2)).unwrap();
    }
    let options = imagecache::peers::PeersOptions {
        own: fleet::peer(&first.local_addr().unwrap().to_string()),
        peers: Vec::new(),
        token: None,
        tls: None,
        slowest: 0,
    };
    let blobs = Blobs::open_in_boot(directory.path(), "boot-1").unwrap();
    let peers = imagecache::peers::Peers::new(&options, &blobs).unwrap();
    let documents = imagecache::peers::StoreDocuments(imagecache::memory::MemoryStore::default());
    let serve = imagecache::peers::ServeOptions {
        access: imagecache::peers::Access::Token(fleet::token()),
        uploads: 1,
        bandwidth: 0,
    };
    let server = imagecache::peers::Server::new(&peers, std::sync::Arc::new(documents), &serve);
    let address = first.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move { server.serve(first).await });
    let path = format!("GET /v2/web/blobs/{}", blob.digest);
    assert_eq!(ask(&address, &path, &[]).await.status, 404);
    serving.abort();
}

#[tokio::test]
async fn without_the_token_nothing_is_said() {
    let host = &fleet(1).await[0];
    let blob = host.put(&content(100, 1));
    let path = format!("GET /v2/web/blobs/{}", blob.digest);
    let almost = format!("Bearer {}", &TOKEN[1..]);
    for headers in [
        vec![],
        vec![("Authorization", almost.as_str())],
        vec![("Authorization", TOKEN)],
        vec![("Authorization", "Basic dG9rZW4tb2YtdGhlLXBlZXJz")],
    ] {
        for line in [&path, "GET /v2/", "GET /nothing", "DELETE /v2/"] {
            let refused = ask_raw(&host.address, line, &headers).await;
            assert_eq!(refused.status, 401, "{line} {headers:?}");
            assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
            let text = String::from_utf8(refused.body).unwrap();
            assert!(text.contains("required") && !text.contains(TOKEN), "{text}");
        }
    }
    assert!(Token::new("too short").is_none());
}

#[tokio::test]
async fn over_the_limit_peers_are_sent_elsewhere_and_who_does_not_read_is_cut_off() {
    let listener = listener().await;
    let address = listener.local_addr().unwrap().to_string();
    let host = fleet::Host::start(listener, &[], 1, 0);
    // More than the kernel's buffers of both sides hold.
    let bytes = content(64 << 20, 1);
    let blob = host.put(&bytes);
    let path = format!("GET /v2/web/blobs/{}", blob.digest);
    let bearer = format!("Bearer {TOKEN}");
    let mut stuck = TcpStream::connect(&address).await.unwrap();
    send(&mut stuck, &path, &[("Authorization", &bearer)]).await;
    let mut first = [0; 1024];
    stuck.read_exact(&mut first).await.unwrap();
    assert_eq!(host.peers.served().uploads, 1);
    let busy = ask(&address, &path, &[]).await;
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("1")));
    // Looking costs no upload.
    let head = ask(&address, &path.replace("GET", "HEAD"), &[]).await;
    assert_eq!(head.status, 200);
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let answer = ask(&address, &path, &[]).await;
        if answer.status == 200 {
            assert!(answer.body == bytes);
            break;
        }
        assert!(
            Instant::now() < deadline,
            "who does not read is not cut off"
        );
    }
    let mut rest = Vec::new();
    let end = stuck.read_to_end(&mut rest).await;
    assert!(
        end.is_err() || rest.len() < bytes.len() - 1024,
        "it was not cut off"
    );
    // The last answer was taken; what sent it ends by itself.
    while host.peers.served().uploads > 0 {
        assert!(Instant::now() < deadline, "{:?}", host.peers.served());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn uploads_keep_to_the_bandwidth() {
    let listener = listener().await;
    let address = listener.local_addr().unwrap().to_string();
    let host = fleet::Host::start(listener, &[], 4, 1 << 20);
    let blob = host.put(&content(1 << 20, 1));
    let path = format!("GET /v2/web/blobs/{}", blob.digest);
    let begun = Instant::now();
    let (one, two) = tokio::join!(ask(&address, &path, &[]), ask(&address, &path, &[]));
    assert_eq!((one.status, two.status), (200, 200));
    // Two MiB at one per second, of which a tenth comes at once.
    assert!(
        begun.elapsed() > Duration::from_millis(1600),
        "{:?}",
        begun.elapsed()
    );
}
