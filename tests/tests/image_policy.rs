//! The policy of images, through the real agent with a real registry: what may not be had is
//! refused before its layers are asked for, by pulls and by apps alike.

use std::fs;

use anyhow::{Result, ensure};
use nodeagent_tests::documents::Problem;
use nodeagent_tests::faults::FaultyRegistry;
use nodeagent_tests::image::Pushed;
use nodeagent_tests::image::signer::Signer;
use nodeagent_tests::{Image, Manifest, Registry, TestHost};
use serde_json::Value;

const BOUND: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";

/// A host whose agent has this policy, with keys `ours` and `theirs`; the web image is pushed.
struct Scene {
    host: TestHost,
    ours: Signer,
    theirs: Signer,
    web: Pushed,
}

impl Scene {
    /// `policy` is given the file of our public key.
    fn new(policy: impl Fn(&str) -> String) -> Result<Self> {
        let mut host = TestHost::without_agent(BOUND)?;
        let ours = Signer::new(&host.ground.path("ours"))?;
        let theirs = Signer::new(&host.ground.path("theirs"))?;
        let policy = policy(&format!("{:?}", ours.public));
        host.agent.configure(&format!("{BOUND}{policy}"))?;
        host.agent.start(&host.ground)?;
        let web = host.push(&Image::web()?, "web:1")?;
        Ok(Self {
            host,
            ours,
            theirs,
            web,
        })
    }

    fn pull(&self, reference: &str) -> Result<nodeagent_tests::cli::Answer> {
        self.host.cli().json(&["image", "pull", reference])
    }

    /// The pull is refused for good, and the app, too; nothing came.
    fn refused(&self, reference: &str) -> Result<Problem> {
        let problem = self.pull(reference)?.problem(3)?;
        assert_eq!(problem.code, "image_refused", "{problem:?}");
        let manifest = Manifest::web("web").with("image", reference.into());
        let file = self.host.file("refused.yaml", &manifest.text())?;
        let apply = ["app", "apply", "-f", &file.to_string_lossy()];
        let said = format!("{:?}", self.host.cli().json(&apply)?.problem(3)?);
        ensure!(said.contains("the image policy refuses"), "{said}");
        self.nothing_came()?;
        Ok(problem)
    }

    fn nothing_came(&self) -> Result<()> {
        let images: Value = self.host.cli().json(&["image", "list"])?.document(0)?;
        assert_eq!(images["images"], Value::Array(Vec::new()));
        let blobs = self.host.agent.state().join("images/blobs/sha256");
        let blobs = fs::read_dir(blobs).map(Iterator::count).unwrap_or(0);
        assert_eq!(blobs, 0, "blobs are in the store");
        self.host.assert_nothing_left()
    }

    fn serves(&self, reference: &str) -> Result<()> {
        let manifest = Manifest::web("web").with("image", reference.into());
        self.host.apply(&manifest)?;
        let task = self.host.cli().activate("web", 1, "in")?;
        self.host.assert_serves(&task.instances[0])?;
        self.host.remove_app("web")
    }
}

fn signed(key: &str) -> String {
    format!(
        "[[images.policy.rules]]\nscope = \"127.0.0.1:5000\"\nrequire_signature = [{key}]\n\
         [[images.policy.rules]]\nscope = \"127.0.0.1:5001\"\nrequire_signature = [{key}]\n"
    )
}

#[test]
fn unsigned_is_refused_before_a_layer_is_asked_for() -> Result<()> {
    let scene = Scene::new(signed)?;
    let proxy = FaultyRegistry::start(&scene.host.ground)?;
    let problem = scene.refused(&FaultyRegistry::reference("web:1"))?;
    ensure!(
        problem.detail.contains("there is no signature"),
        "{problem:?}"
    );
    assert_eq!(proxy.layers_asked_for(), 0);
    assert_eq!(proxy.passed(&scene.web.layer), (0, 0));
    Ok(())
}

#[test]
fn signed_by_another_key_is_refused_and_says_so() -> Result<()> {
    let scene = Scene::new(signed)?;
    let registry = &scene.host.registry;
    scene.theirs.sign(registry, "web", &scene.web.digest)?;
    let problem = scene.refused(&scene.web.reference)?;
    ensure!(
        problem.detail.contains("not made with any of the keys"),
        "{problem:?}"
    );
    Ok(())
}

#[test]
fn signed_by_the_key_of_the_rule_is_pulled_and_serves_without_its_registry() -> Result<()> {
    let mut scene = Scene::new(signed)?;
    let registry = &scene.host.registry;
    scene.ours.sign(registry, "web", &scene.web.digest)?;
    let pulled: Value = scene.pull(&scene.web.reference)?.document(0)?;
    assert_eq!(pulled["state"], "ready");
    scene.serves(&scene.web.reference)?;
    // Judged again by the signature that was kept.
    scene.host.registry.stop()?;
    let again: Value = scene.pull(&scene.web.reference)?.document(0)?;
    assert_eq!(again["state"], "ready");
    Ok(())
}

