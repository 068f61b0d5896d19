//! The operator's pages say what the code does.
// A panic is the report of a test; clippy knows that only of functions marked as tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use nodeagent::app::parse;
use nodeagent::config::{Source, load, show};

fn page(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations");
    fs::read_to_string(docs.join(name)).unwrap()
}

/// The first code block of that language.
fn example(page: &str, language: &str) -> String {
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    fs::write(&file, text).unwrap();
    (dir, file)
}

#[test]
fn the_example_manifest_is_accepted() {
    let app = parse(&example(&page("manifest.md"), "yaml")).unwrap();
    assert_eq!(app.name.as_str(), "web");
}

#[test]
fn the_complete_example_is_accepted_by_the_program() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/complete.yaml");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_nodeagent"))
        .args(["app", "check"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_example_configuration_is_accepted() {
    let (_dir, file) = written(&example(&page("configuration.md"), "toml"));
    let loaded = load(&Source::File(file)).unwrap();
    assert_eq!(loaded.settings.host.id, "rack7-03");
}

#[test]
fn the_documented_defaults_are_those_in_effect() {
    let (_dir, file) = written("version = 1\n[host]\nid = \"h1\"\n");
    let shown = show(&load(&Source::File(file)).unwrap());
    let page = page("configuration.md");
    let (mut table, mut seen) = (String::new(), 0);
    for line in shown.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_end_matches(']').to_owned();
        } else if let Some(assignment) = line.strip_suffix(" # default") {
            let (key, value) = assignment.split_once(" = ").unwrap();
            let row = format!("| `{table}.{key}` | `{value}` |");
            assert!(
                page.contains(&row),
                "configuration.md should have the row {row}"
            );
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} defaults were compared");
}

#[test]
fn the_packaged_roles_are_accepted_and_make_nobody_admin() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/usr/lib");
    let text = fs::read_to_string(root.join("nodeagent/config.d/20-roles.toml")).unwrap();
    let (_dir, file) = written(&format!("{text}\n[host]\nid = \"h1\"\n"));
    let api = load(&Source::File(file)).unwrap().settings.api;
    assert!(api.admin.is_empty() && !api.view.is_empty());
    let groups = fs::read_to_string(root.join("sysusers.d/nodeagent.conf")).unwrap();
    for group in api.view.groups.iter().chain(&api.operate.groups) {
        let line = format!("g {group} ");
        assert!(groups.contains(&line), "{line:?} is missing in {groups}");
    }
}
