//! The agent is killed at each stage of a pull: what was verified is not fetched again, and the image
//! that comes of it is whole.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent::api::v1::{ImageDocument, ImageList, ImageState, LayerStage, VerifyResult};
use nodeagent_tests::faults::{At, Fault, FaultyRegistry, Rule};
use nodeagent_tests::image::cached;
use nodeagent_tests::image::layout::Layout;
use nodeagent_tests::tree::Kind;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{TestHost, http};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(30);
/// Layers of the image, and bytes of the file in each.
const LAYERS: usize = 40;
const BYTES: usize = 200_000;
/// Bytes of a connection that a kill may lose.
const PIECE: u64 = 1 << 20;

struct Scene {
    host: TestHost,
    proxy: FaultyRegistry,
    image: Layout,
}

impl Scene {
    fn new() -> Result<Self> {
        let host = TestHost::start()?;
        let proxy = FaultyRegistry::start(&host.ground)?;
        let image = cached::layers(&host.ground.path("image"), LAYERS, BYTES)?;
        image.place(&host.registry, "layers:1")?;
        Ok(Self { host, proxy, image })
    }

    fn pull(&self) -> thread::JoinHandle<Result<ImageDocument>> {
        let (cli, reference) = (
            self.host.cli().clone(),
            FaultyRegistry::reference("layers:1"),
        );
        thread::spawn(move || cli.json(&["image", "pull", &reference])?.document(0))
    }

    /// Waits until so many of the layers are wanted.
    fn wait_for(&self, what: &str, wanted: impl Fn(&[LayerStage]) -> bool) -> Result<()> {
        until(what, SOON, || {
            let socket = self.host.agent.socket();
            let (answer, _) = http::request_unix(socket, "GET", "/v1/images", b"", SOON)?;
            let list: ImageList = serde_json::from_str(&answer.text())?;
            let pull = list.pulls.into_iter().next();
            let stages: Vec<LayerStage> = pull
                .map(|pull| pull.layers.iter().map(|layer| layer.stage).collect())
                .unwrap_or_default();
            Ok(match wanted(&stages) {
                true => Look::Seen(()),
                false => Look::NotYet(format!("{stages:?}, and {:?}", list.images)),
            })
        })
    }

    /// Layers that are whole and verified, with how often each was asked for.
    fn verified(&self) -> BTreeMap<String, usize> {
        let blobs = self.host.agent.state().join("images/blobs/sha256");
        let digests = self.image.layers().iter().map(|layer| &layer.digest);
        let whole =
            digests.filter(|digest| blobs.join(digest.trim_start_matches("sha256:")).exists());
        whole
            .map(|digest| (digest.clone(), self.proxy.passed(digest).0))
            .collect()
    }

    /// Starts a pull, kills the agent when `reached` returns, and pulls again; returns how many
    /// layers were verified by then.
    fn killed_when(mut self, reached: impl FnOnce(&Self) -> Result<()>) -> Result<usize> {
        let first = self.pull();
        reached(&self)?;
        self.host.agent.kill()?;
        drop(first.join());
        self.goes_on()
    }

    fn goes_on(mut self) -> Result<usize> {
        self.proxy.set([]);
        let verified = self.verified();
        self.host.agent.start(&self.host.ground)?;
        let again = self.pull().join();
        let again = again.map_err(|_| anyhow::anyhow!("the caller panicked"))?;
        let again = again.with_context(|| self.host.agent.tail(40))?;
        assert_eq!(again.state, ImageState::Ready);
        for (digest, asked) in &verified {
            let (now, _) = self.proxy.passed(digest);
            assert_eq!(now, *asked, "{digest} was verified, and asked for again");
        }
        for layer in self.image.layers() {
            let twice = self.proxy.sent_twice(&layer.digest);
            ensure!(twice <= PIECE, "{twice} bytes of {} twice", layer.digest);
        }
        let answer = self.host.cli().json(&["image", "verify"])?;
        let right: VerifyResult = answer.document(0)?;
        assert_eq!((right.right, right.absent), (LAYERS as u32, 0));
        let (namespace, chain) = (self.host.agent.namespace(), self.image.chain_id()?);
        let tree = self
            .host
            .containerd
            .tree(&self.host.ground, namespace, &chain)?;
        let sizes = tree.0.values().filter_map(|node| match node.kind {
            Kind::File { size, .. } => Some(size),
            _ => None,
        });
        assert_eq!(sizes.collect::<Vec<u64>>(), [BYTES as u64; LAYERS]);
        self.nothing_is_left_where_layers_are_extracted()?;
        Ok(verified.len())
    }

