//! What the program says about itself: completions, manual pages, schemas.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::schema::violations;

fn nodeagent(words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodeagent"));
    let output = command.args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn is_installed(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.is_ok()
}

fn page(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations");
    std::fs::read_to_string(docs.join(name)).unwrap()
}

/// Every verb with its path of names, the program itself first.
fn verbs() -> Vec<(String, clap::Command)> {
    fn walk(command: &clap::Command, name: String, verbs: &mut Vec<(String, clap::Command)>) {
        verbs.push((name.clone(), command.clone()));
        for verb in command.get_subcommands() {
            walk(verb, format!("{name}-{}", verb.get_name()), verbs);
        }
    }
    let mut verbs = Vec::new();
    walk(
        &nodeagent::cli::command(),
        "nodeagent".to_owned(),
        &mut verbs,
    );
    verbs
}

#[test]
fn bash_completes_verbs_options_and_their_values() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("nodeagent");
    std::fs::write(&script, nodeagent(&["completions", "bash"])).unwrap();
    let complete = |words: &str| {
        let program = format!(
            "set -eu; . '{}'; complete -p nodeagent >/dev/null
             COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
             last=${{COMP_WORDS[COMP_CWORD]}}; before=${{COMP_WORDS[COMP_CWORD-1]}}
             _nodeagent nodeagent \"$last\" \"$before\"; echo \"${{COMPREPLY[*]}}\"",
            script.display()
        );
        let output = Command::new("bash")
            .args(["-c", &program])
            .output()
            .unwrap();
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete("nodeagent activ"), "activate");
    assert_eq!(complete("nodeagent app app"), "apply");
    assert_eq!(complete("nodeagent activate --expect"), "--expect-seq");
    assert_eq!(complete("nodeagent status -o ''"), "table json");
}

#[test]
fn zsh_and_fish_get_scripts_that_name_every_verb() {
    let directory = tempfile::tempdir().unwrap();
    for (shell, head) in [
        ("zsh", "#compdef nodeagent"),
        ("fish", "complete -c nodeagent"),
    ] {
        let text = nodeagent(&["completions", shell]);
        assert!(text.contains(head), "{shell}: {text}");
        for verb in nodeagent::cli::command().get_subcommands() {
            assert!(
                text.contains(verb.get_name()),
                "{shell}: {}",
                verb.get_name()
            );
        }
        if is_installed(shell) {
            let script = directory.path().join(shell);
            std::fs::write(&script, &text).unwrap();
            let parsed = Command::new(shell).arg("-n").arg(&script).status().unwrap();
            assert!(parsed.success(), "{shell} cannot read its script");
        }
    }
}

#[test]
fn every_verb_has_a_manual_page_that_names_every_option() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().to_str().unwrap();
    let written = nodeagent(&["man", target]);
    let verbs = verbs();
    assert_eq!(written.lines().count(), verbs.len());
    for (name, verb) in verbs {
        let file = directory.path().join(format!("{name}.1"));
        let text = std::fs::read_to_string(&file).unwrap();
        for head in [".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"] {
            assert!(text.contains(head), "{name}: no {head}");
        }
        for option in verb.get_arguments().filter_map(|a| a.get_long()) {
            let spelt = format!("\\-\\-{}", option.replace('-', "\\-"));
            assert!(text.contains(&spelt), "{name}: no --{option}");
        }
        if is_installed("groff") {
            let groff = Command::new("groff")
                .args(["-man", "-Tutf8", "-ww", "-z"])
                .arg(&file)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&groff.stderr);
            assert!(groff.status.success() && said.is_empty(), "{name}: {said}");
        }
    }
}

#[test]
fn a_manual_that_cannot_be_written_says_where() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodeagent"));
    let output = command.args(["man", "/does/not/exist"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("cannot be written to /does/not/exist: No such file"),
        "{said}"
    );
}

/// Paths of every leaf as the pages spell them: `a.b`, items of lists `[]`.
fn documented(page: &str) -> Vec<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect()
}

/// Whether the schema has the field.
fn has(root: &Value, path: &str) -> bool {
    let mut at = resolved(root, root);
    for name in path.split('.') {
        let (name, items) = match name.strip_suffix("[]") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let Some(field) = at["properties"].get(name) else {
            return false;
        };
        at = resolved(root, field);
        if items {
            at = resolved(root, &at["items"]);
        }
    }
    true
}

fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(place) => root.pointer(place.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

#[test]
fn the_schema_of_the_configuration_knows_every_documented_key() {
    let schema: Value = serde_json::from_str(&nodeagent(&["config", "schema"])).unwrap();
    let keys = documented(&page("configuration.md"));
    assert!(keys.len() > 30, "{keys:?}");
    for key in keys {
        assert!(has(&schema, &key), "{key} is not in the schema");
    }
    assert!(!has(&schema, "host.name"));
}

#[test]
fn the_schema_of_a_manifest_knows_every_documented_field() {
    let schema: Value = serde_json::from_str(&nodeagent(&["app", "schema"])).unwrap();
    let fields = documented(&page("manifest.md"));
    assert!(fields.len() > 30, "{fields:?}");
    for field in fields {
        assert!(has(&schema, &field), "{field} is not in the schema");
    }
    assert!(!has(&schema, "spec.replicas"));
}

fn example(page: &str, language: &str) -> String {
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_documented_configuration_satisfies_its_schema_and_mistakes_do_not() {
    let schema: Value = serde_json::from_str(&nodeagent(&["config", "schema"])).unwrap();
    let text = example(&page("configuration.md"), "toml");
    let mut document = serde_json::to_value(toml::from_str::<toml::Table>(&text).unwrap()).unwrap();
    assert_eq!(violations(&schema, &document), Vec::<String>::new());
    document["host"]["idd"] = "x".into();
    document["network"]["mtu"] = "wide".into();
    document.as_object_mut().unwrap().remove("version");
    assert_eq!(
        violations(&schema, &document),
        [
            "version is missing",
            "host.idd is unknown",
            "network.mtu is no integer"
        ]
    );
}

#[test]
fn the_example_manifests_satisfy_their_schema_and_mistakes_do_not() {
    let schema: Value = serde_json::from_str(&nodeagent(&["app", "schema"])).unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let mut texts = vec![example(&page("manifest.md"), "yaml")];
    for entry in std::fs::read_dir(examples).unwrap() {
        texts.push(std::fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    for text in texts {
        let mut document: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(violations(&schema, &document), Vec::<String>::new());
        document["kind"] = "Pod".into();
        document["spec"]["replicas"] = 3.into();
        document["spec"].as_object_mut().unwrap().remove("image");
        assert_eq!(
            violations(&schema, &document),
            [
                "kind is not \"App\"",
                "spec.image is missing",
                "spec.replicas is unknown"
            ]
        );
    }
}
