//! Pulling from a registry that does what it should, and from one that does not.

#![allow(clippy::unwrap_used, reason = "a panic in a test is the report")]

mod support;

use std::time::Duration;

use imagecache::fetch::{FetchOptions, Urgency};
use imagecache::memory::{MemoryStore, MemoryUnpacker};
use imagecache::{
    Cache, Digest, Extraction, Image, PullError, PullOptions, Reference, Retry, Unpacker as _,
};
use serde_json::{Value, json};
use support::{Answer, ScriptedRegistry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image of some layers in a registry, and empty places to pull it to.
struct Scene {
    registry: ScriptedRegistry,
    layers: Vec<Vec<u8>>,
    manifest: Vec<u8>,
    store: MemoryStore,
    unpacker: MemoryUnpacker,
    directory: tempfile::TempDir,
    fetch: FetchOptions,
    options: PullOptions,
}

impl Scene {
    async fn new(layers: usize) -> Self {
        let registry = ScriptedRegistry::start().await;
        // Some are longer than one read of the socket.
        let layers: Vec<Vec<u8>> = (0..layers)
            .map(|n| format!("layer {n} ").repeat(1 + n * 20_000).into_bytes())
            .collect();
        let config = json!({"architecture": architecture(), "os": "linux",
            "config": {"Entrypoint": ["/bin/httpd"], "Env": ["A=1"], "Cmd": null},
            "rootfs": {"type": "layers",
                "diff_ids": layers.iter().map(|layer| Digest::of(layer).to_string()).collect::<Vec<_>>()}})
        .to_string();
        let describe = |kind: &str, bytes: &[u8]| {
            json!({"mediaType": kind,
            "digest": Digest::of(bytes).as_str(), "size": bytes.len()})
        };
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": describe("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "layers": layers.iter()
                .map(|layer| describe("application/vnd.oci.image.layer.v1.tar", layer))
                .collect::<Vec<Value>>()})
        .to_string()
        .into_bytes();
        registry.manifest("web", "1", MANIFEST, &manifest);
        registry.blob(
            "web",
            &Digest::of(config.as_bytes()),
            Answer::Body("application/json", config.into_bytes()),
        );
        for layer in &layers {
            registry.blob(
                "web",
                &Digest::of(layer),
                Answer::Body("application/octet-stream", layer.clone()),
            );
        }
        let store = MemoryStore::default();
        Self {
            unpacker: MemoryUnpacker::default(),
            directory: tempfile::tempdir().unwrap(),
            fetch: FetchOptions {
                stall_timeout: Duration::from_secs(5),
                ..FetchOptions::default()
            },
            options: PullOptions {
                deadline: Duration::from_secs(20),
                ..PullOptions::default()
            },
            registry,
            layers,
            manifest,
            store,
        }
    }

    fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.registry.address).parse().unwrap()
    }

    async fn pull(&self, rest: &str) -> Result<Image, PullError> {
        self.pull_reference(&self.reference(rest)).await
    }

    async fn pull_reference(&self, reference: &Reference) -> Result<Image, PullError> {
        let pulled = self
            .cache()
            .pull(reference, &self.store, &self.unpacker, &self.options)
            .await?;
        Ok(pulled.image)
    }

    fn cache(&self) -> Cache {
        Cache::open(
            self.directory.path(),
            &self.fetch,
            Extraction::for_this_machine(),
        )
        .unwrap()
    }

    /// Digests of all blobs: documents and layers.
    fn digests(&self) -> Vec<Digest> {
        let layers = self.cache().blobs().list().unwrap();
        let layers = layers.into_iter().map(|(digest, _)| digest);
        self.store.digests().into_iter().chain(layers).collect()
    }

    fn spoil_layer(&self, layer: usize, spoil: impl Fn(Vec<u8>) -> Answer) -> Digest {
        let bytes = self.layers[layer].clone();
        let digest = Digest::of(&bytes);
        self.registry.blob("web", &digest, spoil(bytes));
        digest
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[tokio::test]
async fn an_image_is_fetched_verified_and_unpacked() {
    let scene = Scene::new(5).await;
    let image = scene.pull("web:1").await.unwrap();
    assert_eq!(image.manifest.digest, Digest::of(&scene.manifest));
    assert_eq!(image.target, image.manifest);
    assert_eq!(image.layers.len(), 5);
    assert_eq!(
        image.run.entrypoint().as_deref(),
        Some(&["/bin/httpd".to_owned()][..])
    );
    assert!(scene.unpacker.unpacked(&image.chain_id).await.unwrap());
    assert_eq!(scene.digests().len(), 7, "manifest, config and five layers");
    let local = imagecache::local(&image.reference, &image.target.digest, &scene.store).await;
    assert_eq!(local.unwrap(), Some(image));
}

#[tokio::test]
async fn an_index_is_followed_to_the_manifest_of_this_host() {
    let scene = Scene::new(1).await;
    let digest = Digest::of(&scene.manifest);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": MANIFEST, "digest": digest.as_str(), "size": scene.manifest.len(),
         "platform": {"os": "linux", "architecture": architecture()}}]})
    .to_string();
    scene
        .registry
        .manifest("web", "multi", INDEX, index.as_bytes());
    let image = scene.pull("web:multi").await.unwrap();
    assert_eq!(image.target.digest, Digest::of(index.as_bytes()));
    assert_eq!(image.manifest.digest, digest);
    let local = imagecache::local(&image.reference, &image.target.digest, &scene.store).await;
    assert_eq!(local.unwrap(), Some(image));
}