    /// Directories of agents that extract, and trees in them.
    fn extracting(&self) -> Result<(usize, usize)> {
        let place = "containerd/root/io.containerd.snapshotter.v1.overlayfs/nodeagent";
        let agents = fs::read_dir(self.host.ground.path(place))?.flatten();
        // They come and go.
        let trees = agents.map(|own| fs::read_dir(own.path()).map_or(0, Iterator::count));
        let trees: Vec<usize> = trees.collect();
        Ok((trees.len(), trees.iter().sum()))
    }

    fn nothing_is_left_where_layers_are_extracted(&self) -> Result<()> {
        until("trees of the killed agent to go", SOON, || {
            Ok(match self.extracting()? {
                (1, 0) => Look::Seen(()),
                other => Look::NotYet(format!("{other:?} agents and trees")),
            })
        })
    }
}

/// containerd answers nobody as long as this lives.
struct Stopped(Pid);

impl Stopped {
    fn containerd(host: &TestHost) -> Result<Self> {
        let pid = host.containerd.pid().context("containerd does not run")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
        kill_process(pid, Signal::STOP).context("stop containerd")?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Where it is gone, there is nothing to go on.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn some(stages: &[LayerStage], stage: LayerStage) -> usize {
    stages.iter().filter(|known| **known == stage).count()
}

#[test]
fn killed_while_it_asks_for_the_manifest_it_asks_again() -> Result<()> {
    let scene = Scene::new()?;
    let pause = Fault::Pause(At::Middle, Duration::from_secs(20));
    scene.proxy.set([Rule::manifests(pause)]);
    let verified = scene.killed_when(|scene| {
        until("the manifest to be asked for", SOON, || {
            let log = scene.proxy.log();
            Ok(
                match log.iter().any(|past| past.request.contains("/manifests/")) {
                    true => Look::Seen(()),
                    false => Look::NotYet(format!("{log:?}")),
                },
            )
        })
    })?;
    assert_eq!(verified, 0);
    Ok(())
}

#[test]
fn killed_while_layers_come_it_fetches_what_is_missing() -> Result<()> {
    let scene = Scene::new()?;
    // The lower half comes, the upper half stays on the way.
    let pause = Fault::Pause(At::Middle, Duration::from_secs(20));
    let upper = scene.image.layers()[LAYERS / 2..].iter();
    let pauses: Vec<Rule> = upper
        .map(|layer| Rule::blob(&layer.digest, pause))
        .collect();
    scene.proxy.set(pauses);
    let verified = scene.killed_when(|scene| {
        scene.wait_for("half of the layers", |stages| {
            stages.len() - some(stages, LayerStage::Fetching) >= LAYERS / 4
        })
    })?;
    ensure!((LAYERS / 4..=LAYERS / 2).contains(&verified), "{verified}");
    Ok(())
}

#[test]
fn killed_while_layers_are_extracted_it_fetches_nothing_twice() -> Result<()> {
    let verified = Scene::new()?.killed_when(|scene| {
        scene.wait_for("a layer that is being extracted", |stages| {
            some(stages, LayerStage::Extracting) > 0
        })
    })?;
    ensure!(verified > 0, "nothing was verified");
    Ok(())
}

#[test]
fn killed_before_a_layer_is_placed_it_fetches_nothing_twice() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.proxy.set([Rule::layers(Fault::Pause(
        At::Middle,
        Duration::from_secs(1),
    ))]);
    let first = scene.pull();
    until("layers to be asked for", SOON, || {
        Ok(match scene.proxy.layers_asked_for() {
            0 => Look::NotYet("none".to_owned()),
            _ => Look::Seen(()),
        })
    })?;
    let stopped = Stopped::containerd(&scene.host)?;
    scene.proxy.set([]);
    until("layers that wait for their places", SOON, || {
        Ok(match (scene.verified().len(), scene.extracting()?) {
            (5.., (_, 5..)) => Look::Seen(()),
            other => Look::NotYet(format!("{other:?} layers, agents and trees")),
        })
    })?;
    scene.host.agent.kill()?;
    drop((stopped, first.join()));
    let verified = scene.goes_on()?;
    ensure!(verified > 0, "nothing was verified");
    Ok(())
}

#[test]
fn killed_between_commits_it_goes_on_above_what_is_committed() -> Result<()> {
    let mut scene = Scene::new()?;
    let first = scene.pull();
    scene.wait_for("some layers that are committed", |stages| {
        (1..LAYERS - 5).contains(&some(stages, LayerStage::Ready))
    })?;
    // In the middle of a call to it.
    let stopped = Stopped::containerd(&scene.host)?;
    scene.host.agent.kill()?;
    drop((stopped, first.join()));
    let verified = scene.goes_on()?;
    ensure!(verified > 0, "nothing was verified");
    Ok(())
}
