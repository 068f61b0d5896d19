//! The catalogue of images: what containerd makes of them is what their names say.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::image::catalogue::{catalogue, refused_by_containerd};
use nodeagent_tests::image::layout::Layout;
use nodeagent_tests::tree::{Kind, Tree};
use nodeagent_tests::{Containerd, Ground, Registry};

/// containerd with a registry, and what it makes of images.
struct Oracle {
    containerd: Containerd,
    registry: Registry,
    ground: Ground,
}

impl Oracle {
    fn new() -> Result<Self> {
        let ground = Ground::new()?;
        Ok(Self {
            containerd: Containerd::start(&ground)?,
            registry: Registry::start(&ground)?,
            ground,
        })
    }

    fn build(&self, name: &str) -> Result<Layout> {
        let spec = catalogue().into_iter().find(|image| image.name == name);
        let spec = spec.with_context(|| format!("no image {name}"))?;
        spec.build(&self.ground.path(&format!("image-{name}")))
    }

    /// The tree of an image by containerd's own unpack.
    fn tree(&self, name: &str) -> Result<Tree> {
        let layout = self.build(name)?;
        let reference = layout.place(&self.registry, &format!("{name}:1"))?;
        let ctr = Ctr::new(&self.ground, &self.containerd);
        ctr.pull(&reference)?;
        let chain_id = layout.chain_id()?;
        self.containerd
            .tree(&self.ground, ctr.namespace(), &chain_id)
    }
}

#[test]
fn containerd_unpacks_every_image_of_the_catalogue() -> Result<()> {
    let oracle = Oracle::new()?;
    let ctr = Ctr::new(&oracle.ground, &oracle.containerd);
    let images = catalogue();
    let names: BTreeSet<&str> = images.iter().map(|image| image.name).collect();
    assert_eq!(names.len(), images.len(), "two images have one name");
    ensure!(images.len() >= 20, "{} images", images.len());
    for image in &images {
        let layout = oracle.build(image.name)?;
        let reference = layout.place(&oracle.registry, &format!("{}:1", image.name))?;
        ctr.pull(&reference).context(image.name)?;
    }
    for image in refused_by_containerd() {
        let layout = image.build(&oracle.ground.path(image.name))?;
        let reference = layout.place(&oracle.registry, &format!("{}:1", image.name))?;
        let refused = ctr.pull(&reference).unwrap_err().to_string();
        ensure!(refused.contains("unhandled tar header type"), "{refused}");
    }
    Ok(())
}

#[test]
fn an_image_made_twice_has_the_same_digest() -> Result<()> {
    let ground = Ground::new()?;
    for image in catalogue().iter().filter(|image| image.is_reproducible()) {
        let first = image.build(&ground.path(&format!("{}-1", image.name)))?;
        let again = image.build(&ground.path(&format!("{}-2", image.name)))?;
        assert_eq!(first.digest(), again.digest(), "{}", image.name);
    }
    Ok(())
}

#[test]
fn the_trees_are_what_the_names_say() -> Result<()> {
    let oracle = Oracle::new()?;
    let names = |tree: &Tree, below: &str| -> Vec<String> {
        let below = tree.0.keys().filter(|path| path.starts_with(below));
        below.map(|path| path.display().to_string()).collect()
    };

    let hidden = oracle.tree("a-whiteout-hides-a-file")?;
    assert_eq!(names(&hidden, "etc"), ["etc", "etc/kept"]);

    let opaque = oracle.tree("an-opaque-directory-has-only-its-own")?;
    assert_eq!(names(&opaque, "var"), ["var", "var/deep", "var/deep/own"]);
    assert_eq!(opaque.at("var/deep").context("var/deep")?.mode, 0o711);

    let implicit = oracle.tree("an-implicit-parent-is-as-the-lower-layer-has-it")?;
    let parent = implicit.at("var/deep").context("var/deep")?;
    assert_eq!((parent.mode, parent.owner), (0o700, (7, 8)));

    let links = oracle.tree("hard-links-are-one-file")?;
    let first = |name: &str| match &links.at(name).context("no such link")?.kind {
        Kind::File { first, .. } => Ok(first.clone()),
        other => anyhow::bail!("{name} is {other:?}"),
    };
    assert_eq!(first("three")?, PathBuf::from("bin/one"));

    let attributes = oracle.tree("extended-attributes-and-capabilities")?;
    let ping = attributes.at("bin/ping").context("bin/ping")?;
    let capability = ping.xattrs.get(b"security.capability".as_slice());
    let capability = capability.context("ping has no capability")?;
    assert_eq!(capability[..8], [1, 0, 0, 2, 0, 32, 0, 0]);

    let sparse = oracle.tree("sparse-files-in-pax-1.0")?;
    let Kind::File { size, .. } = sparse.at("parts").context("parts")?.kind else {
        anyhow::bail!("{sparse:?}");
    };
    assert_eq!(size, 2 << 20);
    let other = oracle.tree("sparse-files-in-pax-0.1")?;
    assert_eq!(sparse.differences(&other), Vec::<String>::new());

    let devices = oracle.tree("devices-and-pipes")?;
    let null = devices.at("dev/null").context("dev/null")?;
    assert_eq!(null.kind, Kind::Character(rustix::fs::makedev(1, 3)));
    Ok(())
}
