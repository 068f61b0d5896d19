//! Two real agents on one containerd: with one store of layers, and with a store each.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nodeagent::api::v1::{ImageDocument, ImageState};
use nodeagent_tests::faults::{At, Fault, FaultyRegistry, Rule};
use nodeagent_tests::image::cached;
use nodeagent_tests::image::layout::Layout;
use nodeagent_tests::tree::Kind;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Agent, Cli, Containerd, Ground, Registry};

const SOON: Duration = Duration::from_secs(20);
const LAYERS: usize = 8;

struct Scene {
    agents: [Agent; 2],
    containerd: Containerd,
    proxy: FaultyRegistry,
    _registry: Registry,
    image: Layout,
    ground: Ground,
}

impl Scene {
    /// Two agents, each in a namespace of its own, with these stores.
    fn new(stores: [&str; 2]) -> Result<Self> {
        let ground = Ground::new()?;
        let containerd = Containerd::start(&ground)?;
        let registry = Registry::start(&ground)?;
        let proxy = FaultyRegistry::start(&ground)?;
        let image = cached::layers(&ground.path("image"), LAYERS, 1_000_000)?;
        image.place(&registry, "layers:1")?;
        let agent = |name: &'static str, store: &str| -> Result<Agent> {
            let root = ground.path(store);
            // Nobody is asked twice because the machine is slow.
            let config = format!(
                "[images]\nroot = {root:?}\nhedge_after = \"60s\"\n[network]\ntable = {name:?}\n[host]\nid = {name:?}\n"
            );
            let mut agent = Agent::prepare_as(&ground, name, containerd.socket(), &config)?;
            agent.start(&ground)?;
            Ok(agent)
        };
        let agents = [agent("agent", stores[0])?, agent("second", stores[1])?];
        Ok(Self {
            agents,
            containerd,
            proxy,
            _registry: registry,
            image,
            ground,
        })
    }

    /// Both agents are asked for the image at the same time.
    fn both_pull(&self) -> [thread::JoinHandle<Result<ImageDocument>>; 2] {
        let cli = |agent: &Agent| agent.cli().clone();
        self.agents.each_ref().map(|agent| {
            let cli = cli(agent);
            thread::spawn(move || pull(&cli))
        })
    }

    /// Containers of both see every file of the image.
    fn both_have_it(&self) -> Result<()> {
        let chain_id = self.image.chain_id()?;
        for agent in &self.agents {
            let tree = self
                .containerd
                .tree(&self.ground, agent.namespace(), &chain_id)?;
            let sizes = tree.0.values().filter_map(|node| match node.kind {
                Kind::File { size, .. } => Some(size),
                _ => None,
            });
            assert_eq!(sizes.collect::<Vec<u64>>(), [1_000_000; LAYERS]);
        }
        Ok(())
    }
}

fn reference() -> String {
    FaultyRegistry::reference("layers:1")
}

fn pull(cli: &Cli) -> Result<ImageDocument> {
    cli.json(&["image", "pull", "--pin", &reference()])?
        .document(0)
}

fn joined(pull: thread::JoinHandle<Result<ImageDocument>>) -> Result<ImageDocument> {
    pull.join().map_err(|_| anyhow!("the caller panicked"))?
}

#[test]
fn two_agents_with_one_store_fetch_every_layer_once() -> Result<()> {
    let scene = Scene::new(["images", "images"])?;
    for pull in scene.both_pull() {
        let document = joined(pull)?;
        assert_eq!((document.state, document.pinned), (ImageState::Ready, true));
    }
    assert_eq!(scene.proxy.layer_bytes(), scene.image.size());
    assert_eq!(
        scene.proxy.layers_asked_for(),
        LAYERS,
        "{:#?}",
        scene.proxy.log()
    );
    scene.both_have_it()
}

#[test]
fn an_agent_that_is_killed_does_no_harm_to_the_other_on_its_store() -> Result<()> {
    let mut scene = Scene::new(["images", "images"])?;
    let pause = Fault::Pause(At::Middle, Duration::from_secs(2));
    scene.proxy.set([Rule::layers(pause)]);
    let [first, second] = scene.both_pull();
    until("layers to be asked for", SOON, || {
        Ok(match scene.proxy.layers_asked_for() {
            asked if asked >= 2 => Look::Seen(()),
            asked => Look::NotYet(format!("{asked}")),
        })
    })?;
    scene.agents[0].kill()?;
    scene.proxy.set([]);
    drop(first.join());
    assert_eq!(joined(second)?.state, ImageState::Ready);
    for layer in scene.image.layers() {
        let (asked, passed) = scene.proxy.passed(&layer.digest);
        // What had not come whole when the agent died comes again, and nothing else.
        ensure!(asked <= 2, "{} was asked for {asked} times", layer.digest);
        ensure!(
            passed <= layer.size + layer.size / 2 + (32 << 10),
            "{passed} of {layer:?}"
        );
    }
    // The one that was killed finds all of it.
    let before = scene.proxy.layer_bytes();
    scene.agents[0].start(&scene.ground)?;
    let document = pull(scene.agents[0].cli())?;
    assert_eq!(document.state, ImageState::Ready);
    let receipt = document.receipt.context("no receipt")?;
    assert_eq!(receipt.fetched_bytes, 0, "{receipt:?}");
    assert_eq!(scene.proxy.layer_bytes(), before);
    scene.both_have_it()
}

#[test]
fn two_agents_with_a_store_each_do_not_meet_on_their_containerd() -> Result<()> {
    let scene = Scene::new(["images-1", "images-2"])?;
    for pull in scene.both_pull() {
        let document = joined(pull)?;
        assert_eq!(document.state, ImageState::Ready);
        let receipt = document.receipt.context("no receipt")?;
        assert_eq!(receipt.fetched_bytes, scene.image.size());
    }
    assert_eq!(scene.proxy.layer_bytes(), 2 * scene.image.size());
    // What one evicts, the other has.
    let cli = scene.agents[0].cli();
    cli.json(&["image", "unpin", &reference()])?.ok()?;
    cli.json(&["image", "evict"])?.ok()?;
    let before = scene.proxy.log().len();
    let again = pull(scene.agents[1].cli())?;
    assert_eq!(again.state, ImageState::Ready);
    assert_eq!(scene.proxy.log().len(), before, "{:#?}", scene.proxy.log());
    pull(scene.agents[0].cli())?;
    scene.both_have_it()
}
