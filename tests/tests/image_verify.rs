//! What lies on the disk is looked at: unpacked layers that are damaged are told, and made anew
//! where nothing stands on them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent::api::v1::{
    DamagedState, ImageList, ImageState, NotCompared, VerifyResult, WhyNotCompared,
};
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::image::catalogue::{catalogue, refused_by_containerd};
use nodeagent_tests::image::{Image, PAGE, cached};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Manifest, Registry, TestHost};

const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";
const SOON: Duration = Duration::from_secs(30);
const LAYER_FILE: &str = "file-0";
const PAGE_FILE: &str = "www/index.html";

/// `image verify`, which ends with this code.
fn verified(host: &TestHost, arguments: &[&str], code: i32) -> Result<VerifyResult> {
    let verify = [&["image", "verify"], arguments].concat();
    host.cli().json(&verify)?.document(code)
}

fn on_disk(host: &TestHost, path: &str) -> Result<PathBuf> {
    host.containerd.unpacked(&host.ground, path)
}

/// One bit of the first byte of a file changes, and nothing else.
fn flip(file: &PathBuf) -> Result<()> {
    let modified = fs::metadata(file)?.modified()?;
    let mut bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    bytes[0] ^= 1;
    fs::write(file, &bytes)?;
    Ok(fs::File::options()
        .write(true)
        .open(file)?
        .set_modified(modified)?)
}

/// Neither views nor leases nor trees of a look are left.
fn nothing_left(host: &TestHost) -> Result<()> {
    let namespace = host.agent.namespace();
    assert_eq!(host.containerd.leases(namespace)?, Vec::<String>::new());
    assert_eq!(
        host.containerd.half_unpacked(&host.ground)?,
        Vec::<PathBuf>::new()
    );
    Ok(())
}

#[test]
fn a_damaged_file_of_an_unpacked_image_is_told_and_the_image_is_unpacked_anew() -> Result<()> {
    let mut host = TestHost::start_with(CONFIG)?;
    let web = host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web").armed(0))?;
    // Another name for the same layers.
    let other = host.push(&Image::web()?, "other:1")?;
    host.cli()
        .json(&["image", "pull", &other.reference])?
        .ok()?;
    let healthy = verified(&host, &[], 0)?;
    assert_eq!((healthy.right, healthy.unpacked.right), (1, 1));

    // The registry is not needed for what follows.
    host.registry.stop()?;
    let page = on_disk(&host, PAGE_FILE)?;
    flip(&page)?;
    let damaged = verified(&host, &[&other.reference], 1)?.unpacked;
    assert_eq!((damaged.right, damaged.damaged.len()), (0, 1));
    let layer = &damaged.damaged[0];
    assert_eq!(layer.differences, ["\"www/index.html\": other content"]);
    assert_eq!(layer.layer, web.layer);
    assert_eq!(layer.state, DamagedState::UnpackedAnew, "{layer:?}");
    ensure!(layer.images.contains(&other.reference), "{layer:?}");
    let by_digest = format!("127.0.0.1:5000/web@{}", web.digest);
    ensure!(layer.images.contains(&by_digest), "{layer:?}");

    let healthy = verified(&host, &[], 0)?.unpacked;
    assert_eq!((healthy.right, healthy.damaged.len()), (1, 0));
    let task = host.cli().activate("web", 1, "one")?;
    host.assert_serves(&task.instances[0])?;
    nothing_left(&host)?;
    host.remove_app("web")
}

