//! A real OCI registry (Debian's `docker-registry`) on loopback of the host's own network, and others
//! beside it that ask for a login, a token or TLS.

mod secured;
mod storage;
mod tokens;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::ground::Ground;
use crate::http::{self, Response};
use crate::netns::Netns;
use crate::process::Process;
use crate::wait::{Look, until};

pub use secured::{Access, Login, SecuredRegistry, Visitors};
pub use tokens::{Asked, TokenServer, Tokens};

const STARTS: Duration = Duration::from_secs(20);

/// Port of the registry; every host has a network of its own, so it is always free.
pub const PORT: u16 = 5000;

/// A registry; its content stays in the host's directory when it stops.
#[derive(Debug)]
pub struct Registry {
    netns: Netns,
    config: PathBuf,
    storage: PathBuf,
    process: Option<Process>,
}

impl Registry {
    /// Writes the configuration, starts the registry and waits until it answers.
    pub fn start(ground: &Ground) -> Result<Self> {
        Self::start_on(ground, Ipv4Addr::LOCALHOST)
    }

    /// The same on this address of the host; loopback has to be among what it means.
    pub fn start_on(ground: &Ground, address: Ipv4Addr) -> Result<Self> {
        let config = ground.path("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {}\n",
            storage::root(ground).display(),
            SocketAddr::from((address, PORT)),
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let mut registry = Self {
            netns: ground.netns().clone(),
            config,
            storage: storage::root(ground),
            process: None,
        };
        registry.start_again(ground)?;
        Ok(registry)
    }

    /// Starts it again after [`stop`](Self::stop).
    pub fn start_again(&mut self, ground: &Ground) -> Result<()> {
        ensure!(self.process.is_none(), "the registry runs already");
        let process = serve(ground, "registry", &self.config, Self::address())?;
        self.process = Some(process);
        Ok(())
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Ends it by SIGKILL.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Where it listens, inside the host's network.
    pub fn address() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, PORT).into()
    }

    /// The reference of `name` (`web:1`) in this registry.
    pub fn reference(name: &str) -> String {
        format!("{}/{name}", Self::address())
    }

    /// One request of the distribution API.
    pub fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        http::request(&self.netns, method, Self::address(), target, headers, body)
    }

    /// Uploads a blob, whole (distribution-spec, "Single POST/PUT").
    pub fn push_blob(&self, repository: &str, digest: &str, blob: &[u8]) -> Result<()> {
        let target = format!("/v2/{repository}/blobs/uploads/");
        let begun = self.request("POST", &target, &[], &[])?;
        ensure!(begun.status == 202, "begin an upload: {}", begun.text());
        let location = begun
            .header("location")
            .context("an upload without location")?;
        // The registry answers with its own host; the path and query are what counts.
        let path = location
            .strip_prefix(&format!("http://{}", Self::address()))
            .unwrap_or(location);
        let mark = if path.contains('?') { '&' } else { '?' };
        let octets = [("Content-Type", "application/octet-stream")];
        let target = format!("{path}{mark}digest={digest}");
        let done = self.request("PUT", &target, &octets, blob)?;
        ensure!(done.status == 201, "upload {digest}: {}", done.text());
        Ok(())
    }

    /// Stores a manifest under a tag.
    pub fn push_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        manifest: &[u8],
    ) -> Result<()> {
        let target = format!("/v2/{repository}/manifests/{tag}");
        let kind = [("Content-Type", media_type)];
        let done = self.request("PUT", &target, &kind, manifest)?;
        ensure!(
            done.status == 201,
            "store manifest {repository}:{tag}: {}",
            done.text()
        );
        Ok(())
    }

    /// Puts the file `blob` into the storage, without an upload, as a blob of `repository`.
    pub fn place_blob(&self, repository: &str, digest: &str, blob: &Path) -> Result<()> {
        storage::place_blob(&self.storage, repository, digest, blob)
    }

    /// Puts the file `manifest` into the storage, without an upload, as `tag` of `repository`.
    pub fn place_manifest(
        &self,
        repository: &str,
        tag: &str,
        digest: &str,
        manifest: &Path,
    ) -> Result<()> {
        storage::place_manifest(&self.storage, repository, tag, digest, manifest)
    }
}

/// Starts docker-registry as the process `name` and waits until it answers, whatever it says.
fn serve(ground: &Ground, name: &str, config: &Path, address: SocketAddr) -> Result<Process> {
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(config);
    let mut process = Process::start(ground, name, command)?;
    until("the registry to answer", STARTS, || {
        if let Some(status) = process.ended()? {
            bail!("docker-registry ended ({status}):\n{}", process.tail(20));
        }
        // A login that is missing, or TLS, is an answer, too.
        Ok(match http::get(ground.netns(), address, "/v2/") {
            Ok(answer) if [200, 400, 401].contains(&answer.status) => Look::Seen(()),
            Ok(answer) => Look::NotYet(format!("status {}", answer.status)),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })?;
    Ok(process)
}
