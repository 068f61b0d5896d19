//! Which hosts are asked for a registry's content: mirrors of the hosts directory in its order,
//! the registry itself last.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::clients::Trust;
use super::hosts_file::{self, HostSettings, HostsError, HostsFile};
use crate::fetch::SourceKind;
use crate::{PullError, Reference};

/// Where Docker Hub's API is.
const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// A host to ask.
#[derive(Clone)]
pub(crate) struct Host {
    /// `host[:port]`, as errors and receipts name it.
    pub name: String,
    pub kind: SourceKind,
    /// Root of the API.
    pub api: Url,
    /// `ns=`: the registry that a mirror is to answer for.
    pub namespace: Option<String>,
    pub pull: bool,
    pub resolve: bool,
    pub headers: HeaderMap,
    pub trust: Arc<Trust>,
}

/// The hosts of `reference`'s registry in the order in which they are asked.
pub(crate) fn of(
    reference: &Reference,
    directory: Option<&Path>,
    insecure: &[String],
) -> Result<Vec<Host>, PullError> {
    let registry = reference.registry();
    let file = match directory {
        Some(directory) => find(directory, registry)?,
        None => None,
    };
    let HostsFile {
        mirrors,
        server,
        upstream,
    } = file.unwrap_or(HostsFile {
        mirrors: Vec::new(),
        server: None,
        upstream: HostSettings::default(),
    });
    let mut hosts = Vec::with_capacity(mirrors.len() + 1);
    for mirror in mirrors {
        let name = name(&mirror.api);
        let own = name == registry || (registry == "docker.io" && name == DOCKER_HUB_API);
        let kind = match own {
            true => SourceKind::Registry,
            false => SourceKind::Mirror,
        };
        hosts.push(host(name, kind, mirror.api, registry, mirror.settings)?);
    }
    let api = match server {
        Some(server) => server,
        None => own_api(reference, insecure)?,
    };
    // Whatever its address is, errors name it as the reference does.
    let kind = SourceKind::Registry;
    hosts.push(host(registry.to_owned(), kind, api, registry, upstream)?);
    Ok(hosts)
}

fn own_api(reference: &Reference, insecure: &[String]) -> Result<Url, PullError> {
    let registry = reference.registry();
    let scheme = match reference.is_plain_http(insecure) {
        true => "http",
        false => "https",
    };
    let address = match registry {
        "docker.io" => DOCKER_HUB_API,
        other => other,
    };
    let api = format!("{scheme}://{address}/v2");
    api.parse()
        .map_err(|source: url::ParseError| PullError::Client {
            registry: registry.to_owned(),
            source: source.into(),
        })
}

fn host(
    name: String,
    kind: SourceKind,
    api: Url,
    registry: &str,
    settings: HostSettings,
) -> Result<Host, PullError> {
    let trust = trust(&settings).map_err(|(path, source)| PullError::Client {
        registry: name.clone(),
        source: super::clients::ClientError::Read { path, source }.into(),
    })?;
    Ok(Host {
        namespace: (kind == SourceKind::Mirror).then(|| registry.to_owned()),
        name,
        kind,
        api,
        pull: settings.pull,
        resolve: settings.resolve,
        headers: settings.header,
        trust: Arc::new(trust),
    })
}

fn trust(settings: &HostSettings) -> Result<Trust, (PathBuf, io::Error)> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|error| (path.clone(), error));
    let mut ca = Vec::new();
    for path in &settings.ca {
        ca.push((path.clone(), read(path)?));
    }
    // One certificate proves who we are; where there are several, the first does.
    let identity = match settings.client.first() {
        None => None,
        Some((certificate, key)) => {
            let mut pem = read(certificate)?;
            if let Some(key) = key {
                pem.push(b'\n');
                pem.extend(read(key)?);
            }
            Some((certificate.clone(), pem))
        }
    };
    Ok(Trust {
        ca,
        identity,
        skip_verify: settings.skip_verify,
        connect: settings.dial_timeout,
    })
}