#[test]
fn whatever_is_changed_in_an_unpacked_image_is_found() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    let web = host.push(&Image::web()?, "web:1")?;
    host.cli().json(&["image", "pull", &web.reference])?.ok()?;
    let root = on_disk(&host, "www")?.with_file_name("");
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o4755))?;
    fs::remove_file(root.join("etc/group"))?;
    fs::write(root.join("etc/shadow"), "root::0:0:99999:7:::\n")?;
    fs::remove_file(root.join("bin/sh"))?;
    symlink("/tmp/sh", root.join("bin/sh"))?;
    let damaged = verified(&host, &[], 1)?.unpacked;
    let differences = &damaged.damaged[0].differences;
    for expected in [
        "\"bin/busybox\": mode 0755 / 4755",
        "\"bin/sh\": leads to \"busybox\" / \"/tmp/sh\"",
        "\"etc/group\": is missing",
        "\"etc/shadow\": does not belong there",
    ] {
        ensure!(
            differences.iter().any(|found| found == expected),
            "{expected}: {differences:?}"
        );
    }
    verified(&host, &[], 0)?;
    assert_eq!(
        fs::read_link(on_disk(&host, "bin/sh")?)?,
        PathBuf::from("busybox")
    );
    Ok(())
}

#[test]
fn a_damaged_image_on_which_an_instance_stands_is_told_and_stays() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    host.warm_web(0)?;
    let task = host.cli().activate("web", 1, "one")?;
    let group = on_disk(&host, "etc/group")?;
    flip(&group)?;
    let damaged = verified(&host, &[], 1)?.unpacked;
    let layer = &damaged.damaged[0];
    assert_eq!(layer.differences, ["\"etc/group\": other content"]);
    assert_eq!(layer.state, DamagedState::Used);
    assert_eq!(layer.used_by.len(), 1, "{layer:?}");
    ensure!(
        layer.used_by[0].contains(&task.instances[0].name),
        "{layer:?}"
    );
    let list: ImageList = host.cli().json(&["image", "list"])?.document(0)?;
    assert_eq!(list.images[0].state, ImageState::Ready);
    assert_eq!(list.verification, None);
    ensure!(group.exists(), "the layer went");
    host.assert_serves(&task.instances[0])?;
    // As soon as nothing stands on it, it is made anew.
    host.cli().deactivate("web", 0, "none")?;
    let damaged = verified(&host, &[], 1)?.unpacked;
    assert_eq!(damaged.damaged[0].state, DamagedState::UnpackedAnew);
    verified(&host, &[], 0)?;
    host.remove_app("web")
}

#[test]
fn what_is_healthy_is_right_whatever_is_in_it() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    let mut layers = BTreeSet::new();
    for image in catalogue().iter().chain(&refused_by_containerd()) {
        let layout = image.build(&host.ground.path(&format!("image-{}", image.name)))?;
        let reference = layout.place(&host.registry, &format!("{}:1", image.name))?;
        host.cli().json(&["image", "pull", &reference])?.ok()?;
        layers.insert(layout.chain_id()?);
        let answer = host.cli().json(&["image", "verify", &reference])?;
        let found: VerifyResult = answer.document(0).context(image.name)?;
        assert_eq!(found.unpacked.damaged, [], "{}", image.name);
        // Another image may have brought the same tree, packed in another way.
        let mut reasons = found.unpacked.not_compared.iter();
        ensure!(
            reasons.all(|not| not.why == WhyNotCompared::BlobAbsent),
            "{}: {found:?}",
            image.name
        );
    }
    let all = verified(&host, &[], 0)?.unpacked;
    assert_eq!(all.not_compared, []);
    ensure!(
        all.right as usize >= layers.len(),
        "{} of {}",
        all.right,
        layers.len()
    );
    nothing_left(&host)
}

#[test]
fn without_their_blobs_unpacked_layers_are_not_compared_and_that_is_said() -> Result<()> {
    let host = TestHost::start_with(&format!("{CONFIG}[images]\nkeep_blobs = false\n"))?;
    let web = host.push(&Image::web()?, "web:1")?;
    host.cli().json(&["image", "pull", &web.reference])?.ok()?;
    let found = verified(&host, &[], 0)?;
    assert_eq!((found.right, found.absent, found.unpacked.right), (0, 1, 0));
    let absent = NotCompared {
        why: WhyNotCompared::BlobAbsent,
        layers: 1,
        error: None,
    };
    assert_eq!(found.unpacked.not_compared, [absent]);
    let said = host.cli().run(&["image", "verify"])?;
    ensure!(
        said.stdout
            .contains("1 unpacked layers were not compared: the layers are not in the store"),
        "{said}"
    );
    Ok(())
}

