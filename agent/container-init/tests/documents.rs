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

/// All that could hold a claim: the sources of the tests.
fn sources() -> String {
    let mut all = String::new();
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories = vec![
        crate_root.join("src"),
        crate_root.join("tests"),
        crate_root.join("../../tests/tests"),
    ];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                all += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    all
}

/// What stands between backquotes in the last cell of a row.
fn tests_of(row: &str) -> Vec<&str> {
    let cell = row.trim_end_matches([' ', '|']).rsplit(" | ").next();
    let parts = cell.unwrap_or("").split('`').skip(1).step_by(2);
    parts.filter(|name| name.matches('_').count() > 1).collect()
}

#[test]
fn every_row_of_the_feature_table_has_its_test() {
    let page = workspace("docs/operations/container-init.md");
    let (_, table) = page.split_once("## Beside the others").unwrap();
    let source = sources();
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('●'));
    let mut count = 0;
    for row in rows {
        let tests = tests_of(row);
        assert!(!tests.is_empty(), "no test in {row}");
        for test in tests {
            assert!(source.contains(&format!("fn {test}(")), "no test {test}");
        }
        count += 1;
    }
    assert!(count > 20, "{count} rows");
}

#[test]
fn every_corner_case_has_its_tests_or_the_reason_why_not() {
    let page = workspace("docs/development/corner-cases.md");
    let source = sources();
    let mut numbers = Vec::new();
    for row in page.lines() {
        let number = row
            .strip_prefix("| ")
            .and_then(|row| row.split(" |").next());
        let Some(number) = number.and_then(|number| number.parse::<u32>().ok()) else {
            continue;
        };
        let tests = tests_of(row);
        let has_reason = row.contains("| not: ") || row.contains(" not: it comes with ");
        assert!(!tests.is_empty() || has_reason, "nothing holds {row}");
        for test in tests {
            assert!(source.contains(&format!("fn {test}(")), "no test {test}");
        }
        numbers.push(number);
    }
    numbers.dedup();
    assert_eq!(numbers, (1..=35).collect::<Vec<_>>());
}
