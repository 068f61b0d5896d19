//! The freezer of cgroup v1: what is in it takes no signal, KILL neither, as in a system call that
//! does not come back.

use std::fs;
use std::path::PathBuf;

use crate::container::until;

/// A freezer of our own: it takes single threads.
pub struct Freezer(PathBuf);

impl Freezer {
    /// Freezes this thread until the freezer is dropped.
    pub fn around(tid: &str) -> Self {
        let path = PathBuf::from(format!("/sys/fs/cgroup/freezer/nodeagent-tests-{tid}"));
        fs::create_dir(&path).unwrap();
        let freezer = Self(path);
        fs::write(freezer.0.join("tasks"), tid).unwrap();
        freezer.set("FROZEN");
        freezer
    }

    fn set(&self, state: &str) {
        let file = self.0.join("freezer.state");
        fs::write(&file, state).unwrap();
        until(state, || fs::read_to_string(&file).unwrap().trim() == state);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        fs::write(self.0.join("freezer.state"), "THAWED").ok();
        until("nobody is in the freezer", || {
            fs::read_to_string(self.0.join("tasks"))
                .unwrap_or_default()
                .is_empty()
        });
        fs::remove_dir(&self.0).ok();
    }
}
