//! Volumes and secret files, looked at from inside, and what the host does not give.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nodeagent_tests::{Manifest, TestHost};
use serde_json::{Value, json};

const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";
const SECRET: &str = "s3cr3t-that-nobody-else-may-see";

/// A host that allows host paths below `srv` of its ground.
fn host() -> Result<(TestHost, PathBuf)> {
    let mut host = TestHost::without_agent(CONFIG)?;
    let srv = host.ground.path("srv");
    fs::create_dir(&srv)?;
    let allowed = format!("[volumes]\nallowed_host_paths = [\"{}\"]\n", srv.display());
    host.start_beside(&allowed)?;
    Ok((host, srv))
}

fn secret(path: &Path, mode: u32) -> Result<()> {
    fs::write(path, SECRET)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// The options of what is mounted at `path`, from a page that holds `/proc/mounts`.
fn options<'a>(page: &'a str, path: &str) -> Result<Vec<&'a str>> {
    let line = page
        .lines()
        .find(|line| line.split(' ').nth(1) == Some(path))
        .with_context(|| format!("nothing is mounted at {path}:\n{page}"))?;
    Ok(line
        .split(' ')
        .nth(3)
        .unwrap_or_default()
        .split(',')
        .collect())
}

/// What is there, and nothing of what was removed since it was listed: there is no secret.
fn there<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        looked => looked.map(Some),
    }
}

/// Files below `directory` that hold the secret.
fn traces(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in there(fs::read_dir(directory))?.into_iter().flatten() {
        let entry = entry?;
        let Some(kind) = there(entry.file_type())? else {
            continue;
        };
        if kind.is_dir() {
            traces(&entry.path(), found)?;
        } else if kind.is_file() {
            let content = there(fs::read(entry.path()))?.unwrap_or_default();
            if content
                .windows(SECRET.len())
                .any(|part| part == SECRET.as_bytes())
            {
                found.push(entry.path());
            }
        }
    }
    Ok(())
}

#[test]
fn an_app_finds_its_volumes_and_secrets_as_the_manifest_says() -> Result<()> {
    let (host, srv) = host()?;
    fs::create_dir(srv.join("shop"))?;
    fs::write(srv.join("shop/note"), "a note of the host\n")?;
    let key = host.ground.path("key");
    secret(&key, 0o600)?;
    let script = "{ cat /data/note; cat /run/secrets/key; echo; ls -ln /run/secrets/key; \
        echo x >/data/x && echo written; echo once >>/kept/log; cat /kept/log; cat /proc/mounts; } \
        >/scratch/index.html 2>/dev/null; exec httpd -f -p 8080 -h /scratch";
    let manifest = Manifest::script("web", script)
        .ready_by_page(10)
        .with("user", "1000:1000".into())
        .with(
            "volumes",
            json!([
                { "name": "data", "hostPath": { "path": srv.join("shop"), "type": "Directory" } },
                { "name": "scratch", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } },
                { "name": "kept", "instanceDirectory": {} },
                { "name": "disk", "emptyDir": {} },
            ]),
        )
        .with(
            "volumeMounts",
            json!([
                { "name": "data", "mountPath": "/data", "readOnly": true },
                { "name": "scratch", "mountPath": "/scratch" },
                { "name": "kept", "mountPath": "/kept" },
                { "name": "disk", "mountPath": "/scratch/deeper" },
            ]),
        )
        .with(
            "secretFiles",
            json!([{ "name": "key", "source": key, "mode": "0440" }]),
        );
    host.apply(&manifest)?;
    let task = host.cli().activate("web", 1, "in")?;
    let page = host.fetch(&task.instances[0])?.text();
    let mut lines = page.lines();
    assert_eq!(lines.next(), Some("a note of the host"));
    assert_eq!(lines.next(), Some(SECRET));
    let listed: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    assert_eq!(
        (listed[0], listed[2], listed[3]),
        ("-r--r-----", "1000", "1000")
    );
    assert_eq!(
        lines.next(),
        Some("once"),
        "written through a read-only mount?"
    );
    for (path, expected) in [
        ("/data", &["ro", "nosuid", "nodev"][..]),
        ("/scratch", &["rw", "nosuid", "nodev", "size=8192k"]),
        ("/scratch/deeper", &["rw", "nosuid", "nodev"]),
        ("/kept", &["rw", "nosuid", "nodev"]),
        ("/run/secrets", &["ro", "nosuid", "nodev"]),
    ] {
        let options = options(&page, path)?;
        ensure!(
            expected.iter().all(|option| options.contains(option)),
            "{path} has {options:?}"
        );
    }
    let mut found = Vec::new();
    traces(&host.agent.state(), &mut found)?;
    assert_eq!(found, Vec::<PathBuf>::new(), "the secret is on the disk");

    // The next container of the instance finds what the first one left.
    host.cli().deactivate("web", 0, "out")?;
    let task = host.cli().activate("web", 1, "again")?;
    let page = host.fetch(&task.instances[0])?.text();
    ensure!(page.contains("once\nonce\n"), "{page}");
    host.remove_app("web")?;
    let kept = host.agent.state().join("volumes/web-0/kept/log");
    assert_eq!(fs::read_to_string(kept)?, "once\nonce\n");
    let secrets = fs::read_dir(host.agent.runtime().join("secrets"))?.count();
    assert_eq!(secrets, 0, "secrets of containers that are gone");
    Ok(())
}

