//! The files of a container's `/etc` that say who it is and how it finds others: `hostname`,
//! `hosts`, `resolv.conf`. They lie in `<state>/instances/<container>/etc`, go with the container,
//! and are mounted read-only. What the host has is read when a container is made, as by the
//! kubelet; later changes of the host reach later containers.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::app::{Access, App, NetworkMode};
use crate::config::Settings;
use crate::instance::ContainerId;
use crate::instance::name_service::{Resolver, hosts, hosts_of_the_host};
use crate::instance::spec::{Content, VolumeSource};

/// Where systemd-resolved says what its stub asks (systemd-resolved.service(8)).
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// Why a container's names cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum EtcError {
    /// A file of the host cannot be read.
    #[error("cannot read the host's {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of ours cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a container is called, and its files.
#[derive(Debug)]
pub(super) struct Etc {
    pub(super) hostname: String,
    /// Mounted before the volumes.
    pub(super) sources: Vec<VolumeSource>,
}

/// Writes the files. Repeated, it writes them anew.
pub(super) fn prepare(
    app: &App,
    id: &ContainerId,
    address: Option<Ipv4Addr>,
    settings: &Settings,
) -> Result<Etc, EtcError> {
    let host = app.network == NetworkMode::Host;
    let hostname = match &app.hostname {
        _ if host => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        Some(hostname) => hostname.clone(),
        None => id.instance.to_string(),
    };
    let aliases = &app.host_aliases;
    let hosts = match address.filter(|_| !host) {
        Some(address) => hosts(IpAddr::V4(address), &hostname, aliases),
        None => hosts_of_the_host(&read(Path::new(HOSTS))?, aliases),
    };
    let resolver = resolver(app.network, settings)?.for_container(&app.dns);
    let instances = settings.paths.state.join("instances");
    let directory = instances.join(id.to_string()).join("etc");
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |source| EtcError::Write { path, source }
    };
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory);
    made.map_err(unwritable(&directory))?;
    let mut sources = Vec::new();
    for (name, text) in [
        ("hostname", format!("{hostname}\n")),
        ("hosts", hosts),
        ("resolv.conf", resolver.text()),
    ] {
        let file = directory.join(name);
        let written = fs::write(&file, text)
            .and_then(|()| fs::set_permissions(&file, Permissions::from_mode(0o644)));
        written.map_err(unwritable(&file))?;
        let destination = format!("/etc/{name}");
        // Who mounts something in their place means it.
        let taken = |path: &str| path == "/etc" || path == destination;
        if !app.mounts.iter().any(|mount| taken(&mount.path)) {
            sources.push(VolumeSource {
                destination,
                content: Content::Host(file),
                access: Access::ReadOnly,
            });
        }
    }
    Ok(Etc { hostname, sources })
}

/// What containers with a network of their own would find on this host.
pub(super) fn resolver(network: NetworkMode, settings: &Settings) -> Result<Resolver, EtcError> {
    let own = Resolver::parse(&read(&settings.network.resolv_conf)?);
    if network == NetworkMode::Host {
        return Ok(own);
    }
    if own.is_stub() {
        let upstream = Resolver::parse(&read(Path::new(RESOLVED))?).without_loopback();
        if upstream.has_nameservers() {
            return Ok(upstream);
        }
    }
    Ok(own.without_loopback())
}

/// What is not there says nothing.
fn read(path: &Path) -> Result<String, EtcError> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(EtcError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}