#[test]
fn an_image_that_cannot_be_made_anew_is_gone_until_it_is_pulled() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    let image = cached::layers(&host.ground.path("image"), 3, 100_000)?;
    image.place(&host.registry, "layers:1")?;
    let reference = Registry::reference("layers:1");
    host.cli().json(&["image", "pull", &reference])?.ok()?;
    let blobs = host.agent.state().join("images/blobs/sha256");
    let blob = |number: usize| {
        let digest = image.layers()[number].digest.trim_start_matches("sha256:");
        blobs.join(digest)
    };
    flip(&on_disk(&host, "file-0")?)?;
    fs::remove_file(blob(2))?;
    let damaged = verified(&host, &[], 1)?;
    assert_eq!((damaged.right, damaged.absent), (2, 1));
    let layer = &damaged.unpacked.damaged[0];
    assert_eq!(layer.layer, image.layers()[0].digest);
    ensure!(
        matches!(layer.state, DamagedState::Gone | DamagedState::UnpackedAnew),
        "{layer:?}"
    );
    let list: ImageList = host.cli().json(&["image", "list"])?.document(0)?;
    assert_eq!(list.images[0].state, ImageState::Incomplete);
    host.cli().json(&["image", "pull", &reference])?.ok()?;
    let healthy = verified(&host, &[], 0)?;
    assert_eq!((healthy.right, healthy.unpacked.right), (3, 3));
    nothing_left(&host)
}

#[test]
fn a_look_ends_when_its_caller_goes_away() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    let image = cached::layers(&host.ground.path("image"), 30, 3_000_000)?;
    image.place(&host.registry, "layers:1")?;
    let reference = format!("{}/layers:1", Registry::address());
    host.cli().json(&["image", "pull", &reference])?.ok()?;
    let under_way = || -> Result<Option<(u32, u32)>> {
        let list: ImageList = host.cli().json(&["image", "list"])?.document(0)?;
        Ok(list.verification.map(|look| (look.done, look.of)))
    };
    let mut caller = UnixStream::connect(host.agent.socket())?;
    caller.write_all(
        b"POST /v1/images/verify HTTP/1.1\r\nhost: agent\r\n\
          content-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    )?;
    until("the look", SOON, || {
        Ok(match under_way()? {
            Some((1.., _)) => Look::Seen(()),
            other => Look::NotYet(format!("{other:?}")),
        })
    })?;
    drop(caller);
    let mut last = (0, 0);
    until("its end", SOON, || {
        Ok(match under_way()? {
            None => Look::Seen(()),
            Some(look) => {
                last = look;
                Look::NotYet(format!("{look:?}"))
            }
        })
    })?;
    ensure!(last.0 * 4 <= last.1 * 3, "it went on: {last:?}");
    nothing_left(&host)
}

/// Power is lost before the only image was on the disk, and this file of it was not written; the
/// directory of marks that such a boot leaves.
fn lose_power(host: &mut TestHost, file: &str) -> Result<PathBuf> {
    host.agent.stop()?;
    flip(&on_disk(host, file)?)?;
    let records = imagecache::Records::open(&host.agent.state().join("images"))?.list()?;
    let record = records.first().context("no record")?;
    let diff_ids = record.layers.iter().map(|layer| layer.diff_id.parse());
    let diff_ids: Vec<imagecache::Digest> = diff_ids.collect::<Result<_, _>>()?;
    let former = host.agent.state().join("images/unsettled/a-former-boot");
    fs::create_dir(&former)?;
    for chain_id in imagecache::chain_ids(&diff_ids) {
        fs::write(former.join(imagecache::chain_mark(&chain_id)), "")?;
    }
    host.agent.start(&host.ground)?;
    Ok(former)
}

