//! Registries that want to know who asks: tokens, their life, user and password, helpers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use imagecache::fetch::FetchOptions;
use imagecache::registry::{Registries, Registry};
use imagecache::{Digest, PullError, Reference};
use serde_json::json;

use crate::server::{Reply, Request, Server};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"layers":[],"config":{}}"#;
/// joe:s3cret
const JOE: &str = "Basic am9lOnMzY3JldA==";

/// A registry and its token service, which says which tokens are good.
struct Guarded {
    registry: Server,
    service: Server,
    /// The only token that the registry takes now.
    good: Arc<Mutex<String>>,
}

impl Guarded {
    /// The token service gives `token-N` to who sends `wanted`, N counted from 0; it lives so many
    /// seconds.
    async fn start(wanted: Option<&'static str>, life: u64) -> Self {
        let good: Arc<Mutex<String>> = Arc::default();
        let (count, given) = (AtomicUsize::new(0), Arc::clone(&good));
        let service = Server::start(move |request| {
            if request.header("authorization") != wanted && request.method != "POST" {
                return Reply::status(401);
            }
            let token = format!("token-{}", count.fetch_add(1, Ordering::SeqCst));
            given.lock().unwrap().clone_from(&token);
            Reply::body(json!({"token": token, "expires_in": life}).to_string())
        })
        .await;
        let realm = format!("http://{}/token", service.address);
        let taken = Arc::clone(&good);
        let registry = Server::start(move |request| {
            let good = format!("Bearer {}", taken.lock().unwrap());
            if request.header("authorization") == Some(&good) {
                return Reply::body(MANIFEST);
            }
            let challenge = format!(
                "Bearer realm=\"{realm}\",service=\"r.lan\",scope=\"repository:team/web:pull\""
            );
            Reply::status(401).header("www-authenticate", challenge)
        })
        .await;
        Self {
            registry,
            service,
            good,
        }
    }
}

fn reference(server: &Server, rest: &str) -> Reference {
    format!("{}/team/web{rest}", server.address)
        .parse()
        .unwrap()
}

fn options(config: Option<&Path>) -> FetchOptions {
    FetchOptions {
        auth_file: config.map(Path::to_owned),
        stall_timeout: Duration::from_secs(5),
        ..FetchOptions::default()
    }
}

