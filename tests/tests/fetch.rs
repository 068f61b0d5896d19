//! What fetches blobs, on real registries: TLS with an authority of one's own, mirrors, a store that
//! is killed, shared or full. The agent's own pulls are in `image_registries` and `image_faults`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use imagecache::blobs::Blobs;
use imagecache::fetch::{FetchOptions, Fetched, Fetcher, Urgency};
use imagecache::registry::Registries;
use imagecache::{Descriptor, PullError, Reference, Retry};
use nodeagent_tests::authority::Authority;
use nodeagent_tests::faults::{At, Fault, FaultyRegistry, Rule};
use nodeagent_tests::host::small_disk;
use nodeagent_tests::image::cached;
use nodeagent_tests::image::layout::Layout;
use nodeagent_tests::netns::Netns;
use nodeagent_tests::registry::{Access, SecuredRegistry};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Ground, Registry};

const ASIDE: u16 = 5010;
const SOON: Duration = Duration::from_secs(30);

/// What may come twice when a reader is killed: the piece that it had not written down, and what
/// was on its way, in the buffers of two sockets.
const ON_THE_WAY: u64 = 2 << 20;

/// A registry with an image of four layers.
struct Scene {
    image: Layout,
    registry: Registry,
    ground: Ground,
}

impl Scene {
    /// Of 2 MB each in gzip.
    fn new() -> Result<Self> {
        Self::with(5_000_000)
    }

    /// Of so many bytes each.
    fn with(bytes: usize) -> Result<Self> {
        let ground = Ground::new()?;
        let registry = Registry::start(&ground)?;
        let image = cached::layers(&ground.path("image"), 4, bytes)?;
        image.place(&registry, "layers:1")?;
        Ok(Self {
            image,
            registry,
            ground,
        })
    }

    fn store(&self) -> PathBuf {
        self.ground.path("store")
    }

    /// The directory of hosts, in which `name` is described by `text`.
    fn hosts(&self, name: &str, text: &str) -> Result<FetchOptions> {
        let directory = self.ground.path("hosts");
        let own = directory.join(name);
        fs::create_dir_all(&own)?;
        fs::write(own.join("hosts.toml"), text)?;
        Ok(FetchOptions {
            hosts_dir: Some(directory),
            ..FetchOptions::default()
        })
    }

    fn fetch(&self, reference: &str, options: &FetchOptions) -> Result<Vec<Fetched>> {
        let layers = descriptors(&self.image)?;
        fetch(
            self.ground.netns(),
            reference,
            options,
            &self.store(),
            &layers,
        )
    }

    /// Why a layer was not had.
    fn refused(&self, reference: &str, options: &FetchOptions) -> Result<PullError> {
        match self.fetch(reference, options) {
            Ok(fetched) => anyhow::bail!("{} layers were fetched", fetched.len()),
            Err(error) => error.downcast(),
        }
    }

    /// Fails unless the store has every layer, as its digest says.
    fn assert_whole(&self) -> Result<()> {
        let blobs = Blobs::open(&self.store())?;
        for layer in descriptors(&self.image)? {
            let blob = blobs.find(&layer.digest)?;
            let blob = blob.with_context(|| format!("{} is not there", layer.digest))?;
            let digest = nodeagent_tests::image::digest(&fs::read(&blob.path)?);
            assert_eq!(digest, layer.digest.to_string());
        }
        Ok(())
    }
}

/// Nobody is asked twice because the machine is slow.
fn patient() -> FetchOptions {
    FetchOptions {
        hedge_after: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(60),
        ..FetchOptions::default()
    }
}

fn descriptors(image: &Layout) -> Result<Vec<Descriptor>> {
    let layers = image.layers().iter().map(|layer| {
        Ok(Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.parse()?,
            size: layer.size,
        })
    });
    layers.collect()
}

/// Fetches the layers of `reference` one by one inside `netns`.
fn fetch(
    netns: &Netns,
    reference: &str,
    options: &FetchOptions,
    store: &Path,
    layers: &[Descriptor],
) -> Result<Vec<Fetched>> {
    netns.run(|| fetch_here(reference, options, store, layers))
}

