//! Images as files, through the real agent: archives of skopeo come in, run without a registry,
//! and go out again.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nodeagent::api::v1::{EvictResult, ExportResult, ImageState, ImportResult};
use nodeagent_tests::cli::Answer;
use nodeagent_tests::{Image, Manifest, Registry, TestHost};

const NAME: &str = "registry.example/team/web:1";

/// A host with the web image in its registry.
fn host() -> Result<TestHost> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    Ok(host)
}

/// skopeo, in the host's network.
fn skopeo(host: &TestHost, to: &str) -> Result<()> {
    let from = format!("docker://{}", Registry::reference("web:1"));
    let options = ["--insecure-policy", "copy", "--src-tls-verify=false"];
    let netns = host.ground.netns();
    netns
        .command("skopeo", &[&options[..], &[&from, to]].concat())
        .map(drop)
}

fn image(host: &TestHost, arguments: &[&str]) -> Result<Answer> {
    host.cli().json(&[&["image"], arguments].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// An app of the image serves, with nobody to ask.
fn serves(host: &mut TestHost, reference: &str) -> Result<()> {
    host.registry.stop()?;
    let manifest = Manifest::web("web").with("image", reference.into());
    host.apply(&manifest)?;
    let task = host.cli().activate("web", 1, "in")?;
    host.assert_serves(&task.instances[0])?;
    host.remove_app("web")
}

#[test]
fn a_docker_archive_of_skopeo_becomes_ready_and_serves_with_its_registry_gone() -> Result<()> {
    let mut host = host()?;
    let file = host.ground.path("web.tar");
    skopeo(&host, &format!("docker-archive:{}:{NAME}", text(&file)))?;
    let imported: ImportResult = image(&host, &["import", "--pin", text(&file)])?.document(0)?;
    let [web] = imported.images.as_slice() else {
        anyhow::bail!("{imported:?}");
    };
    assert_eq!(
        (web.reference.as_str(), web.state, web.pinned),
        (NAME, ImageState::Ready, true)
    );
    let receipt = web.receipt.as_ref().context("no receipt")?;
    assert_eq!(receipt.fetched_bytes, 0);
    ensure!(
        receipt.layers.iter().all(|layer| layer.from == "import"),
        "{receipt:?}"
    );
    // By digest: the registry of this name does not exist.
    let by_digest = format!("{NAME}@{}", web.digest);
    image(&host, &["pull", NAME])?.ok()?;
    serves(&mut host, &by_digest)
}

#[test]
fn what_an_uncompressed_image_takes_is_counted_with_what_was_unpacked_of_it() -> Result<()> {
    let host = host()?;
    let file = host.ground.path("web.tar");
    skopeo(&host, &format!("docker-archive:{}:{NAME}", text(&file)))?;
    let imported: ImportResult = image(&host, &["import", text(&file)])?.document(0)?;
    let web = imported.images.first().context("nothing")?;
    let plan: EvictResult = image(&host, &["evict", "--dry-run"])?.document(0)?;
    ensure!(plan.freed_bytes * 2 > web.bytes * 3, "{plan:?}, {web:?}");
    Ok(())
}

#[test]
fn a_layout_keeps_its_digest_and_takes_the_name_that_is_given() -> Result<()> {
    let mut host = host()?;
    let directory = host.ground.path("layout");
    skopeo(&host, &format!("oci:{}", text(&directory)))?;
    let unnamed = image(&host, &["import", text(&directory)])?.problem(3)?;
    assert_eq!(unnamed.code, "image_refused");
    ensure!(
        unnamed.detail.contains("a name has to be given"),
        "{unnamed:?}"
    );
    let name = Registry::reference("web:1");
    let import = ["import", "--name", &name, text(&directory)];
    let imported: ImportResult = image(&host, &import)?.document(0)?;
    let index = fs::read_to_string(directory.join("index.json"))?;
    ensure!(index.contains(&imported.images[0].digest), "{index}");
    let by_digest = format!("{name}@{}", imported.images[0].digest);
    serves(&mut host, &by_digest)
}

#[test]
fn an_export_is_imported_by_another_host_and_is_the_same_image() -> Result<()> {
    let first = host()?;
    let reference = Registry::reference("web:1");
    image(&first, &["pull", &reference])?.ok()?;
    let file = first.ground.path("out.tar");
    let export = ["export", &reference, "-f", text(&file)];
    let exported: ExportResult = image(&first, &export)?.document(0)?;
    assert_eq!(exported.bytes, fs::metadata(&file)?.len());
    // What is there stays, unless it is said.
    let again = image(&first, &export)?.problem(3)?;
    ensure!(again.detail.contains("exists"), "{again:?}");
    image(&first, &[&export[..], &["--force"]].concat())?.ok()?;
    let beside = fs::read_dir(first.ground.path("."))?.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.ends_with(".part").then_some(name)
    });
    assert_eq!(beside.collect::<Vec<_>>(), Vec::<String>::new());

    let mut second = TestHost::start()?;
    let imported: ImportResult = image(&second, &["import", text(&file)])?.document(0)?;
    assert_eq!(imported.images[0].reference, reference);
    let by_digest = format!("{reference}@{}", imported.images[0].digest);
    serves(&mut second, &by_digest)?;
    let absent = image(&second, &["export", "r.lan/none:1", "-f", "/tmp/none.tar"])?;
    assert_eq!(absent.problem(4)?.code, "not_found");
    Ok(())
}

#[test]
fn what_is_no_archive_is_refused_and_leaves_nothing() -> Result<()> {
    let host = host()?;
    let whole = host.ground.path("web.tar");
    skopeo(&host, &format!("docker-archive:{}:{NAME}", text(&whole)))?;
    let bytes = fs::read(&whole)?;
    let cut = host.ground.path("cut.tar");
    fs::write(&cut, &bytes[..bytes.len() / 2])?;
    let junk = host.file("junk.tar", "no archive at all")?;
    for (path, why) in [
        (text(&cut), ""),
        (text(&junk), ""),
        ("/nowhere/web.tar", "cannot open /nowhere/web.tar"),
        ("/dev/null", "neither a file nor a directory"),
    ] {
        let problem = image(&host, &["import", path])?.problem(3)?;
        assert_eq!(problem.code, "image_refused", "{path}: {problem:?}");
        ensure!(problem.detail.contains(why), "{path}: {problem:?}");
    }
    let list = image(&host, &["list"])?.ok()?;
    ensure!(list.stdout.contains("\"images\": []"), "{list}");
    host.assert_nothing_left()
}

#[test]
fn the_policy_holds_for_imports() -> Result<()> {
    let rules = "[images.policy]\nrules = [{ scope = \"ghcr.io\" }]\n";
    let config = format!("[discovery.file]\npropagation_bound = \"100ms\"\n{rules}");
    let host = TestHost::start_with(&config)?;
    host.push(&Image::web()?, "web:1")?;
    let file = host.ground.path("web.tar");
    skopeo(&host, &format!("docker-archive:{}:{NAME}", text(&file)))?;
    let problem = image(&host, &["import", text(&file)])?.problem(3)?;
    ensure!(
        problem.detail.contains("the image policy refuses"),
        "{problem:?}"
    );
    let allowed = ["import", "--name", "ghcr.io/team/web:1", text(&file)];
    image(&host, &allowed)?.ok()?;
    Ok(())
}