/// The file for `registry`: in the directory of its name (a port as `_5000_` or `:5000`), else in
/// `_default`. A directory without `hosts.toml` has certificates alone, as docker's `certs.d` does.
fn find(root: &Path, registry: &str) -> Result<Option<HostsFile>, PullError> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    for name in names {
        let directory = root.join(name);
        if !directory.is_dir() {
            continue;
        }
        let file = directory.join("hosts.toml");
        return match std::fs::read_to_string(&file) {
            Ok(text) => Ok(Some(hosts_file::parse(&file, &text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => certificates(&directory)
                .map(Some)
                .map_err(|error| unreadable(directory, &error)),
            Err(error) => Err(unreadable(file, &error)),
        };
    }
    Ok(None)
}

fn unreadable(file: PathBuf, error: &io::Error) -> PullError {
    PullError::Hosts(HostsError {
        file,
        key: "file".to_owned(),
        value: "unreadable".to_owned(),
        allowed: error.to_string(),
    })
}

fn certificates(directory: &Path) -> io::Result<HostsFile> {
    let mut upstream = HostSettings::default();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => upstream.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                upstream.client.push((path, Some(key)));
            }
            _ => {}
        }
    }
    // Directories have no order.
    upstream.ca.sort();
    upstream.client.sort();
    Ok(HostsFile {
        mirrors: Vec::new(),
        server: None,
        upstream,
    })
}

fn name(api: &Url) -> String {
    let host = api.host_str().unwrap_or_default();
    match api.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(reference: &str, directory: Option<&Path>) -> Result<Vec<Host>, PullError> {
        of(&reference.parse().unwrap(), directory, &[])
    }

    fn shown(hosts: &[Host]) -> Vec<(String, &str, Option<&str>)> {
        let show = |host: &Host| {
            let namespace = host.namespace.clone();
            (host.api.to_string(), host.kind.as_str(), namespace)
        };
        let shown = hosts.iter().map(show);
        shown
            .map(|(api, kind, namespace)| (api, kind, namespace.map(|n| &*n.leak())))
            .collect()
    }

    fn write(root: &Path, directory: &str, file: &str, text: &str) {
        let directory = root.join(directory);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(file), text).unwrap();
    }

    #[test]
    fn without_a_file_the_registry_itself_is_asked() {
        for (reference, api) in [
            ("busybox", "https://registry-1.docker.io/v2"),
            ("r.lan:5000/web", "https://r.lan:5000/v2"),
            ("127.0.0.1:5000/web", "http://127.0.0.1:5000/v2"),
        ] {
            let found = hosts(reference, None).unwrap();
            assert_eq!(shown(&found), [(api.to_owned(), "registry", None)]);
            assert_eq!(
                found[0].name,
                reference.parse::<Reference>().unwrap().registry()
            );
        }
    }

    #[test]
    fn mirrors_come_first_and_are_told_whom_they_answer_for() {
        let root = tempfile::tempdir().unwrap();
        let text = "[host.\"https://m.lan\"]\n[host.\"https://a.lan\"]\ncapabilities = [\"pull\"]";
        write(root.path(), "docker.io", "hosts.toml", text);
        let found = hosts("busybox", Some(root.path())).unwrap();
        assert_eq!(
            shown(&found),
            [
                ("https://m.lan/v2".to_owned(), "mirror", Some("docker.io")),
                ("https://a.lan/v2".to_owned(), "mirror", Some("docker.io")),
                (
                    "https://registry-1.docker.io/v2".to_owned(),
                    "registry",
                    None
                ),
            ]
        );
        assert!(!found[1].resolve && found[1].pull);
        assert_eq!(found[2].name, "docker.io");
    }

    #[test]
    fn a_directory_is_found_by_its_name_with_port_and_else_the_default_holds() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "_default",
            "hosts.toml",
            "server = \"https://d.lan\"",
        );
        write(
            root.path(),
            "r.lan_5000_",
            "hosts.toml",
            "server = \"http://x.lan\"",
        );
        let asked = |reference: &str| {
            let found = hosts(reference, Some(root.path())).unwrap();
            found[0].api.to_string()
        };
        assert_eq!(asked("r.lan:5000/web"), "http://x.lan/v2");
        assert_eq!(asked("s.lan/web"), "https://d.lan/v2");
        assert_eq!(asked("r.lan/web"), "https://d.lan/v2");
    }

    #[test]
    fn a_directory_of_certificates_alone_is_dockers() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "r.lan", "ca.crt", "CA");
        write(root.path(), "r.lan", "own.cert", "CERT");
        write(root.path(), "r.lan", "own.key", "KEY");
        let found = hosts("r.lan/web", Some(root.path())).unwrap();
        let trust = &found[0].trust;
        assert_eq!(trust.ca[0].1, b"CA");
        assert_eq!(trust.identity.as_ref().unwrap().1, b"CERT\nKEY");
    }

    #[test]
    fn a_certificate_that_is_not_there_is_named() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "r.lan", "hosts.toml", "ca = \"gone.crt\"");
        let Err(error) = hosts("r.lan/web", Some(root.path())) else {
            panic!("it was not missed")
        };
        let PullError::Client { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(source.to_string().contains("gone.crt"), "{source}");
    }
}
