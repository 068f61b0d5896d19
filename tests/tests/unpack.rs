//! Images by the agent: the same trees as containerd's own unpack, and what is kept of them.

use std::fs;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use nodeagent::api::v1::{EvictResult, ImageDocument, ImageList, ImageState, VerifyResult};
use nodeagent_tests::TestHost;
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::image::catalogue::{ImageSpec, catalogue, refused_by_containerd};
use nodeagent_tests::image::{Image, PAGE};
use nodeagent_tests::tree::{Kind, Tree};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";

/// A host with an agent on which nothing was pulled.
struct Scene {
    host: TestHost,
}

impl Scene {
    fn new(config: &str) -> Result<Self> {
        let host = TestHost::start_with(config)?;
        Ok(Self { host })
    }

    fn image(&self, arguments: &[&str]) -> Result<nodeagent_tests::cli::Answer> {
        self.host.cli().json(&[&["image"], arguments].concat())
    }

    fn pull(&self, reference: &str) -> Result<ImageDocument> {
        self.image(&["pull", reference])?.document(0)
    }

    fn list(&self) -> Result<ImageList> {
        self.image(&["list"])?.document(0)
    }

    fn blobs(&self) -> PathBuf {
        self.host.agent.state().join("images/blobs/sha256")
    }
}

