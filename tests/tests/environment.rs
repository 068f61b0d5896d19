//! What reaches the environment of an app: files of the host, labels, who it is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::TargetGroup;
use nodeagent_tests::{Manifest, TestHost};
use serde_json::{Value, json};

const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";

/// A host that allows environment files below `env` of its ground.
fn host() -> Result<(TestHost, PathBuf)> {
    let mut host = TestHost::without_agent(CONFIG)?;
    let env = host.ground.path("env");
    fs::create_dir(&env)?;
    let config = format!(
        "[security]\nallowed_env_file_paths = [\"{}\"]\n",
        env.display()
    );
    host.start_beside(&config)?;
    Ok((host, env))
}

fn app(env_from: Value) -> Manifest {
    let script = "export -p >/www/index.html; exec httpd -f -p 8080 -h /www";
    Manifest::script("web", script)
        .ready_by_page(10)
        .with("envFrom", env_from)
}

#[test]
fn an_app_finds_files_labels_and_its_name_in_its_environment() -> Result<()> {
    let (host, env) = host()?;
    fs::write(
        env.join("base.env"),
        "# defaults\nCOLOUR=red\nSIZE=1\nTEXT= a \"b\" $(SIZE)\n",
    )?;
    fs::write(env.join("own.env"), "SIZE=2\n")?;
    let manifest = app(json!([
        { "envFile": { "path": env.join("base.env") } },
        { "envFile": { "path": env.join("own.env") } },
        { "prefix": "P_", "envFile": { "path": env.join("own.env") } },
        { "envFile": { "path": env.join("absent.env"), "optional": true } },
    ]))
    .with(
        "env",
        json!([{ "name": "COLOUR", "value": "blue" }, { "name": "BOTH", "value": "$(COLOUR)-$(SIZE)" }]),
    )
    .labelled(json!({ "set": "shop-a", "lane": "green", "tier": "front" }))
    .with("registration", json!({ "metadata": { "tier": "edge" } }));
    host.apply(&manifest)?;
    let task = host.cli().activate("web", 1, "in")?;
    let page = host.fetch(&task.instances[0])?.text();
    for entry in [
        "COLOUR='blue'",
        "SIZE='2'",
        "P_SIZE='2'",
        "TEXT=' a \"b\" $(SIZE)'",
        "BOTH='blue-2'",
        "NODEAGENT_SET='shop-a'",
        "NODEAGENT_LANE='green'",
        "NODEAGENT_INSTANCE='web-0'",
        "HOSTNAME='web-0'",
    ] {
        ensure!(
            page.contains(&format!("export {entry}\n")),
            "no {entry} in:\n{page}"
        );
    }

    let text = fs::read_to_string(host.prometheus_file())?;
    let groups: Vec<TargetGroup> = serde_json::from_str(&text)?;
    let labels = &groups.first().context("nothing is registered")?.labels;
    let label = |name: &str| labels.get(name).map(String::as_str);
    assert_eq!(
        (label("set"), label("lane"), label("tier")),
        (Some("shop-a"), Some("green"), Some("edge"))
    );
    let status: Value = host.cli().json(&["status", "web"])?.document(0)?;
    assert_eq!(status["pools"][0]["labels"]["lane"], "green", "{status}");
    host.remove_app("web")
}

#[test]
fn a_wrong_environment_file_is_refused_with_its_line_and_starts_nothing() -> Result<()> {
    let (host, env) = host()?;
    let write = |name: &str, content: &str, mode: u32| -> Result<PathBuf> {
        let file = env.join(name);
        fs::write(&file, content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        Ok(file)
    };
    let linked = env.join("linked.env");
    symlink("/etc/hostname", &linked)?;
    for (path, expected) in [
        (
            write("line.env", "A=1\n\nexport B\n", 0o644)?,
            "line 3 has no '='",
        ),
        (
            write("ours.env", "NODEAGENT_SET=b\n", 0o644)?,
            "line 1 sets NODEAGENT_SET",
        ),
        (
            write("open.env", "A=1\n", 0o664)?,
            "has owner 0 and mode 0664",
        ),
        (linked, "leads through a symbolic link"),
        (env.join("absent.env"), "No such file"),
        (
            PathBuf::from("/etc/hostname"),
            "is not allowed on this host; allowed: below",
        ),
    ] {
        let manifest = app(json!([{ "envFile": { "path": path } }]));
        let file = host.file("refused.yaml", &manifest.text())?;
        let answer = host
            .cli()
            .json(&["app", "apply", "-f", &file.to_string_lossy()])?;
        let problem = answer.problem(answer.code)?;
        let said = problem.findings.iter().any(|finding| {
            finding.field == "spec.envFrom[0].envFile.path" && finding.allowed.contains(expected)
        });
        ensure!(
            answer.code != 0 && said,
            "wanted {expected:?}, got {problem:?}"
        );
    }

    // What goes bad after the app was applied is said by the task.
    let file = write("later.env", "A=1\n", 0o644)?;
    host.apply(&app(json!([{ "envFile": { "path": file } }])))?;
    fs::write(&file, "A 1\n")?;
    let error = host.cli().activate_in_vain("web", "t", "5s")?;
    assert_eq!(error.code, "env_file", "{error:?}");
    ensure!(error.detail.contains("line 1 has no '='"), "{error:?}");
    host.remove_app("web")
}
