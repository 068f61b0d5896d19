//! A network namespace of the host's own, held by a file.
//!
//! Only the network is separate: the mount namespace stays the machine's, because containerd and
//! the agent have to see each other's mounts.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The host's own address: what its packets to instances come from (TEST-NET-1 of RFC 5737).
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A network namespace bound to a file; it lives until the file is unmounted (see
/// [`teardown`](crate::teardown)).
#[derive(Debug, Clone)]
pub struct Netns {
    file: PathBuf,
}

impl Netns {
    /// Makes a namespace with [`HOST`] on its loopback, which is up, and binds it to `file`.
    pub fn create(file: &Path) -> Result<Self> {
        File::create(file).with_context(|| format!("create {}", file.display()))?;
        let setup = format!("ip link set lo up && ip address add {HOST}/32 dev lo");
        // unshare(1) binds the namespace to the file before it runs the command inside.
        let made = Command::new("unshare")
            .arg(format!("--net={}", file.display()))
            .args(["--", "sh", "-c", &setup])
            .output()
            .context("run unshare(1)")?;
        ensure!(
            made.status.success(),
            "make a network namespace at {}: {}",
            file.display(),
            String::from_utf8_lossy(&made.stderr).trim()
        );
        Ok(Self {
            file: file.to_owned(),
        })
    }

    /// The file that holds the namespace, for `nsenter --net=FILE`.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Runs `work` on a thread of its own inside the namespace. What it spawns is inside too.
    ///
    /// # Panics
    /// When `work` does: the panic goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file =
            File::open(&self.file).with_context(|| format!("open {}", self.file.display()))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("enter {}", self.file.display()))?;
                work()
            });
            match inside.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs ip(8) inside, with the words of one line.
    pub fn ip(&self, words: &str) -> Result<()> {
        let words: Vec<&str> = words.split(' ').collect();
        self.command("ip", &words).map(drop)
    }

    /// Runs nft(8) inside with one line, and returns what it says.
    pub fn nft(&self, line: &str) -> Result<String> {
        self.command("nft", &[line])
    }

    /// Runs a program inside that has to succeed, and returns what it says.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = self.run(|| command.output().with_context(|| format!("run {program}")))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
