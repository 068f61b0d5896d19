//! What is written about the program is true: the options, and the tests that the feature table names.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "shared with the tests of plans")]
mod container;

use std::path::Path;
use std::process::Command;

use container::program;

fn workspace(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn the_page_and_the_man_page_know_every_option_of_the_help() {
    let help = Command::new(program()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let page = workspace("docs/operations/container-init.md");
    let man = workspace("packaging/usr/share/man/man1/container-init.1").replace("\\-", "-");
    let words = help
        .split_whitespace()
        .map(|word| word.trim_end_matches(','));
    let options: Vec<&str> = words
        .filter(|word| word.starts_with('-') && *word != "--")
        .collect();
    assert!(options.len() > 12, "{options:?}");
    for option in options {
        assert!(man.contains(option), "{option} is not in the man page");
        let said = matches!(option, "-h" | "--help" | "-V" | "--version") || page.contains(option);
        assert!(said, "{option} is not on the page");
    }
}

#[test]
fn every_row_of_the_feature_table_has_its_test() {
    let page = workspace("docs/operations/container-init.md");
    let (_, table) = page.split_once("## Beside the others").unwrap();
    let mut source = String::new();
    for directory in ["tests", "src", "src/supervisor", "../../tests/tests"] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "rs")
            {
                source += &std::fs::read_to_string(entry.path()).unwrap();
            }
        }
    }
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('●'));
    let mut count = 0;
    for row in rows {
        let test = row
            .rsplit('`')
            .nth(1)
            .unwrap_or_else(|| panic!("no test in {row}"));
        assert!(source.contains(&format!("fn {test}(")), "no test {test}");
        count += 1;
    }
    assert!(count > 20, "{count} rows");
}