#[tokio::test]
async fn layers_that_are_unpacked_are_not_fetched() {
    let scene = Scene::new(3).await;
    scene.pull("web:1").await.unwrap();
    let before = scene.registry.asked().len();
    scene.pull("web:1").await.unwrap();
    let asked = scene.registry.asked().split_off(before);
    assert!(
        asked.iter().all(|path| !path.contains("/blobs/")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn layers_are_asked_for_from_the_bottom_up() {
    let mut scene = Scene::new(16).await;
    scene.fetch.connections = 1;
    scene.pull("web:1").await.unwrap();
    let asked = scene.registry.asked();
    let layer_of = |path: &String| {
        let asks = |layer: &Vec<u8>| path.ends_with(Digest::of(layer).as_str());
        scene.layers.iter().position(asks)
    };
    let order: Vec<usize> = asked.iter().filter_map(layer_of).collect();
    assert_eq!(order.len(), 16, "{asked:?}");
    // Two are on their way, and either may have the connection first.
    let far = order.iter().enumerate().find(|(n, at)| at.abs_diff(*n) > 3);
    assert_eq!(far, None, "{order:?}");
}

#[tokio::test]
async fn an_activation_and_a_pre_pull_of_the_same_layers_wait_for_no_one_forever() {
    let mut scene = Scene::new(12).await;
    scene.fetch.connections = 1;
    scene.fetch.bandwidth = 8 << 20;
    let cache = scene.cache();
    let digest = Digest::of(&scene.manifest);
    let by_digest = scene.reference(&format!("web@{digest}"));
    scene
        .registry
        .manifest("web", digest.as_str(), MANIFEST, &scene.manifest);
    let urgent = PullOptions {
        urgency: Urgency::Activation,
        ..scene.options
    };
    let by_tag = scene.reference("web:1");
    let pre_pull = cache.pull(&by_tag, &scene.store, &scene.unpacker, &scene.options);
    let activation = async {
        while cache.under_way().iter().all(|pull| pull.layers.is_empty()) {
            tokio::task::yield_now().await;
        }
        cache
            .pull(&by_digest, &scene.store, &scene.unpacker, &urgent)
            .await
    };
    let (pre_pull, activation) = tokio::join!(pre_pull, activation);
    let (pre_pull, activation) = (pre_pull.unwrap(), activation.unwrap());
    assert_eq!(pre_pull.image.chain_id, activation.image.chain_id);
    let fetched = pre_pull.receipt.fetched_bytes + activation.receipt.fetched_bytes;
    let size: usize = scene.layers.iter().map(Vec::len).sum();
    assert_eq!(fetched, size as u64, "each layer came once");
}

#[tokio::test]
async fn a_blob_with_a_wrong_digest_is_never_committed() {
    let scene = Scene::new(2).await;
    let digest = scene.spoil_layer(1, |mut bytes| {
        bytes[3] ^= 1;
        Answer::Body("application/octet-stream", bytes)
    });
    let error = scene.pull("web:1").await.unwrap_err();
    assert!(
        matches!(&error, PullError::WrongDigest { expected, got, .. }
            if *expected == digest.as_str() && got.starts_with("sha256:") && got != expected),
        "{error:?}"
    );
    assert_eq!(error.retry(), Retry::Later);
    assert!(!scene.digests().contains(&digest));
}

#[tokio::test]
async fn a_blob_with_a_wrong_size_is_never_committed() {
    for (longer, name) in [(true, "longer"), (false, "shorter")] {
        let scene = Scene::new(1).await;
        let digest = scene.spoil_layer(0, |mut bytes| {
            if longer {
                bytes.push(0)
            } else {
                bytes.truncate(3)
            }
            Answer::Body("application/octet-stream", bytes)
        });
        let error = scene.pull("web:1").await.unwrap_err();
        assert!(
            matches!(&error, PullError::WrongSize { .. }),
            "{name}: {error:?}"
        );
        assert!(!scene.digests().contains(&digest), "{name}");
    }
}

#[tokio::test]
async fn a_manifest_with_a_wrong_digest_is_refused() {
    let scene = Scene::new(1).await;
    let digest = Digest::of(b"another manifest");
    let path = format!("/v2/web/manifests/{digest}");
    scene
        .registry
        .answer(&path, Answer::Body(MANIFEST, scene.manifest.clone()));
    let error = scene.pull(&format!("web@{digest}")).await.unwrap_err();
    assert!(
        matches!(&error, PullError::WrongDigest { expected, .. } if *expected == digest.as_str()),
        "{error:?}"
    );
    assert!(scene.digests().is_empty());
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_config_says_is_not_unpacked() {
    let scene = Scene::new(1).await;
    let other = b"other".to_vec();
    let text = String::from_utf8(scene.manifest.clone()).unwrap();
    let manifest = text
        .replace(
            Digest::of(&scene.layers[0]).as_str(),
            Digest::of(&other).as_str(),
        )
        .replace(&format!("\"size\":{}", scene.layers[0].len()), "\"size\":5");
    scene
        .registry
        .manifest("web", "liar", MANIFEST, manifest.as_bytes());
    scene.registry.blob(
        "web",
        &Digest::of(&other),
        Answer::Body("application/octet-stream", other),
    );
    let error = scene.pull("web:liar").await.unwrap_err();
    assert!(
        error.to_string().contains("the image's config says"),
        "{error:?}"
    );
    assert_eq!(error.retry(), Retry::Never);
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_named() {
    let scene = Scene::new(1).await;
    let error = scene.pull("web:2").await.unwrap_err();
    assert!(
        matches!(&error, PullError::NotFound { object, repository, .. }
            if object == "manifest 2" && repository == "web"),
        "{error:?}"
    );
    assert_eq!(error.retry(), Retry::Never);
    let digest = scene.spoil_layer(0, |_| Answer::Status(404, "gone"));
    let error = scene.pull("web:1").await.unwrap_err();
    assert!(
        matches!(&error, PullError::NotFound { object, .. } if *object == format!("layer {digest}")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_registry_that_is_down_is_unreachable() {
    let scene = Scene::new(1).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let reference: Reference = format!("{nobody}/web:1").parse().unwrap();
    let error = scene.pull_reference(&reference).await.unwrap_err();
    assert!(
        matches!(&error, PullError::Unreachable { registry, .. } if *registry == nobody.to_string()),
        "{error:?}"
    );
    assert_eq!(error.retry(), Retry::Later);
}

#[tokio::test]
async fn a_connection_that_breaks_inside_a_layer_is_unreachable() {
    let scene = Scene::new(2).await;
    let digest = scene.spoil_layer(1, |bytes| Answer::Cut(bytes, 1000));
    let error = scene.pull("web:1").await.unwrap_err();
    assert!(matches!(&error, PullError::Unreachable { .. }), "{error:?}");
    assert!(!scene.digests().contains(&digest));
}

#[tokio::test]
async fn a_registry_that_stalls_is_given_up() {
    let mut scene = Scene::new(2).await;
    scene.fetch.stall_timeout = Duration::from_millis(300);
    scene.spoil_layer(1, |bytes| Answer::Stall(bytes, 1000));
    let error = scene.pull("web:1").await.unwrap_err();
    assert!(
        matches!(&error, PullError::Stalled { object, stalled, .. }
            if object.starts_with("layer ") && *stalled == scene.fetch.stall_timeout),
        "{error:?}"
    );
    scene.registry.answer("/v2/", Answer::Silence);
    let error = scene.pull("web:1").await.unwrap_err();
    assert!(matches!(&error, PullError::Stalled { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Later);
}

#[tokio::test]
async fn a_pull_ends_at_its_deadline() {
    let mut scene = Scene::new(1).await;
    scene
        .registry
        .answer("/v2/web/manifests/1", Answer::Silence);
    scene.fetch.stall_timeout = Duration::from_secs(60);
    scene.options.deadline = Duration::from_millis(300);
    let error = scene.pull("web:1").await.unwrap_err();
    assert!(
        matches!(&error, PullError::TooSlow { deadline, .. } if *deadline == scene.options.deadline),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_registry_error_says_whether_it_may_pass() {
    let scene = Scene::new(1).await;
    for (status, retry) in [
        (503, Retry::Later),
        (429, Retry::Later),
        (400, Retry::Never),
    ] {
        scene
            .registry
            .answer("/v2/web/manifests/1", Answer::Status(status, "scripted"));
        let error = scene.pull("web:1").await.unwrap_err();
        assert!(
            matches!(&error, PullError::Registry { .. }),
            "{status}: {error:?}"
        );
        assert_eq!(error.retry(), retry, "{status}");
    }
}

#[tokio::test]
async fn a_registry_that_wants_credentials_says_so() {
    let scene = Scene::new(1).await;
    let denied = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    scene
        .registry
        .answer("/v2/web/manifests/1", Answer::Status(401, denied));
    let error = scene.pull("web:1").await.unwrap_err();
    assert!(
        matches!(&error, PullError::Unauthorised { message, .. } if message.contains("wants credentials")),
        "{error:?}"
    );
    assert_eq!(error.retry(), Retry::Never);
}

#[tokio::test]
async fn credentials_of_the_file_are_sent_to_their_registry() {
    let mut scene = Scene::new(2).await;
    // joe:s3:cret
    scene.registry.guard("Basic am9lOnMzOmNyZXQ=");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    scene.fetch.auth_file = Some(file.clone());
    let auths = |auth: &str| json!({"auths": {scene.registry.address.clone(): {"auth": auth}}});
    std::fs::write(&file, auths("am9lOnMzOmNyZXQ=").to_string()).unwrap();
    scene.pull("web:1").await.unwrap();

    // joe:wrong
    std::fs::write(&file, auths("am9lOndyb25n").to_string()).unwrap();
    let error = scene.pull("web:1").await.unwrap_err();
    assert!(
        matches!(&error, PullError::Unauthorised { message, .. } if message.contains("refuses our credentials")),
        "{error:?}"
    );
    std::fs::remove_file(&file).unwrap();
    let error = scene.pull("web:1").await.unwrap_err();
    assert!(
        matches!(&error, PullError::Credentials { path, .. } if *path == file),
        "{error:?}"
    );
}
