//! Public keys: PEM files with an ECDSA key on P-256, as `cosign generate-key-pair` writes them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustix::fs::{Mode, OFlags};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{SubjectPublicKeyInfoDer, alg_id};

/// Largest file that is read as a key, bytes.
const LARGEST: u64 = 64 * 1024;

/// Before the bytes of the point in a SubjectPublicKeyInfo of this kind (RFC 5480, section 2):
/// id-ecPublicKey with prime256v1, and a bit string of 65 bytes, not compressed. There is one
/// encoding of it in DER.
const P256: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

/// Why a file has no key for us.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It could not be read.
    #[error("key {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It has no public key in it.
    #[error("key {} has no block `BEGIN PUBLIC KEY`: {why}", path.display())]
    NoPublicKey {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        why: String,
    },
    /// It has one of another kind.
    #[error("key {} is {found}; an ECDSA key on P-256 is allowed, not compressed", path.display())]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
}

/// A key of a rule, or why it cannot be used.
#[derive(Debug)]
pub struct Key {
    /// Its file.
    pub path: PathBuf,
    /// What is in it.
    pub key: Result<PublicKey, KeyError>,
}

impl Key {
    /// Reads the key in this file.
    pub fn read(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            key: PublicKey::read(path),
        }
    }
}

/// A point on P-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Reads the key in this file, which has to be a plain file of at most 64 KiB.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let bytes = contents(path).map_err(|source| KeyError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_pem(path, &bytes)
    }

    /// Reads the key in `pem`; `path` is for the errors.
    pub fn from_pem(path: &Path, pem: &[u8]) -> Result<Self, KeyError> {
        let found = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|error| {
            KeyError::NoPublicKey {
                path: path.to_owned(),
                why: error.to_string(),
            }
        })?;
        match found.strip_prefix(&P256[..26]) {
            Some(point) if found.starts_with(&P256) && point.len() == 65 => {
                Ok(Self(point.to_owned()))
            }
            _ => Err(KeyError::OtherKind {
                path: path.to_owned(),
                found: kind(&found),
            }),
        }
    }

    /// Whether the key has signed `message` (SHA-256, signature in DER).
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

/// What a SubjectPublicKeyInfo is that is none of ours, for the error.
fn kind(found: &[u8]) -> &'static str {
    let has = |id: &[u8]| found.windows(id.len()).any(|window| window == id);
    [
        (alg_id::RSA_ENCRYPTION, "an RSA key"),
        (alg_id::ECDSA_P384, "an ECDSA key on P-384"),
        (alg_id::ECDSA_P521, "an ECDSA key on P-521"),
        (alg_id::ED25519, "an Ed25519 key"),
        (alg_id::ECDSA_P256, "a damaged or compressed key on P-256"),
    ]
    .into_iter()
    .find(|(id, _)| has(id.as_ref()))
    .map_or("a key of a kind that is not known", |(_, kind)| kind)
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe would wait for somebody who writes.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    if about.len() > LARGEST {
        return Err(io::Error::other(format!(
            "it has {} bytes, at most {LARGEST} are allowed",
            about.len()
        )));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}
