//! A real etcd of one member for one test, in a network of its own, gone afterwards.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::SOON;

/// Where it listens: every test has a network of its own.
pub const ENDPOINT: &str = "http://127.0.0.1:2379";

pub struct Etcd {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Etcd {
    /// Moves this thread into a network of its own and starts etcd there.
    pub fn start() -> Self {
        super::enter_own_network();
        let cache = std::env::var_os("NODEAGENT_PEERS");
        let cache = cache.map_or_else(
            || PathBuf::from("/var/cache/nodeagent-peers"),
            PathBuf::from,
        );
        let program = cache.join("etcd-3.6.6/bin/server");
        assert!(
            Path::new(&program).exists(),
            "{} is missing: tests/peers/build etcd-3.6.6",
            program.display()
        );
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new(program)
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(["--log-level", "error"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Self {
            child,
            _directory: directory,
        };
        let begin = Instant::now();
        while std::net::TcpStream::connect("127.0.0.1:2379").is_err() {
            assert!(begin.elapsed() < SOON, "etcd does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It is gone or goes now; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