fn printed(ctr: &Ctr<'_>, arguments: &[&str]) -> Result<String> {
    let output = ctr.run(arguments)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Directories that no layer mentions have the time of unpacking when containerd unpacks, and ours
/// have that of the layer below: where it has no time, ours need none.
fn without_times_of_unpacking(ours: &mut Tree, theirs: &mut Tree, began: i64) {
    for (path, node) in &mut theirs.0 {
        if node.kind == Kind::Directory && node.mtime.0 >= began {
            node.mtime = (0, 0);
            if let Some(node) = ours.0.get_mut(path) {
                node.mtime = (0, 0);
            }
        }
    }
}

#[test]
fn the_agent_unpacks_every_image_as_containerd_does() -> Result<()> {
    let scene = Scene::new(CONFIG)?;
    // Of 2.2 with one unpack at a time, its default: with more it loses whiteouts.
    let oracle = Ctr::new(&scene.host.ground, &scene.host.containerd);
    let began = UNIX_EPOCH.elapsed()?.as_secs() as i64;
    let mut wrong = Vec::new();
    let images = catalogue();
    ensure!(images.len() >= 20, "{} images", images.len());
    for image in &images {
        let layout = image.build(&scene.host.ground.path(&format!("image-{}", image.name)))?;
        let reference = layout.place(&scene.host.registry, &format!("{}:1", image.name))?;
        let pulled = scene.pull(&reference).context(image.name)?;
        assert_eq!(pulled.state, ImageState::Ready, "{}", image.name);
        oracle.pull(&reference).context(image.name)?;
        let chain_id = layout.chain_id()?;
        let tree = |namespace| {
            scene
                .host
                .containerd
                .tree(&scene.host.ground, namespace, &chain_id)
        };
        let mut ours = tree(scene.host.agent.namespace())?;
        let mut theirs = tree(oracle.namespace())?;
        without_times_of_unpacking(&mut ours, &mut theirs, began);
        ensure!(!theirs.0.is_empty(), "{} is empty", image.name);
        for difference in ours.differences(&theirs) {
            wrong.push(format!("{}: {difference}", image.name));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    Ok(())
}

#[test]
fn the_old_format_of_sparse_files_is_unpacked_too() -> Result<()> {
    let scene = Scene::new(CONFIG)?;
    let pulled = |image: &ImageSpec| -> Result<Tree> {
        let layout = image.build(&scene.host.ground.path(image.name))?;
        let reference = layout.place(&scene.host.registry, &format!("{}:1", image.name))?;
        scene.pull(&reference)?;
        let (ours, chain_id) = (scene.host.agent.namespace(), layout.chain_id()?);
        scene
            .host
            .containerd
            .tree(&scene.host.ground, ours, &chain_id)
    };
    let newer = catalogue();
    let newer = newer
        .iter()
        .find(|image| image.name == "sparse-files-in-pax-1.0");
    let newer = pulled(newer.context("no such image")?)?;
    // containerd refuses it: "unhandled tar header type".
    for older in refused_by_containerd() {
        assert_eq!(pulled(&older)?.differences(&newer), Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn a_layer_that_is_no_archive_is_refused_and_leaves_nothing() -> Result<()> {
    let scene = Scene::new(CONFIG)?;
    let web = Image::web()?.push(&scene.host.registry, "web:1")?;
    let noise = b"this is no layer".repeat(64);
    let manifest =
        scene
            .host
            .registry
            .request("GET", "/v2/web/manifests/1", &[("Accept", MANIFEST)], &[])?;
    let digest = nodeagent_tests::image::digest(&noise);
    let text = manifest.text().replace(&web.layer, &digest);
    let size = serde_json::from_str::<serde_json::Value>(&text)?["layers"][0]["size"].clone();
    let text = text.replace(
        &format!("\"size\":{size}"),
        &format!("\"size\":{}", noise.len()),
    );
    scene.host.registry.push_blob("web", &digest, &noise)?;
    scene
        .host
        .registry
        .push_manifest("web", "noise", MANIFEST, text.as_bytes())?;
    let problem = scene
        .image(&["pull", "127.0.0.1:5000/web:noise"])?
        .problem(3)?;
    assert_eq!(problem.code, "image_refused", "{problem:?}");
    ensure!(
        problem.detail.contains("cannot be extracted"),
        "{problem:?}"
    );
    assert_eq!(scene.list()?, ImageList::default());
    let ours =
        Ctr::new(&scene.host.ground, &scene.host.containerd).within(scene.host.agent.namespace());
    assert_eq!(printed(&ours, &["snapshots", "list"])?.lines().count(), 1);
    Ok(())
}

#[test]
fn a_receipt_says_where_each_layer_came_from() -> Result<()> {
    let scene = Scene::new(CONFIG)?;
    let web = Image::web()?.push(&scene.host.registry, "web:1")?;
    let first = scene.pull(&web.reference)?;
    let receipt = first.receipt.context("no receipt")?;
    let [layer] = &receipt.layers[..] else {
        anyhow::bail!("{receipt:?}");
    };
    assert_eq!(
        (layer.digest.as_str(), layer.from.as_str()),
        (web.layer.as_str(), "registry")
    );
    assert_eq!(
        (layer.fetched_bytes, receipt.fetched_bytes),
        (layer.bytes, layer.bytes)
    );
    assert_eq!(layer.sender.as_deref(), Some("127.0.0.1:5000"));
    // The same layer below another name: nothing comes over the network.
    let other = Image::web()?.push(&scene.host.registry, "other:1")?;
    let second = scene.pull(&other.reference)?;
    let receipt = second.receipt.context("no receipt")?;
    assert_eq!(
        (receipt.fetched_bytes, receipt.layers[0].from.as_str()),
        (0, "unpacked")
    );
    Ok(())
}

#[test]
fn a_damaged_layer_is_found_and_fetched_again_when_it_is_needed() -> Result<()> {
    let scene = Scene::new(CONFIG)?;
    let web = Image::web()?.push(&scene.host.registry, "web:1")?;
    scene.pull(&web.reference)?;
    let verified: VerifyResult = scene.image(&["verify"])?.document(0)?;
    assert_eq!((verified.right, verified.damaged.len()), (1, 0));
    let blob = scene.blobs().join(web.layer.trim_start_matches("sha256:"));
    let mut bytes = fs::read(&blob).with_context(|| format!("read {}", blob.display()))?;
    bytes[1000] ^= 1;
    fs::write(&blob, &bytes)?;
    let verified: VerifyResult = scene.image(&["verify", &web.reference])?.document(1)?;
    assert_eq!(verified.damaged[0].digest, web.layer);
    assert_eq!(
        verified.damaged[0].images,
        std::slice::from_ref(&web.reference)
    );
    ensure!(!blob.exists(), "the damaged layer stays");
    let verified: VerifyResult = scene.image(&["verify"])?.document(0)?;
    assert_eq!((verified.right, verified.absent), (0, 1));
    let problem = scene
        .image(&["verify", "127.0.0.1:5000/other:1"])?
        .problem(4)?;
    assert_eq!(problem.code, "not_found");
    Ok(())
}

#[test]
fn what_is_pinned_or_in_use_is_not_evicted() -> Result<()> {
    let scene = Scene::new(CONFIG)?;
    let pinned = Image::web()?.push(&scene.host.registry, "pinned:1")?;
    let page = Image::web()?.file("www/other.html", 0o644, PAGE);
    let free = page.push(&scene.host.registry, "free:1")?;
    scene.pull(&pinned.reference)?;
    scene.pull(&free.reference)?;
    let pin: ImageDocument = scene.image(&["pin", &pinned.reference])?.document(0)?;
    assert!(pin.pinned);
    let dry: EvictResult = scene.image(&["evict", "--dry-run"])?.document(0)?;
    assert_eq!(dry.evicted[0].reference, free.reference);
    assert_eq!(scene.list()?.images.len(), 2);
    let done: EvictResult = scene.image(&["evict"])?.document(0)?;
    assert_eq!(done.evicted, dry.evicted);
    assert_eq!(
        (done.kept[0].reference.as_str(), done.kept[0].why.as_str()),
        (pinned.reference.as_str(), "pinned")
    );
    ensure!(done.freed_bytes > 0, "{done:?}");
    let left = scene.list()?.images;
    assert_eq!(left.len(), 1);
    assert_eq!(
        (left[0].reference.as_str(), left[0].state),
        (pinned.reference.as_str(), ImageState::Ready)
    );
    let ours =
        Ctr::new(&scene.host.ground, &scene.host.containerd).within(scene.host.agent.namespace());
    let names = printed(&ours, &["images", "list", "-q"])?;
    assert_eq!(names.trim(), pinned.reference);
    // The layers of the one that went are gone; those of the other are there.
    assert_eq!(fs::read_dir(scene.blobs())?.count(), 1);
    let unpinned: ImageDocument = scene.image(&["unpin", &pinned.reference])?.document(0)?;
    assert!(!unpinned.pinned);
    scene.image(&["evict"])?.document::<EvictResult>(0)?;
    assert_eq!(scene.list()?, ImageList::default());
    assert_eq!(fs::read_dir(scene.blobs())?.count(), 0);
    assert_eq!(printed(&ours, &["snapshots", "list"])?.lines().count(), 1);
    Ok(())
}

#[test]
fn layers_are_dropped_when_they_are_unpacked_where_that_is_wanted() -> Result<()> {
    let config = format!("{CONFIG}[images]\nkeep_blobs = false\n");
    let scene = Scene::new(&config)?;
    let web = Image::web()?.push(&scene.host.registry, "web:1")?;
    assert_eq!(scene.pull(&web.reference)?.state, ImageState::Ready);
    assert_eq!(fs::read_dir(scene.blobs())?.count(), 0);
    Ok(())
}

#[test]
fn an_image_that_cannot_be_had_is_refused_with_its_reason() -> Result<()> {
    let scene = Scene::new(CONFIG)?;
    let problem = scene
        .image(&["pull", "127.0.0.1:5000/none:1"])?
        .problem(3)?;
    assert_eq!(problem.code, "image_refused");
    ensure!(
        problem
            .detail
            .contains("has no manifest 1 in repository none"),
        "{problem:?}"
    );
    let problem = scene.image(&["pull", "Web::1"])?.problem(3)?;
    assert_eq!(problem.code, "invalid_request");
    assert_eq!(problem.findings[0].field, "reference");
    let problem = scene.image(&["pin", "127.0.0.1:5000/none:1"])?.problem(4)?;
    assert_eq!(problem.code, "not_found");
    Ok(())
}