/// The same in the network of this thread.
fn fetch_here(
    reference: &str,
    options: &FetchOptions,
    store: &Path,
    layers: &[Descriptor],
) -> Result<Vec<Fetched>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let reference: Reference = reference.parse()?;
        let registry = Registries::new(options).open(&reference)?;
        let (fetcher, blobs) = (Fetcher::new(options), Blobs::open(store)?);
        let sources = registry.sources();
        let mut fetched = Vec::new();
        for layer in layers {
            let urgency = Urgency::Activation;
            let blob = fetcher.blob(&sources, "layer", layer, &blobs, urgency);
            fetched.push(blob.await?);
        }
        Ok(fetched)
    })
}

#[test]
fn an_authority_in_the_directory_of_hosts_is_trusted_and_no_other() -> Result<()> {
    let scene = Scene::new()?;
    let authority = Authority::create(&scene.ground.path("authority"))?;
    let certificate = authority.sign("registry", "subjectAltName=IP:127.0.0.1")?;
    let tls = SecuredRegistry::start(&scene.ground, ASIDE, Access::Free, Some(&certificate))?;
    let (name, image) = (tls.address().to_string(), tls.reference("layers:1"));
    let url = format!("https://{name}");
    let table = |ca: &str| format!("server = {url:?}\n{ca}");

    let stranger = scene.refused(&image, &scene.hosts(&name, &table(""))?)?;
    let PullError::Unreachable { registry, .. } = &stranger else {
        anyhow::bail!("{stranger:?}");
    };
    assert_eq!(registry, &name);
    let chain = format!("{:#}", anyhow::Error::from(stranger));
    ensure!(chain.to_lowercase().contains("certificate"), "{chain}");

    let ca = format!("ca = {:?}\n", authority.file());
    scene.fetch(&image, &scene.hosts(&name, &table(&ca))?)?;
    scene.assert_whole()
}

#[test]
fn a_mirror_is_asked_first_and_is_enough() -> Result<()> {
    let mut scene = Scene::new()?;
    let mirror = SecuredRegistry::start(&scene.ground, ASIDE, Access::Free, None)?;
    let name = Registry::address().to_string();
    let url = format!("http://{}", mirror.address());
    let options = scene.hosts(&name, &format!("[host.{url:?}]\n"))?;
    scene.registry.stop()?;
    scene.fetch(&Registry::reference("layers:1"), &options)?;
    scene.assert_whole()
}

#[test]
fn a_mirror_with_faults_leaves_the_registry_to_be_asked() -> Result<()> {
    for fault in [
        Fault::Status(500, None),
        Fault::Status(404, None),
        Fault::WrongByte(At::Byte(1_000_000)),
        Fault::CutOff(At::Byte(0)),
        Fault::Stall(At::Middle),
    ] {
        let scene = Scene::new()?;
        let mirror = FaultyRegistry::start(&scene.ground)?;
        mirror.set([Rule::everything(fault)]);
        let name = Registry::address().to_string();
        let url = format!("http://{}", mirror.listens());
        let options = FetchOptions {
            stall_timeout: Duration::from_secs(2),
            hedge_after: Duration::from_secs(1),
            ..scene.hosts(&name, &format!("[host.{url:?}]\n"))?
        };
        let fetched = scene.fetch(&Registry::reference("layers:1"), &options);
        fetched.with_context(|| format!("{fault:?}"))?;
        scene.assert_whole()?;
        ensure!(
            !mirror.log().is_empty(),
            "{fault:?}: the mirror was not asked"
        );
    }
    Ok(())
}

#[test]
fn two_processes_on_one_store_fetch_each_blob_once() -> Result<()> {
    let scene = Scene::new()?;
    let proxy = FaultyRegistry::start(&scene.ground)?;
    proxy.set([Rule::layers(Fault::Slow(4_000_000))]);
    let image = FaultyRegistry::reference("layers:1");
    let mut other = in_another_process(&scene, &image)?;
    scene.fetch(&image, &patient())?;
    let ended = other.wait()?;
    ensure!(ended.success(), "the other process ended with {ended}");
    scene.assert_whole()?;
    for layer in scene.image.layers() {
        assert_eq!(
            proxy.passed(&layer.digest).1,
            layer.size,
            "{:#?}",
            proxy.log()
        );
    }
    Ok(())
}

