//! A shell, for trees that tests make.

use std::path::Path;
use std::process::Command;

/// Runs a script that has to succeed.
pub fn sh(script: &str, at: &Path) {
    let done = Command::new("sh")
        .args(["-ec", script])
        .current_dir(at)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script}: {said}");
}
