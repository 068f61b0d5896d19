//! Rules for what is removed before an app is started again in its container.

use std::collections::BTreeSet;

use super::volumes::is_clean;
use crate::app::manifest;
use crate::app::types::lies_in;
use crate::app::{Clean, SECRETS, SYSV_IPC};
use crate::document::{Findings, shown};

const PATH: &str = "an absolute path below / without \".\", \"..\" or a trailing slash";
const MAX: usize = 64;

/// Of the kernel, the runtime or the agent: nothing in them is the app's own.
const NEVER: [&str; 4] = ["/.nodeagent", "/proc", "/sys", SECRETS];
/// What lies in it may be named, itself not: devices are in it.
const DEVICES: &str = "/dev";

/// `reuse.clean`.
pub(super) fn clean(reuse: manifest::Reuse, findings: &mut Findings) -> Clean {
    let Some(paths) = reuse.clean else {
        return Clean::Default;
    };
    if paths.len() > MAX {
        findings.wrong(
            "spec.reuse.clean",
            format!("a list of {}", paths.len()),
            format!("at most {MAX}"),
        );
    }
    let mut seen = BTreeSet::new();
    for (index, path) in paths.iter().enumerate() {
        let field = format!("spec.reuse.clean[{index}]");
        let ours = path == DEVICES || NEVER.iter().any(|never| lies_in(never, path));
        if !is_clean(path) {
            findings.wrong(&field, shown(path), PATH);
        } else if ours && path != SYSV_IPC {
            let never = NEVER.join(", ");
            findings.wrong(
                &field,
                shown(path),
                format!("a path that is not {DEVICES} and does not lie in {never}; {SYSV_IPC} stands for System V IPC objects"),
            );
        }
        if !seen.insert(path) {
            findings.wrong(&field, shown(path), "each path once");
        }
    }
    Clean::Paths(paths)
}
