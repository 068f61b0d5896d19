//! One copy of an image for the agent and the kubelet: names that the kubelet looks for, pins that it
//! heeds, pods that start without a pull and without a registry.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent::api::v1::{EvictResult, ImageDocument, ImageState};
use nodeagent_tests::cri_images::CriImage;
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::faults::FaultyRegistry;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Agent, Containerd, Ground, Image, Kubelet, Registry};

const NAMESPACE: &str = "k8s.io";
const CONFIG: &str = "[containerd]\nnamespace = \"k8s.io\"\n";
const SOON: Duration = Duration::from_secs(20);
/// The kubelet looks for images to collect every ten seconds, and at each twice before it does.
const COLLECTED: Duration = Duration::from_secs(120);
const MISSING: &str = "needs a built peer: make test-peers";

/// A Kubernetes host: containerd with CRI, an agent in its namespace, a registry behind a proxy.
struct Scene {
    agent: Agent,
    containerd: Containerd,
    proxy: FaultyRegistry,
    registry: Registry,
    ground: Ground,
}

impl Scene {
    fn new() -> Result<Self> {
        let ground = Ground::new()?;
        let sandbox = FaultyRegistry::reference("pause:1");
        let containerd = Containerd::start_with_cri(&ground, &sandbox)?;
        let registry = Registry::start(&ground)?;
        let proxy = FaultyRegistry::start(&ground)?;
        let mut agent = Agent::prepare(&ground, containerd.socket(), CONFIG)?;
        agent.start(&ground)?;
        Ok(Self {
            agent,
            containerd,
            proxy,
            registry,
            ground,
        })
    }

    /// Pushes an image of its own content; returns its name behind the proxy.
    fn push(&self, name: &str) -> Result<String> {
        let image = Image::busybox()?.file("etc/name", 0o644, name);
        let image = image.runs(&["/bin/sleep", "86400"]);
        image.push(&self.registry, name)?;
        Ok(FaultyRegistry::reference(name))
    }

    fn pull(&self, reference: &str) -> Result<ImageDocument> {
        let answer = self
            .agent
            .cli()
            .json(&["image", "pull", "--pin", reference])?;
        answer.document(0)
    }

