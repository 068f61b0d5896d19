//! What the documents say of the tests is so.

#![allow(clippy::unwrap_used, reason = "a panic in a test is the report")]

use std::fs;
use std::path::{Path, PathBuf};

/// Where tests of images are.
const SOURCES: [&str; 6] = [
    "imagecache/src",
    "imagecache/tests",
    "agent/src/images",
    "agent/tests",
    "tests/src",
    "tests/tests",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources() -> String {
    fn collect(directory: &Path, text: &mut String) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, text);
            } else if path.extension().is_some_and(|is| is == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut text = String::new();
    for source in SOURCES {
        collect(&workspace().join(source), &mut text);
    }
    text
}

#[test]
fn every_case_of_the_image_cache_has_its_tests_or_the_reason_why_not() {
    let page = workspace().join("docs/development/image-cases.md");
    let page = fs::read_to_string(page).unwrap();
    let source = sources();
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let rows = rows.filter(|row| !row.starts_with("| case |"));
    let mut count = 0;
    for row in rows {
        let cell = row
            .trim_end_matches([' ', '|'])
            .rsplit(" | ")
            .next()
            .unwrap();
        let named = cell.split('`').skip(1).step_by(2);
        let tests: Vec<&str> = named.filter(|name| name.matches('_').count() > 1).collect();
        assert!(
            !tests.is_empty() || cell.starts_with("not: "),
            "nothing holds {row}"
        );
        for test in tests {
            assert!(source.contains(&format!("fn {test}(")), "no test {test}");
        }
        count += 1;
    }
    assert!(count > 50, "{count} rows");
}