#[test]
fn what_the_host_does_not_give_is_refused_and_named() -> Result<()> {
    let (host, srv) = host()?;
    fs::create_dir_all(srv.join("real/deep"))?;
    symlink(srv.join("real"), srv.join("link"))?;
    symlink("/etc", srv.join("real/out"))?;
    fs::write(srv.join("file"), "")?;
    let readable = host.ground.path("readable");
    secret(&readable, 0o644)?;
    let foreign = host.ground.path("foreign");
    secret(&foreign, 0o600)?;
    std::os::unix::fs::chown(&foreign, Some(1000), None)?;
    let linked = host.ground.path("linked");
    symlink(&readable, &linked)?;

    let volume = |path: PathBuf, kind: Value| {
        Manifest::web("web")
            .with(
                "volumes",
                json!([{ "name": "v", "hostPath": { "path": path, "type": kind } }]),
            )
            .with("volumeMounts", json!([{ "name": "v", "mountPath": "/v" }]))
    };
    let with_secret = |path: PathBuf| {
        Manifest::web("web").with("secretFiles", json!([{ "name": "key", "source": path }]))
    };
    for (manifest, expected) in [
        (
            volume("/etc".into(), Value::Null),
            "host path /etc is not allowed on this host; allowed: below",
        ),
        (
            volume(srv.join("link/deep"), Value::Null),
            "leads through a symbolic link",
        ),
        (
            volume(srv.join("real/out"), Value::Null),
            "leads through a symbolic link",
        ),
        (volume(srv.join("absent"), Value::Null), "cannot open"),
        (
            volume(srv.join("file"), "Directory".into()),
            "allowed: a directory",
        ),
        (
            volume(srv.join("real"), "File".into()),
            "allowed: a regular file",
        ),
        (with_secret(host.ground.path("absent")), "No such file"),
        (with_secret(readable), "has owner 0 and mode 0644"),
        (with_secret(foreign), "has owner 1000 and mode 0600"),
        (with_secret(linked), "leads through a symbolic link"),
        (with_secret(srv.join("real")), "is a directory"),
    ] {
        let file = host.file("refused.yaml", &manifest.text())?;
        let answer = host
            .cli()
            .json(&["app", "apply", "-f", &file.to_string_lossy()])?;
        let problem = answer.problem(answer.code)?;
        let said = problem
            .findings
            .iter()
            .any(|finding| finding.allowed.contains(expected));
        ensure!(
            answer.code != 0 && said,
            "wanted {expected:?}, got {problem:?}"
        );
    }
    assert_eq!(host.cli().status()?.pools, Vec::new());
    host.assert_nothing_left()
}

#[test]
fn a_secret_that_goes_bad_after_the_app_was_applied_starts_nothing() -> Result<()> {
    let (host, _) = host()?;
    let key = host.ground.path("key");
    secret(&key, 0o400)?;
    let secrets = json!([{ "name": "key", "source": key }]);
    host.apply(&Manifest::web("web").with("secretFiles", secrets))?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o444))?;
    let error = host.cli().activate_in_vain("web", "t", "5s")?;
    assert_eq!(error.code, "volume", "{error:?}");
    ensure!(error.detail.contains("mode 0444"), "{error:?}");
    host.remove_app("web")
}