#[test]
fn a_process_that_is_killed_leaves_what_it_fetched_to_the_next() -> Result<()> {
    let scene = Scene::with(20_000_000)?;
    let proxy = FaultyRegistry::start(&scene.ground)?;
    let image = FaultyRegistry::reference("layers:1");
    let size = scene.image.size();
    let whole = scene.image.layers().first().context("no layer")?;
    let mut asked_for = Vec::new();
    // Killed when a tenth, a half and nearly all of it has passed.
    for part in [size / 10, size / 2, size * 9 / 10] {
        proxy.set([Rule::layers(Fault::Slow(8_000_000))]);
        let mut process = in_another_process(&scene, &image)?;
        until("the layers to pass", SOON, || {
            Ok(match proxy.layer_bytes() {
                passed if passed >= part => Look::Seen(()),
                passed => Look::NotYet(format!("{passed} of {part}")),
            })
        })?;
        process.kill()?;
        process.wait()?;
        asked_for.push(proxy.passed(&whole.digest).0);
    }
    proxy.set([]);
    scene.fetch(&image, &patient())?;
    scene.assert_whole()?;
    for layer in scene.image.layers() {
        let twice = proxy.sent_twice(&layer.digest);
        ensure!(
            twice <= ON_THE_WAY,
            "{twice} bytes twice: {:#?}",
            proxy.log()
        );
    }
    // It was verified before the second kill.
    let (then, now) = (asked_for[1], proxy.passed(&whole.digest).0);
    ensure!(
        now == then && then <= 2,
        "asked for {then} times by the second kill and {now} times in all: {:#?}",
        proxy.log()
    );
    Ok(())
}

#[test]
fn a_store_without_room_says_so_and_goes_on_when_there_is_some() -> Result<()> {
    let scene = Scene::new()?;
    small_disk(&scene.store(), 5 << 20, 1000)?;
    let proxy = FaultyRegistry::start(&scene.ground)?;
    let image = FaultyRegistry::reference("layers:1");
    let full = scene.refused(&image, &FetchOptions::default())?;
    assert_eq!(full.retry(), Retry::Later, "{full:?}");
    let PullError::Blobs(_) = &full else {
        anyhow::bail!("{full:?}");
    };
    let chain = format!("{:#}", anyhow::Error::from(full));
    ensure!(chain.to_lowercase().contains("space"), "{chain}");

    let mut mount = Command::new("mount");
    mount.args(["-o", "remount,size=100m"]).arg(scene.store());
    ensure!(mount.status()?.success(), "remount");
    scene.fetch(&image, &FetchOptions::default())?;
    scene.assert_whole()?;
    let first = scene.image.layers().first().context("no layer")?;
    assert_eq!(proxy.sent_twice(&first.digest), 0);
    Ok(())
}

/// The same fetch by a process of its own.
fn in_another_process(scene: &Scene, reference: &str) -> Result<std::process::Child> {
    let layers: Vec<String> = scene
        .image
        .layers()
        .iter()
        .map(|layer| format!("{} {} {}", layer.media_type, layer.digest, layer.size))
        .collect();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "a_fetch_of_its_own", "--ignored"])
        .env("FETCH_REFERENCE", reference)
        .env("FETCH_STORE", scene.store())
        .env("FETCH_LAYERS", layers.join("\n"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    scene
        .ground
        .netns()
        .run(|| command.spawn().context("start another process"))
}

/// Not a test: the process of [`in_another_process`], which is in the network already.
#[test]
#[ignore = "started by another test"]
fn a_fetch_of_its_own() -> Result<()> {
    let layers = std::env::var("FETCH_LAYERS")?;
    let layers = layers.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [media_type, digest, size] = words[..] else {
            anyhow::bail!("not a layer: {line}");
        };
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.parse()?,
            size: size.parse()?,
        })
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let store = PathBuf::from(std::env::var_os("FETCH_STORE").context("no store")?);
    let reference = std::env::var("FETCH_REFERENCE")?;
    fetch_here(&reference, &patient(), &store, &layers).map(drop)
}