#[test]
fn what_power_was_lost_over_is_unpacked_anew_before_it_is_used() -> Result<()> {
    let mut host = TestHost::start_with(CONFIG)?;
    let web = host.push(&Image::web()?, "web:1")?;
    host.cli().json(&["image", "pull", &web.reference])?.ok()?;
    let former = lose_power(&mut host, PAGE_FILE)?;

    host.apply(&Manifest::new("web", "web:1").armed(0))?;
    ensure!(
        fs::read_to_string(on_disk(&host, PAGE_FILE)?)?.starts_with(PAGE),
        "it is used as it is: {}",
        host.agent.tail(30)
    );
    ensure!(!former.exists(), "it stays suspect");
    verified(&host, &[], 0)?;
    host.remove_app("web")
}

#[test]
fn an_app_of_before_power_was_lost_starts_from_what_was_unpacked_anew() -> Result<()> {
    let mut host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web").armed(0))?;
    let former = lose_power(&mut host, PAGE_FILE)?;

    let task = host.cli().activate("web", 1, "up")?;
    assert_eq!(task.instances.len(), 1);
    for instance in &task.instances {
        host.assert_serves(instance)?;
    }
    ensure!(!former.exists(), "it stays suspect");
    verified(&host, &[], 0)?;
    host.remove_app("web")
}

#[test]
fn another_image_does_not_stand_on_what_power_was_lost_over() -> Result<()> {
    let mut host = TestHost::start_with(CONFIG)?;
    let image = cached::layers(&host.ground.path("image"), 3, 200_000)?;
    image.place(&host.registry, "layers:1")?;
    let next = cached::next_version(&image, &host.ground.path("next"))?;
    next.place(&host.registry, "layers:2")?;
    let reference = |tag: u32| format!("{}/layers:{tag}", Registry::address());
    host.cli().json(&["image", "pull", &reference(1)])?.ok()?;
    // Of a pull that was under way then.
    let ctr = Ctr::new(&host.ground, &host.containerd).within(host.agent.namespace());
    let labels = ["nodeagent/lease=image", "nodeagent/boot=another"];
    ctr.run(&[&["leases", "create", "--id", "former"], &labels[..]].concat())?;
    let former = lose_power(&mut host, LAYER_FILE)?;
    host.cli().json(&["image", "pull", &reference(2)])?.ok()?;
    let looked = verified(&host, &[], 0)?;
    assert_eq!(looked.unpacked.right, 4, "{looked:?}");
    ensure!(!former.exists(), "something stays suspect");
    nothing_left(&host)
}

#[test]
fn a_layer_that_is_damaged_and_used_gets_no_further_instance_until_it_is_made_anew() -> Result<()> {
    let mut host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web").armed(0))?;
    host.cli().activate("web", 1, "up")?;
    lose_power(&mut host, PAGE_FILE)?;

    let more = ["activate", "web", "--to", "2", "--deadline", "5s"];
    let failed = format!("{:?}", host.cli().json(&more)?);
    ensure!(failed.contains("is damaged"), "{failed}");
    ensure!(failed.contains("nodeagent image verify"), "{failed}");
    assert_eq!(host.cli().pool("web")?.active, 1, "what serves, serves");
    // As it is told.
    host.cli().deactivate("web", 0, "down")?;
    host.wait_for_pool("web", "nothing to be there", |pool| {
        pool.instances.is_empty()
    })?;
    let looked = verified(&host, &[], 1)?;
    assert_eq!(
        looked.unpacked.damaged[0].state,
        DamagedState::UnpackedAnew,
        "{looked:?}"
    );
    let task = host.cli().activate("web", 1, "again")?;
    host.assert_serves(&task.instances[0])?;
    host.remove_app("web")
}