    /// What the CRI plugin says of an image, which it learns a moment after containerd does.
    fn cri_image(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&CriImage) -> bool,
    ) -> Result<CriImage> {
        until(&format!("{name} to be {what} for the CRI"), SOON, || {
            Ok(match self.containerd.cri_image(name)? {
                Some(image) if is(&image) => Look::Seen(image),
                other => Look::NotYet(format!("{other:?}")),
            })
        })
    }

    /// Names of the unpacked layers in the kubelet's namespace.
    fn layers(&self) -> Result<BTreeSet<String>> {
        let ctr = Ctr::new(&self.ground, &self.containerd).within(NAMESPACE);
        let output = ctr.run(&["snapshots", "list"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let committed = text
            .lines()
            .filter(|line| line.trim_end().ends_with("Committed"));
        let names = committed.filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Whether this containerd tells the kubelet about pins: 1.6.20 of Debian 12 does not.
    fn tells_pinned(&self) -> Result<bool> {
        Ok(!self
            .containerd
            .version()?
            .trim_start_matches('v')
            .starts_with("1.6.20"))
    }
}

#[test]
fn an_image_of_the_agent_is_the_kubelets_by_all_its_names() -> Result<()> {
    let mut scene = Scene::new()?;
    let reference = scene.push("web:1")?;
    let pulled = scene.pull(&reference)?;
    let pinned = scene.tells_pinned()?;
    let by_digest = format!("127.0.0.1:5001/web@{}", pulled.digest);
    let image = scene.cri_image(&reference, "pinned", |image| image.pinned == pinned)?;
    assert_eq!(image.repo_tags, [reference.as_str()]);
    assert_eq!(image.repo_digests, [by_digest.as_str()]);
    for name in [by_digest.as_str(), image.id.as_str()] {
        assert_eq!(scene.cri_image(name, "there", |_| true)?, image, "{name}");
    }

    // What the plugin reads when it starts is the same.
    scene.containerd.stop()?;
    scene.containerd.start_again(&scene.ground)?;
    assert_eq!(
        scene.cri_image(&reference, "there", |found| *found == image)?,
        image
    );

    // Another name of the same image, pulled by its digest, goes alone; the last one takes all.
    let answer = scene.agent.cli().json(&["image", "pull", &by_digest])?;
    answer.document::<ImageDocument>(0)?;
    let cli = scene.agent.cli();
    cli.json(&["image", "unpin", &reference])?.ok()?;
    let evicted: EvictResult = cli.json(&["image", "evict"])?.document(0)?;
    assert_eq!(evicted.evicted.len(), 2, "{evicted:?}");
    assert_eq!(scene.layers()?, BTreeSet::new());
    until("the CRI to have no image", SOON, || {
        let images = scene.containerd.cri_images()?;
        Ok(match images.is_empty() {
            true => Look::Seen(()),
            false => Look::NotYet(format!("{images:?}")),
        })
    })
}

#[test]
fn an_image_of_the_kubelets_is_adopted_not_pulled_again_and_given_back() -> Result<()> {
    let scene = Scene::new()?;
    let reference = scene.push("web:1")?;
    scene.containerd.cri_pull(&reference)?;
    let before = scene.cri_image(&reference, "pulled", |image| !image.pinned)?;
    let (asked, layers) = (scene.proxy.log().len(), scene.layers()?);
    let adopted = scene.pull(&reference)?;
    assert_eq!((adopted.state, adopted.receipt), (ImageState::Ready, None));
    assert_eq!(scene.proxy.log().len(), asked, "{:#?}", scene.proxy.log());
    assert_eq!(scene.layers()?, layers);
    let pinned = scene.tells_pinned()?;
    let image = scene.cri_image(&reference, "pinned", |image| image.pinned == pinned)?;
    assert_eq!(image.repo_digests, before.repo_digests);

    let cli = scene.agent.cli();
    cli.json(&["image", "unpin", &reference])?.ok()?;
    let evicted: EvictResult = cli.json(&["image", "evict"])?.document(0)?;
    assert_eq!(evicted.evicted[0].reference, reference);
    assert_eq!(
        scene.cri_image(&reference, "given back", |image| !image.pinned)?,
        before
    );
    assert_eq!(scene.layers()?, layers);
    Ok(())
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn the_kubelet_starts_what_the_agent_prepared_and_leaves_it_alone() -> Result<()> {
    let mut scene = Scene::new()?;
    ensure!(scene.tells_pinned()?, "{MISSING}: containerd 2.2");
    scene.pull(&scene.push("pause:1")?)?;
    let web = scene.push("web:1")?;
    let prepared = scene.pull(&web)?;
    let idle = scene.push("idle:1")?;
    scene.pull(&idle)?;
    // Nobody pinned it: that it goes shows that the kubelet collects.
    let control = scene.push("control:1")?;
    scene.containerd.cri_pull(&control)?;
    let id = |name: &str| -> Result<String> { Ok(scene.cri_image(name, "there", |_| true)?.id) };
    let (idle_id, control_id) = (id(&idle)?, id(&control)?);
    let by_digest = format!("127.0.0.1:5001/web@{}", prepared.digest);
    let layers = scene.layers()?;
    let asked = scene.proxy.log().len();

    // Always above its threshold, and always short of disk: it collects whatever it may.
    let collection = "imageGCHighThresholdPercent: 1\nimageGCLowThresholdPercent: 0\n\
                      imageMinimumGCAge: 1ms\nevictionHard: { imagefs.available: 1Ei }\n";
    let kubelet = Kubelet::start(&scene.ground, &scene.containerd, collection)?;
    kubelet.run("present", &web, "IfNotPresent")?;
    let running = kubelet.wait_for("present", "running", |it| it.state == "running")?;
    assert_eq!(running.image_id, by_digest);
    assert_eq!(scene.proxy.log().len(), asked, "{:#?}", scene.proxy.log());
    let unpacked = scene.layers()?;
    ensure!(unpacked.is_subset(&layers), "{unpacked:?} of {layers:?}");

    // With the registry gone, by any policy that allows it and by any name.
    scene.registry.stop()?;
    kubelet.run("never", &web, "Never")?;
    kubelet.run("digest", &by_digest, "Never")?;
    for pod in ["never", "digest"] {
        let running = kubelet.wait_for(pod, "running", |it| it.state == "running")?;
        assert_eq!(running.image_id, by_digest, "{pod}");
    }

    // What a pod runs is in use for the agent, whatever name the pod has for it.
    let cli = scene.agent.cli();
    cli.json(&["image", "unpin", &web])?.ok()?;
    let evicted: EvictResult = cli.json(&["image", "evict"])?.document(0)?;
    assert_eq!(evicted.evicted, Vec::new());
    let why = evicted.kept.iter().find(|kept| kept.reference == web);
    assert_eq!(why.context("it is not kept")?.why, "inUse");
    // The control image may have gone, nothing else has come or gone.
    let unpacked = scene.layers()?;
    ensure!(unpacked.is_subset(&layers), "{unpacked:?} of {layers:?}");
    kubelet.wait_for_log(&["Removing image to free bytes", &control_id], COLLECTED)?;
    kubelet.wait_for_log(&["Image is pinned, skipping", &idle_id], SOON)?;
    until("the control image to go", SOON, || {
        Ok(match scene.containerd.cri_image(&control)? {
            None => Look::Seen(()),
            Some(image) => Look::NotYet(format!("{image:?}")),
        })
    })?;
    for name in [&web, &idle] {
        assert!(scene.cri_image(name, "there", |_| true)?.pinned, "{name}");
    }
    let removed = kubelet.tail(usize::MAX);
    let removed = removed
        .lines()
        .filter(|line| line.contains("Removing image to free bytes"));
    let others: Vec<&str> = removed.filter(|line| !line.contains(&control_id)).collect();
    assert_eq!(others, Vec::<&str>::new());
    let ready = scene.agent.cli().json(&["image", "list"])?;
    let ready: nodeagent::api::v1::ImageList = ready.document(0)?;
    for image in [&web, &idle] {
        let found = ready
            .images
            .iter()
            .find(|listed| listed.reference == **image);
        assert_eq!(found.context("no such image")?.state, ImageState::Ready);
    }
    Ok(())
}
