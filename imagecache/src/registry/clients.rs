//! HTTP clients: one for each set of certificates, made when it is needed, shared by all pulls.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use reqwest::tls::{Certificate, Identity};
use reqwest::{Client, NoProxy, Proxy, Url, redirect};

use crate::fetch::{FetchOptions, ProxySettings};

/// A TCP (and TLS) handshake that takes longer than this has failed.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(20);
/// Clients kept; certificates that change leave old ones behind.
const MOST_CLIENTS: usize = 64;

/// Whom a host is taken for, and who we are to it. Read from files anew for each pull, so that
/// renewed certificates count.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Trust {
    /// Certificates (PEM) trusted beside the system's, with the file that has them.
    pub ca: Vec<(PathBuf, Vec<u8>)>,
    /// Our certificate and key (PEM, in one), with the file that has it.
    pub identity: Option<(PathBuf, Vec<u8>)>,
    /// Believe anybody.
    pub skip_verify: bool,
    /// Another deadline for handshakes than [`CONNECT`].
    pub connect: Option<Duration>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("certificates of {} cannot be read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} has no usable {what} in PEM", .path.display())]
    Pem { path: PathBuf, what: &'static str },
    #[error("proxy {shown:?} is no http:// or https:// URL")]
    Proxy { shown: String },
    #[error("the HTTP client could not be set up")]
    Build(#[source] reqwest::Error),
}

/// All clients of the process's pulls.
pub(crate) struct Clients {
    connect: Duration,
    idle_per_host: usize,
    ca_file: Option<PathBuf>,
    proxy: ProxySettings,
    made: Mutex<HashMap<Key, Client>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    trust: Trust,
    way: Way,
    secure: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Direct,
    Proxy,
}

impl Clients {
    pub(crate) fn new(options: &FetchOptions) -> Self {
        Self {
            connect: CONNECT.min(options.stall_timeout),
            idle_per_host: options.connections,
            ca_file: options.ca_file.clone(),
            proxy: options.proxy.clone(),
            made: Mutex::default(),
        }
    }

    /// The client for `url`.
    pub(crate) fn get(&self, url: &Url, trust: &Trust) -> Result<Client, ClientError> {
        let key = Key {
            trust: trust.clone(),
            way: if is_loopback(url) {
                Way::Direct
            } else {
                Way::Proxy
            },
            secure: url.scheme() == "https",
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&key) {
            return Ok(client.clone());
        }
        let client = self.make(&key)?;
        if made.len() >= MOST_CLIENTS {
            made.clear();
        }
        made.insert(key, client.clone());
        Ok(client)
    }

    fn make(&self, key: &Key) -> Result<Client, ClientError> {
        provide_tls();
        let mut builder = Client::builder()
            .user_agent(concat!("nodeagent/", env!("CARGO_PKG_VERSION")))
            // Redirects are followed by us: a client does not know which headers are secret.
            .redirect(redirect::Policy::none())
            .referer(false)
            .http1_only()
            .connect_timeout(
                key.trust
                    .connect
                    .map_or(self.connect, |own| own.min(self.connect)),
            )
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(self.idle_per_host);
        builder = match (key.way, &self.proxy) {
            (Way::Direct, _) | (_, ProxySettings::Direct) => builder.no_proxy(),
            (Way::Proxy, ProxySettings::Environment) => builder,
            (Way::Proxy, ProxySettings::Url { url, except }) => {
                builder.no_proxy().proxy(proxy(url, except)?)
            }
        };
        if key.secure {
            builder = self.secure(builder, &key.trust)?;
        } else {
            // Reading the system's certificates takes longer than a whole pull of little.
            builder = builder.tls_certs_only([]);
        }
        builder.build().map_err(ClientError::Build)
    }

    fn secure(
        &self,
        mut builder: reqwest::ClientBuilder,
        trust: &Trust,
    ) -> Result<reqwest::ClientBuilder, ClientError> {
        for (path, pem) in &trust.ca {
            builder = builder.tls_certs_merge(certificates(path, pem)?);
        }
        if let Some(path) = &self.ca_file {
            let pem = std::fs::read(path).map_err(|source| ClientError::Read {
                path: path.clone(),
                source,
            })?;
            builder = builder.tls_certs_merge(certificates(path, &pem)?);
        }
        if let Some((path, pem)) = &trust.identity {
            // The parser's error could quote the key.
            let identity = Identity::from_pem(pem).map_err(|_| ClientError::Pem {
                path: path.clone(),
                what: "certificate with its key",
            })?;
            builder = builder.identity(identity);
        }
        Ok(builder.tls_danger_accept_invalid_certs(trust.skip_verify))
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<Certificate>, ClientError> {
    let refuse = || ClientError::Pem {
        path: path.to_owned(),
        what: "certificate",
    };
    let certificates = Certificate::from_pem_bundle(pem).map_err(|_| refuse())?;
    if certificates.is_empty() {
        return Err(refuse());
    }
    Ok(certificates)
}

fn proxy(url: &str, except: &str) -> Result<Proxy, ClientError> {
    let refuse = || ClientError::Proxy {
        // User and password stay here.
        shown: url.rsplit('@').next().unwrap_or_default().to_owned(),
    };
    let parsed: Url = url.parse().map_err(|_| refuse())?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        return Err(refuse());
    }
    let proxy = Proxy::all(parsed).map_err(|_| refuse())?;
    Ok(proxy.no_proxy(NoProxy::from_string(except)))
}

/// Whether `url` is on this host's loopback.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// rustls is built without a default provider; the first one installed in the process serves all.
fn provide_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider()
            .install_default()
            .is_err()
        {
            tracing::debug!("another TLS provider is installed already and will be used");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn loopback_is_asked_directly() {
        for (text, loopback) in [
            ("http://127.0.0.1:5000/v2/", true),
            ("https://[::1]/v2/", true),
            ("http://localhost/", true),
            ("https://127.evil.example/", false),
            ("https://10.0.0.1/", false),
        ] {
            assert_eq!(is_loopback(&url(text)), loopback, "{text}");
        }
    }

    #[test]
    fn a_wrong_proxy_is_refused_without_its_password() {
        for wrong in [
            "joe:s3cret@p:1",
            "socks5://joe:s3cret@p:1",
            "http://joe:s3cret@",
        ] {
            let options = FetchOptions {
                proxy: ProxySettings::Url {
                    url: wrong.to_owned(),
                    except: String::new(),
                },
                ..FetchOptions::default()
            };
            let made = Clients::new(&options).get(&url("https://r.lan/"), &Trust::default());
            let error = made.unwrap_err().to_string();
            assert!(error.contains("is no http://"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn wrong_certificates_are_refused_with_their_file() {
        let trust = Trust {
            ca: vec![("/etc/ca.pem".into(), b"no certificate".to_vec())],
            ..Trust::default()
        };
        let clients = Clients::new(&FetchOptions::default());
        let error = clients.get(&url("https://r.lan/"), &trust).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/etc/ca.pem has no usable certificate in PEM"
        );
        let trust = Trust {
            identity: Some(("/etc/key.pem".into(), b"s3cret".to_vec())),
            ..Trust::default()
        };
        let error = clients.get(&url("https://r.lan/"), &trust).unwrap_err();
        assert!(error.to_string().starts_with("/etc/key.pem"), "{error}");
    }
}
