//! The first look at an archive: names, sizes and the documents in it. Bounded, whatever it says.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::ControlFlow;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::ImportError;
use super::contents::{BLOBS, Contents, Item};
use crate::inflate::Format;
use crate::manifest::CONFIG_LIMIT;
use crate::waiting::Cancel;
use crate::{Descriptor, Digest};

/// Most entries; an archive with more is no set of images.
const MOST_ENTRIES: usize = 65_536;
/// Most bytes of all documents together.
const MOST_DOCUMENTS: u64 = 48 << 20;
/// Most bytes of an archive once it is not compressed any more: 1 TiB. What it may put on the disk
/// is bounded by its documents.
const MOST_BYTES: u64 = 1 << 40;

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Survey {
    files: BTreeMap<String, Found>,
}

#[derive(Debug)]
enum Found {
    File(Seen),
    Link(String),
}

/// A file, seen once.
#[derive(Debug)]
pub(super) struct Seen {
    /// In bytes.
    pub size: u64,
    /// Whether it is compressed.
    pub compressed: bool,
    document: Option<Bytes>,
}

impl Survey {
    /// Looks at everything. Blocks.
    pub fn of(contents: &Contents, cancel: &Cancel) -> Result<Self, ImportError> {
        let mut survey = Self::default();
        let (mut documents, mut total) = (0, 0_u64);
        contents.visit(&mut |name, item| {
            cancel.check()?;
            let found = match item {
                Item::Link(target) => Found::Link(target),
                Item::File { size, data } => {
                    total = total.saturating_add(size);
                    bound(total, MOST_BYTES, "bytes")?;
                    let seen = look(name, size, data)?;
                    documents += seen.document.as_ref().map_or(0, |kept| kept.len() as u64);
                    bound(documents, MOST_DOCUMENTS, "bytes of documents")?;
                    Found::File(seen)
                }
            };
            if survey.files.insert(name.to_owned(), found).is_some() {
                return Err(ImportError::Entry {
                    name: name.to_owned(),
                    why: "there are two of that name".to_owned(),
                });
            }
            bound(survey.files.len() as u64, MOST_ENTRIES as u64, "entries")?;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(survey)
    }

    /// Whether there is something of that name.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// The file behind a name and, when that is a link, behind the link; with the name that has
    /// the bytes.
    pub fn file(&self, name: &str, wanted_by: &str) -> Result<(&str, &Seen), ImportError> {
        let missing = |name: &str| ImportError::Missing {
            name: name.to_owned(),
            wanted_by: wanted_by.to_owned(),
        };
        let (mut at, mut found) = self
            .files
            .get_key_value(name)
            .ok_or_else(|| missing(name))?;
        if let Found::Link(target) = found {
            (at, found) = self
                .files
                .get_key_value(target)
                .ok_or_else(|| missing(target))?;
        }
        match found {
            Found::File(seen) => Ok((at, seen)),
            Found::Link(_) => Err(ImportError::Entry {
                name: name.to_owned(),
                why: "it is a link to a link".to_owned(),
            }),
        }
    }

    /// A file of the layout itself.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, ImportError> {
        let (_, seen) = self.file(name, "the layout")?;
        let text = seen.document.as_deref().unwrap_or_default();
        serde_json::from_slice(text).map_err(|error| ImportError::Malformed {
            name: name.to_owned(),
            why: error.to_string(),
        })
    }

    /// The bytes of a document, whatever they are.
    pub fn document(&self, name: &str, wanted_by: &str) -> Result<Bytes, ImportError> {
        let (_, seen) = self.file(name, wanted_by)?;
        seen.document.clone().ok_or_else(|| ImportError::Malformed {
            name: name.to_owned(),
            why: format!("it is no JSON document of at most {CONFIG_LIMIT} bytes"),
        })
    }

    /// The bytes of a document of a layout, found right.
    pub fn blob(&self, blob: &Descriptor, wanted_by: &str) -> Result<Bytes, ImportError> {
        let name = blob_name(&blob.digest);
        let bytes = self.document(&name, wanted_by)?;
        check_size(&name, blob.size, bytes.len() as u64)?;
        let got = Digest::of(&bytes);
        if got == blob.digest {
            return Ok(bytes);
        }
        Err(ImportError::Damaged {
            name,
            expected: blob.digest.to_string(),
            got: got.to_string(),
        })
    }
}

/// `blobs/sha256/<hex>`.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("{BLOBS}/{}", digest.hex())
}

/// Refuses a file of another size than a document says.
pub(super) fn check_size(name: &str, expected: u64, got: u64) -> Result<(), ImportError> {
    if expected == got {
        return Ok(());
    }
    Err(ImportError::Damaged {
        name: name.to_owned(),
        expected: format!("{expected} bytes"),
        got: format!("{got} bytes"),
    })
}

/// Keeps what can be a document: small, and JSON begins it.
fn look(name: &str, size: u64, data: &mut dyn Read) -> Result<Seen, ImportError> {
    let failed = |source| ImportError::Read {
        name: name.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    data.take(4).read_to_end(&mut bytes).map_err(failed)?;
    let compressed = Format::of(&bytes) != Format::Plain;
    let begins = matches!(
        bytes.first(),
        Some(b'{' | b'[' | b' ' | b'\n' | b'\r' | b'\t')
    );
    let mut document = None;
    if begins && size <= CONFIG_LIMIT {
        data.take(CONFIG_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        document = Some(bytes.into());
    }
    Ok(Seen {
        size,
        compressed,
        document,
    })
}

fn bound(wanted: u64, allowed: u64, what: &'static str) -> Result<(), ImportError> {
    match wanted > allowed {
        true => Err(ImportError::TooLarge { what, allowed }),
        false => Ok(()),
    }
}
