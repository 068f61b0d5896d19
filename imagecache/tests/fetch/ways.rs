//! Ways to a registry: mirrors and what they may be asked, headers, proxies.

use std::path::PathBuf;
use std::time::Duration;

use imagecache::fetch::{FetchOptions, ProxySettings};
use imagecache::policy::SignatureSource as _;
use imagecache::registry::Registries;
use imagecache::{Descriptor, Digest, PullError, Reference};

use crate::server::{Fault, Reply, Request, Server};

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;

/// A directory of hosts with one file for `registry`.
fn hosts(registry: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(registry);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
    let path = root.path().to_owned();
    (root, path)
}

fn options(hosts: Option<PathBuf>) -> FetchOptions {
    FetchOptions {
        hosts_dir: hosts,
        stall_timeout: Duration::from_secs(5),
        ..FetchOptions::default()
    }
}

async fn ask(reference: &str, options: &FetchOptions) -> Result<Vec<u8>, PullError> {
    let reference: Reference = reference.parse().unwrap();
    let registry = Registries::new(options).open(&reference)?;
    Ok(registry.manifest(&reference).await?.to_vec())
}

fn serves(_: &Request) -> Reply {
    Reply::body(MANIFEST)
}

#[tokio::test]
async fn a_mirror_that_may_not_resolve_is_asked_by_digest_alone() {
    let (mirror, registry) = (Server::start(serves).await, Server::start(serves).await);
    let text = format!(
        "[host.\"http://{}\"]\ncapabilities = [\"pull\"]",
        mirror.address
    );
    let (_root, path) = hosts(&registry.address, &text);
    let options = options(Some(path));
    let name = format!("{}/web", registry.address);
    ask(&format!("{name}:1"), &options).await.unwrap();
    assert_eq!((mirror.asked().len(), registry.asked().len()), (0, 1));
    let digest = Digest::of(MANIFEST);
    ask(&format!("{name}@{digest}"), &options).await.unwrap();
    assert_eq!((mirror.asked().len(), registry.asked().len()), (1, 1));
}

#[tokio::test]
async fn paths_and_headers_are_as_the_file_says_and_headers_stay_at_home() {
    let cdn = Server::start(serves).await;
    let location = format!("http://{}/cdn", cdn.address);
    let mirror =
        Server::start(move |_| Reply::status(302).header("location", location.clone())).await;
    let text = format!(
        "[host.\"http://{}/v2/cache\"]\noverride_path = true\n\
         [host.\"http://{0}/v2/cache\".header]\nx-team = \"s3cret\"",
        mirror.address
    );
    let (_root, path) = hosts("registry.invalid", &text);
    ask("registry.invalid/web:1", &options(Some(path)))
        .await
        .unwrap();
    let asked = &mirror.asked()[0];
    assert_eq!(asked.path, "/v2/cache/web/manifests/1");
    assert_eq!(asked.query, "ns=registry.invalid");
    assert_eq!(asked.header("x-team"), Some("s3cret"));
    assert!(
        asked
            .header("user-agent")
            .unwrap()
            .starts_with("nodeagent/")
    );
    assert_eq!(cdn.asked()[0].header("x-team"), None);
    let accept = cdn.asked()[0].header("accept").map(str::to_owned);
    assert!(accept.is_some(), "what is asked for goes along");
}

#[tokio::test]
async fn a_mirror_that_fails_is_passed_over_and_remembered() {
    let mirror = Server::start(|_| Reply::default().fault(Fault::Silence)).await;
    let registry = Server::start(serves).await;
    let text = format!("[host.\"http://{}\"]", mirror.address);
    let (_root, path) = hosts(&registry.address, &text);
    let options = FetchOptions {
        stall_timeout: Duration::from_secs(2),
        ..options(Some(path))
    };
    let registries = Registries::new(&options);
    let reference: Reference = format!("{}/web:1", registry.address).parse().unwrap();
    for _ in 0..3 {
        let opened = registries.open(&reference).unwrap();
        assert_eq!(opened.manifest(&reference).await.unwrap(), MANIFEST);
    }
    assert_eq!((mirror.asked().len(), registry.asked().len()), (1, 3));
}

#[tokio::test]
async fn the_registry_itself_has_the_last_word() {
    let mirror = Server::start(|_| Reply::status(403)).await;
    let registry = Server::start(|_| Reply::status(404)).await;
    let text = format!("[host.\"http://{}\"]", mirror.address);
    let (_root, path) = hosts(&registry.address, &text);
    let error = ask(&format!("{}/web:1", registry.address), &options(Some(path)))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, PullError::NotFound { registry: named, object, .. }
            if *named == registry.address && object == "manifest 1"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_wrong_file_is_told_before_anybody_is_asked() {
    let registry = Server::start(serves).await;
    let (root, path) = hosts(&registry.address, "skip_verfy = true");
    let error = ask(&format!("{}/web:1", registry.address), &options(Some(path)))
        .await
        .unwrap_err();
    let PullError::Hosts(wrong) = &error else {
        panic!("{error:?}")
    };
    let file = root.path().join(&registry.address).join("hosts.toml");
    assert_eq!((&wrong.file, wrong.key.as_str()), (&file, "skip_verfy"));
    assert_eq!(registry.asked().len(), 0);
}

#[tokio::test]
async fn a_registry_is_asked_by_way_of_the_proxy_and_loopback_is_not() {
    let proxy = Server::start(serves).await;
    let registry = Server::start(serves).await;
    let options = FetchOptions {
        insecure_registries: vec!["registry.invalid".to_owned()],
        proxy: ProxySettings::Url {
            url: format!("http://{}", proxy.address),
            except: String::new(),
        },
        retries: 0,
        ..options(None)
    };
    ask("registry.invalid/web:1", &options).await.unwrap();
    let target = "http://registry.invalid/v2/web/manifests/1";
    assert_eq!(proxy.asked()[0].path, target);
    ask(&format!("{}/web:1", registry.address), &options)
        .await
        .unwrap();
    assert_eq!((proxy.asked().len(), registry.asked().len()), (1, 1));
}

#[tokio::test]
async fn signatures_of_an_image_come_from_its_registry() {
    let payload = b"{\"critical\":{}}".to_vec();
    let blob = Descriptor {
        media_type: "application/vnd.dev.cosign.simplesigning.v1+json".to_owned(),
        digest: Digest::of(&payload),
        size: payload.len() as u64,
    };
    let served = payload.clone();
    let path = format!("/v2/web/blobs/{}", blob.digest);
    let server = Server::start(move |request| match request.path.as_str() {
        "/v2/web/manifests/sha256-0.sig" => Reply::body(MANIFEST),
        blob if blob == path => Reply::body(served.clone()),
        _ => Reply::status(404),
    })
    .await;
    let reference: Reference = format!("{}/web:1", server.address).parse().unwrap();
    let registry = Registries::new(&options(None)).open(&reference).unwrap();
    let found = registry
        .signature_manifest(&reference, "sha256-0.sig")
        .await;
    assert_eq!(found.unwrap().as_deref(), Some(MANIFEST));
    let none = registry
        .signature_manifest(&reference, "sha256-1.sig")
        .await;
    assert_eq!(none.unwrap(), None);
    assert_eq!(registry.payload(&reference, &blob).await.unwrap(), payload);
    let other = Descriptor {
        digest: Digest::of(b"other"),
        ..blob
    };
    let error = registry.payload(&reference, &other).await.unwrap_err();
    assert!(matches!(&error, PullError::NotFound { .. }), "{error:?}");
}
