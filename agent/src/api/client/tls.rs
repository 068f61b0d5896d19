//! Calling an agent on another host: TLS with certificates on both sides.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Client, ClientError};
use crate::pem;

/// Host and port of an agent: `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    name: ServerName<'static>,
    port: u16,
}

const RULE: &str = "https://HOST:PORT is expected, for example https://host7.example.com:7443";

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let authority = text.strip_prefix("https://").ok_or(RULE)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.rsplit_once(':').ok_or(RULE)?;
        // An IPv6 address stands in brackets (RFC 3986, 3.2.2).
        let address = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let name = ServerName::try_from(address.unwrap_or(host)).map_err(|_| RULE)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(RULE)?;
        Ok(Self {
            name: name.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (self.name.to_str(), self.port);
        match host.contains(':') {
            true => write!(f, "https://[{host}]:{port}"),
            false => write!(f, "https://{host}:{port}"),
        }
    }
}

/// What a caller from another host shows, and whom it believes: PEM files. All are needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The caller's certificate.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Authorities of agents' certificates.
    pub authorities: Option<PathBuf>,
}

impl Client {
    pub(super) async fn secured(
        &self,
        remote: &Remote,
        credentials: &Credentials,
    ) -> Result<TlsStream<TcpStream>, ClientError> {
        let config = credentials.load()?;
        let host = remote.name.to_str();
        let stream = TcpStream::connect((host.as_ref(), remote.port)).await;
        let stream = stream.map_err(|source| self.unreachable(source))?;
        stream
            .set_nodelay(true)
            .map_err(|source| self.unreachable(source))?;
        let connector = TlsConnector::from(Arc::new(config));
        let secured = connector.connect(remote.name.clone(), stream).await;
        secured.map_err(|source| self.unshaken(source))
    }

    pub(super) fn unshaken(&self, source: io::Error) -> ClientError {
        let inner = source
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        let what = match inner {
            Some(rustls::Error::AlertReceived(alert)) => format!(
                "it does not accept this caller's certificate ({})",
                said(*alert)
            ),
            Some(rustls::Error::InvalidCertificate(why)) => {
                format!("its certificate is not accepted (--ca): {why}")
            }
            Some(rustls::Error::InvalidMessage(_)) => "no TLS is spoken there".to_owned(),
            _ => "the TLS handshake failed".to_owned(),
        };
        ClientError::Handshake {
            agent: self.address(),
            what,
            source,
        }
    }
}

/// What an agent means by it (RFC 8446, 6.2).
fn said(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => "it has expired".to_owned(),
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "its authority is not known there".to_owned()
        }
        AlertDescription::CertificateRequired => "none was shown".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The alert that ended the connection, if one did.
pub(super) fn alert(error: &hyper::Error) -> Option<rustls::Error> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(alert @ rustls::Error::AlertReceived(_)) = inner {
            return Some(alert.clone());
        }
        cause = error.source();
    }
    None
}

impl Credentials {
    fn load(&self) -> Result<ClientConfig, ClientError> {
        let certificate = given(&self.certificate, "the certificate (--cert)")?;
        let key = given(&self.key, "the key (--key)")?;
        let authorities = given(&self.authorities, "the authorities (--ca)")?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities)? {
            roots
                .add(authority)
                .map_err(|e| unusable(authorities, &e))?;
        }
        let chain = certificates(certificate)?;
        let secret = pem::private_key(key).map_err(|e| unreadable(key, &e))?;
        let provider = Arc::new(ring::default_provider());
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                let builder = builder.with_root_certificates(roots);
                builder.with_client_auth_cert(chain, secret)
            })
            .map_err(|e| unusable(certificate, &e))
    }
}

fn given<'a>(file: &'a Option<PathBuf>, name: &str) -> Result<&'a Path, ClientError> {
    file.as_deref().ok_or_else(|| ClientError::Credentials {
        file: name.to_owned(),
        why: "needed with --server: a PEM file".to_owned(),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    pem::certificates(path).map_err(|error| match error {
        pem::Error::NoItemsFound => unusable(path, &"it holds no certificate"),
        error => unreadable(path, &error),
    })
}

fn unreadable(path: &Path, error: &pem::Error) -> ClientError {
    match error {
        pem::Error::Io(error) => unusable(path, error),
        pem::Error::NoItemsFound => unusable(path, &"it holds nothing of the kind as PEM"),
        other => unusable(path, other),
    }
}

fn unusable(path: &Path, why: &dyn fmt::Display) -> ClientError {
    ClientError::Credentials {
        file: path.display().to_string(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for text in [
            "https://host7:7443",
            "https://10.0.0.7:1",
            "https://[::1]:7443",
        ] {
            assert_eq!(text.parse::<Remote>().unwrap().to_string(), text);
        }
        for bad in [
            "host7:7443",
            "http://host7:7443",
            "https://host7",
            "https://host7:0",
            "https://:1",
            "https://h:1/v1",
        ] {
            assert_eq!(bad.parse::<Remote>(), Err(RULE.to_owned()), "{bad}");
        }
    }
}
