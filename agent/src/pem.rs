//! Certificates and private keys from PEM files.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) use rustls::pki_types::pem::Error;

/// A file that the configuration names cannot be read, or is no PEM of what it should hold.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} from {} ({key})", path.display())]
pub struct Unreadable {
    /// What it should hold.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The configuration's key.
    pub key: &'static str,
    /// Why.
    pub source: Error,
}

/// All certificates of a file, at least one; [`Error::NoItemsFound`] when it holds none.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
    match found.is_empty() {
        true => Err(Error::NoItemsFound),
        false => Ok(found),
    }
}

/// The first private key of a file; [`Error::NoItemsFound`] when it holds none.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path)
}

/// [`certificates`] of the file that `key` of the configuration names.
pub(crate) fn configured_certificates(
    path: &Path,
    key: &'static str,
) -> Result<Vec<CertificateDer<'static>>, Unreadable> {
    certificates(path).map_err(|source| Unreadable {
        what: "certificates",
        path: path.to_owned(),
        key,
        source,
    })
}

/// [`private_key`] of the file that `key` of the configuration names.
pub(crate) fn configured_private_key(
    path: &Path,
    key: &'static str,
) -> Result<PrivateKeyDer<'static>, Unreadable> {
    private_key(path).map_err(|source| Unreadable {
        what: "a private key",
        path: path.to_owned(),
        key,
        source,
    })
}