#[test]
fn what_is_here_is_judged_by_the_policy_and_the_keys_of_the_day() -> Result<()> {
    let mut scene = Scene::new(signed)?;
    let registry = &scene.host.registry;
    scene.ours.sign(registry, "web", &scene.web.digest)?;
    scene.pull(&scene.web.reference)?.ok()?;
    // The key is replaced, the registry has no signature by the new one.
    fs::copy(&scene.theirs.public, &scene.ours.public)?;
    let problem = scene.pull(&scene.web.reference)?.problem(3)?;
    assert_eq!(problem.code, "image_refused", "{problem:?}");
    // The image was signed anew.
    let registry = &scene.host.registry;
    scene.theirs.sign(registry, "web", &scene.web.digest)?;
    scene.pull(&scene.web.reference)?.ok()?;
    // A policy that no longer names it.
    let other = "[[images.policy.rules]]\nscope = \"ghcr.io\"\n";
    scene.host.agent.stop()?;
    scene.host.agent.configure(&format!("{BOUND}{other}"))?;
    scene.host.agent.start(&scene.host.ground)?;
    let problem = scene.pull(&scene.web.reference)?.problem(3)?;
    ensure!(problem.detail.contains("no rule is for it"), "{problem:?}");
    Ok(())
}

#[test]
fn a_new_instance_is_judged_by_the_policy_of_the_day() -> Result<()> {
    let mut scene = Scene::new(signed)?;
    let registry = &scene.host.registry;
    scene.ours.sign(registry, "web", &scene.web.digest)?;
    scene.host.apply(&Manifest::web("web").armed(0))?;
    // By the kept signature, without a registry.
    scene.host.registry.stop()?;
    let task = scene.host.cli().activate("web", 1, "one")?;
    scene.host.assert_serves(&task.instances[0])?;

    let other = "[[images.policy.rules]]\nscope = \"ghcr.io\"\n";
    scene.host.agent.stop()?;
    scene.host.agent.configure(&format!("{BOUND}{other}"))?;
    scene.host.agent.start(&scene.host.ground)?;
    let activate = ["activate", "web", "--to", "2", "--deadline", "5s"];
    let failed = format!("{:?}", scene.host.cli().json(&activate)?);
    ensure!(failed.contains("the image policy refuses"), "{failed}");
    // What exists is not judged again, also when it comes back with its rootfs.
    scene.host.assert_serves(&task.instances[0])?;
    scene.host.reboot()?;
    scene.host.agent.start(&scene.host.ground)?;
    scene
        .host
        .wait_for_pool("web", "the one that was there", |pool| pool.active == 1)?;
    scene.host.assert_serves(&task.instances[0])?;
    scene.host.remove_app("web")
}

#[test]
fn a_tag_is_refused_where_a_digest_is_wanted() -> Result<()> {
    let scene = Scene::new(|_| {
        "[[images.policy.rules]]\nscope = \"127.0.0.1:5000\"\nrequire_digest = true\n".to_owned()
    })?;
    let problem = scene.refused(&scene.web.reference)?;
    ensure!(problem.detail.contains("NAME@sha256:"), "{problem:?}");
    let by_digest = format!("{}/web@{}", Registry::address(), scene.web.digest);
    scene.pull(&by_digest)?.ok()?;
    scene.serves(&by_digest)
}

#[test]
fn a_registry_that_is_not_on_the_list_is_refused_without_being_asked() -> Result<()> {
    let scene = Scene::new(|_| "[[images.policy.rules]]\nscope = \"ghcr.io/team\"\n".to_owned())?;
    let proxy = FaultyRegistry::start(&scene.host.ground)?;
    let problem = scene.refused(&FaultyRegistry::reference("web:1"))?;
    ensure!(
        problem.detail.contains("there are rules for ghcr.io/team"),
        "{problem:?}"
    );
    assert_eq!(proxy.log(), Vec::new());
    Ok(())
}

#[test]
fn a_key_that_cannot_be_read_refuses_the_images_of_its_rule_alone() -> Result<()> {
    let scene = Scene::new(|_| {
        "[[images.policy.rules]]\nscope = \"127.0.0.1:5000/web\"\nrequire_signature = [\"/nowhere/key.pub\"]\n\
         [[images.policy.rules]]\nscope = \"127.0.0.1:5000\"\n"
            .to_owned()
    })?;
    let registry = &scene.host.registry;
    scene.ours.sign(registry, "web", &scene.web.digest)?;
    let problem = scene.refused(&scene.web.reference)?;
    ensure!(
        problem.detail.contains("/nowhere/key.pub cannot be read"),
        "{problem:?}"
    );
    let other = scene.host.push(&Image::web()?, "other:1")?;
    scene.pull(&other.reference)?.ok()?;
    Ok(())
}