fn config(directory: &Path, config: &serde_json::Value) -> PathBuf {
    let path = directory.join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

fn open(server: &Server, config: Option<&Path>) -> Registry {
    let registries = Registries::new(&options(config));
    registries.open(&reference(server, ":1")).unwrap()
}

fn headers(requests: &[Request]) -> Vec<Option<&str>> {
    let header = |request: &'_ Request| request.header("authorization").map(str::to_owned);
    let headers: Vec<Option<String>> = requests.iter().map(header).collect();
    headers
        .into_iter()
        .map(|header| header.map(|header| &*header.leak()))
        .collect()
}

#[tokio::test]
async fn a_token_is_fetched_when_the_registry_asks_for_one() {
    let scene = Guarded::start(None, 300).await;
    let registry = open(&scene.registry, None);
    let manifest = registry.manifest(&reference(&scene.registry, ":1")).await;
    assert_eq!(manifest.unwrap(), MANIFEST);
    let asked = scene.service.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/token");
    assert_eq!(
        asked[0].query,
        "service=r.lan&scope=repository%3Ateam%2Fweb%3Apull"
    );
    assert_eq!(
        headers(&scene.registry.asked()),
        [None, Some("Bearer token-0")]
    );
}

#[tokio::test]
async fn however_many_ask_one_token_is_fetched_and_kept_for_the_next_pull() {
    let scene = Guarded::start(None, 300).await;
    let registries = Registries::new(&options(None));
    let name = reference(&scene.registry, ":1");
    let registry = registries.open(&name).unwrap();
    let asked = (0..16).map(|_| registry.manifest(&name));
    for manifest in futures_util::future::join_all(asked).await {
        assert_eq!(manifest.unwrap(), MANIFEST);
    }
    let next = registries.open(&name).unwrap();
    next.manifest(&name).await.unwrap();
    assert_eq!(scene.service.asked().len(), 1);
    let last = scene.registry.asked().pop().unwrap();
    assert_eq!(last.header("authorization"), Some("Bearer token-0"));
}

#[tokio::test]
async fn a_token_that_ends_during_a_pull_is_renewed() {
    // The service revokes it.
    let scene = Guarded::start(None, 300).await;
    let name = reference(&scene.registry, ":1");
    let registry = open(&scene.registry, None);
    registry.manifest(&name).await.unwrap();
    "revoked".clone_into(&mut scene.good.lock().unwrap());
    registry.manifest(&name).await.unwrap();
    assert_eq!(scene.service.asked().len(), 2);

    // Its life is over: it is not even shown.
    let scene = Guarded::start(None, 0).await;
    let registry = open(&scene.registry, None);
    let name = reference(&scene.registry, ":1");
    registry.manifest(&name).await.unwrap();
    registry.manifest(&name).await.unwrap();
    let refused = scene.registry.asked();
    assert_eq!(
        headers(&refused),
        [None, Some("Bearer token-0"), Some("Bearer token-1")]
    );
}

#[tokio::test]
async fn a_token_that_is_refused_at_once_is_not_fetched_again_and_again() {
    let scene = Guarded::start(None, 300).await;
    let realm = format!("http://{}/token", scene.service.address);
    let closed = Server::start(move |_| {
        let challenge = format!("Bearer realm=\"{realm}\"");
        Reply::status(401).header("www-authenticate", challenge)
    })
    .await;
    let registry = open(&closed, None);
    let error = registry
        .manifest(&reference(&closed, ":1"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, PullError::Unauthorised { message, .. }
            if message == "it wants credentials and there are none for it"),
        "{error:?}"
    );
    assert_eq!((closed.asked().len(), scene.service.asked().len()), (2, 1));
    // The default scope is that of the repository.
    let query = &scene.service.asked()[0].query;
    assert_eq!(query, "scope=repository%3Ateam%2Fweb%3Apull");
}

#[tokio::test]
async fn user_and_password_go_to_the_token_service_alone() {
    let scene = Guarded::start(Some(JOE), 300).await;
    let directory = tempfile::tempdir().unwrap();
    let address = scene.registry.address.clone();
    let file = config(
        directory.path(),
        &json!({"auths": {address.clone(): {"auth": "am9lOnMzY3JldA=="}}}),
    );
    let name = reference(&scene.registry, ":1");
    let registry = open(&scene.registry, Some(&file));
    registry.manifest(&name).await.unwrap();
    assert_eq!(headers(&scene.service.asked()), [Some(JOE)]);
    assert!(!headers(&scene.registry.asked()).contains(&Some(JOE)));

    let file = config(
        directory.path(),
        &json!({"auths": {address: {"auth": "am9lOndyb25n"}}}),
    );
    let registry = open(&scene.registry, Some(&file));
    let error = registry.manifest(&name).await.unwrap_err();
    assert!(
        matches!(&error, PullError::Unauthorised { message, .. }
            if message == "it refuses our credentials"),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let scene = Guarded::start(Some("never"), 300).await;
    let directory = tempfile::tempdir().unwrap();
    let auths = json!({"auths": {scene.registry.address.clone(): {"identitytoken": "id&1"}}});
    let file = config(directory.path(), &auths);
    let registry = open(&scene.registry, Some(&file));
    registry
        .manifest(&reference(&scene.registry, ":1"))
        .await
        .unwrap();
    let asked = &scene.service.asked()[0];
    assert_eq!(asked.method, "POST");
    assert_eq!(
        asked.body,
        "grant_type=refresh_token&client_id=nodeagent&refresh_token=id%261\
         &scope=repository%3Ateam%2Fweb%3Apull&service=r.lan"
    );
}

#[tokio::test]
async fn a_registry_that_wants_user_and_password_gets_them_from_the_second_request_on() {
    let registry = Server::start(|request| match request.header("authorization") {
        Some(JOE) => Reply::body(MANIFEST),
        _ => Reply::status(401).header("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let auths = json!({"auths": {registry.address.clone(): {"auth": "am9lOnMzY3JldA=="}}});
    let file = config(directory.path(), &auths);
    let name = reference(&registry, ":1");
    let opened = open(&registry, Some(&file));
    opened.manifest(&name).await.unwrap();
    opened.manifest(&name).await.unwrap();
    assert_eq!(headers(&registry.asked()), [None, Some(JOE), Some(JOE)]);
}

/// A helper in a directory of its own; it is run by its path, because `PATH` is everybody's.
fn helper(directory: &Path, script: &str) -> String {
    let path = directory.join("docker-credential-test");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_credential_helper_is_asked_when_the_registry_wants_credentials() {
    let registry = Server::start(|request| match request.header("authorization") {
        Some(JOE) => Reply::body(MANIFEST),
        _ => Reply::status(401).header("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let program = helper(
        directory.path(),
        r#"read server; echo "$1 $server" >> "$(dirname "$0")/asked"
           echo '{"Username":"joe","Secret":"s3cret"}'"#,
    );
    let file = config(
        directory.path(),
        &json!({"credHelpers": {registry.address.clone(): "test"}}),
    );
    let name = reference(&registry, ":1");
    let options = FetchOptions {
        credential_helpers: Some(directory.path().to_owned()),
        ..options(Some(&file))
    };
    let registries = Registries::new(&options);
    for _ in 0..2 {
        let opened = registries.open(&name).unwrap();
        assert_eq!(opened.manifest(&name).await.unwrap(), MANIFEST);
    }
    let asked = std::fs::read_to_string(directory.path().join("asked")).unwrap();
    assert_eq!(asked, format!("get {}\n", registry.address), "{program}");
}

/// Why there is no manifest for who has these credentials and helpers.
async fn refused_with(registry: &Server, credentials: &Path, helpers: &Path) -> PullError {
    let options = FetchOptions {
        credential_helpers: Some(helpers.to_owned()),
        ..options(Some(credentials))
    };
    let name = reference(registry, ":1");
    let opened = Registries::new(&options).open(&name).unwrap();
    opened.manifest(&name).await.unwrap_err()
}

#[tokio::test]
async fn a_helper_that_fails_is_named_and_not_quoted() {
    let registry =
        Server::start(|_| Reply::status(401).header("www-authenticate", "Basic realm=\"r\"")).await;
    let directory = tempfile::tempdir().unwrap();
    let file = config(directory.path(), &json!({"credsStore": "test"}));
    for (script, why) in [
        ("echo s3cret; exit 3", "exit status: 3"),
        ("echo s3cret", "it is not JSON"),
        ("head -c 100000 /dev/zero", "it is too long"),
    ] {
        helper(directory.path(), script);
        let error = refused_with(&registry, &file, directory.path()).await;
        let PullError::Credentials { path, why: said } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*path, file);
        assert!(
            said.contains(why) && said.contains("docker-credential-test"),
            "{said}"
        );
        assert!(!said.contains("s3cret"), "{said}");
    }
    helper(
        directory.path(),
        "echo 'credentials not found in native keychain'; exit 1",
    );
    let error = refused_with(&registry, &file, directory.path()).await;
    assert!(
        matches!(&error, PullError::Unauthorised { message, .. } if message.contains("wants credentials")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_tag_is_resolved_without_its_manifest() {
    let digest = Digest::of(MANIFEST);
    let named = digest.to_string();
    let registry = Server::start(move |request| {
        assert!(request.header("accept").is_some());
        Reply::body(MANIFEST).header("docker-content-digest", named.clone())
    })
    .await;
    let name = reference(&registry, ":1");
    let opened = open(&registry, None);
    assert_eq!(opened.resolve(&name).await.unwrap(), digest);
    assert_eq!(registry.asked()[0].method, "HEAD");
    assert_eq!(registry.asked().len(), 1);

    // A registry that does not say it is asked for the manifest.
    let registry = Server::start(|_| Reply::body(MANIFEST)).await;
    let opened = open(&registry, None);
    assert_eq!(
        opened.resolve(&reference(&registry, ":1")).await.unwrap(),
        digest
    );
    assert_eq!(registry.asked().len(), 2);
}

#[tokio::test]
async fn a_manifest_is_what_its_digest_says_and_not_too_long() {
    let other = Digest::of(b"other");
    let registry = Server::start(|_| Reply::body(MANIFEST)).await;
    let by_digest = reference(&registry, &format!("@{other}"));
    let error = open(&registry, None)
        .manifest(&by_digest)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, PullError::WrongDigest { expected, object, .. }
            if *expected == other.as_str() && *object == format!("manifest {other}")),
        "{error:?}"
    );
    let lie = other.to_string();
    let registry =
        Server::start(move |_| Reply::body(MANIFEST).header("docker-content-digest", lie.clone()))
            .await;
    let by_tag = reference(&registry, ":1");
    let error = open(&registry, None).manifest(&by_tag).await.unwrap_err();
    assert!(matches!(&error, PullError::WrongDigest { .. }), "{error:?}");

    let registry = Server::start(|_| Reply::body(vec![b' '; (4 << 20) + 1])).await;
    let by_tag = reference(&registry, ":1");
    let error = open(&registry, None).manifest(&by_tag).await.unwrap_err();
    assert!(
        matches!(&error, PullError::Malformed { why, .. } if why.contains("4194304 are allowed")),
        "{error:?}"
    );
}
