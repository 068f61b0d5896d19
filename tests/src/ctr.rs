//! The peer: containerd's own `ctr`, on the host's containerd, in a namespace of its own.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::containerd::Containerd;
use crate::ground::Ground;

/// `ctr` with the host's socket and a namespace that ends in the host's id.
#[derive(Debug)]
pub struct Ctr<'a> {
    ground: &'a Ground,
    socket: PathBuf,
    namespace: String,
    started: u32,
}

impl<'a> Ctr<'a> {
    /// For the containerd of `ground`.
    pub fn new(ground: &'a Ground, containerd: &Containerd) -> Self {
        Self {
            ground,
            socket: containerd.socket().to_owned(),
            namespace: format!("ctr.{}", ground.id()),
            started: 0,
        }
    }

    /// In another namespace of that containerd, which has to end in the host's id to be cleaned up.
    #[must_use]
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    /// Names its containers from this number on: their cgroups are side by side.
    #[must_use]
    pub fn from(mut self, number: u32) -> Self {
        self.started = number;
        self
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Pulls and unpacks an image from the host's registry.
    pub fn pull(&self, reference: &str) -> Result<()> {
        self.run(&["images", "pull", "--plain-http", reference])
            .map(drop)
    }

    /// `ctr run -d` of an image that is unpacked: returns the container and the time it took.
    pub fn run_detached(&mut self, reference: &str) -> Result<(String, Duration)> {
        self.started += 1;
        let id = format!("ctr-{}", self.started);
        let fifos = self.ground.path("ctr-fifo");
        let cgroup = format!("{}/{id}", self.ground.cgroup_parent());
        let start = Instant::now();
        self.run(&[
            "run",
            "-d",
            "--fifo-dir",
            &fifos.to_string_lossy(),
            "--cgroup",
            &cgroup,
            reference,
            &id,
        ])?;
        Ok((id, start.elapsed()))
    }

    /// Kills and deletes a container that [`run_detached`](Self::run_detached) started.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.run(&["tasks", "delete", "--force", id])?;
        self.run(&["containers", "delete", id]).map(drop)
    }

    /// Runs `ctr` with these arguments; fails when it does.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", &self.namespace])
            .args(arguments)
            .current_dir("/");
        let output = self
            .ground
            .netns()
            .run(|| command.output().context("run ctr"))?;
        ensure!(
            output.status.success(),
            "ctr {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output)
    }
}
