//! What is known of the images of this host: one small file for each, in our own store.
//!
//! A record is written when an image is ready and goes when the image is evicted; it says what the
//! image needs, whether it is pinned, and how it came (its receipt). Promises: a file is replaced
//! whole or not at all, one that cannot be read is told and left alone, and several processes may
//! change the records of one store. What runs from an image,
//! and what containerd still has of it, is not here: that is asked.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::policy::KeptSignature;
use crate::{Digest, Image, Receipt};

/// Version of the files.
const VERSION: u32 = 1;

/// An image that is ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Full name.
    pub reference: String,
    /// Digest of what the reference named when it was pulled: an index or the manifest.
    pub target: String,
    /// Digest of the manifest for this host.
    pub digest: String,
    /// Digest of the config: the image's id.
    pub config: String,
    /// Name of the topmost unpacked layer.
    pub chain_id: String,
    /// Layers from the bottom up.
    pub layers: Vec<RecordedLayer>,
    /// Whether it must not be evicted.
    #[serde(default)]
    pub pinned: bool,
    /// When it became ready, in seconds since the epoch.
    pub ready_at: u64,
    /// When it was last asked for, in seconds since the epoch, to the hour.
    pub used_at: u64,
    /// How it came; none when it was there before anybody pulled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
    /// The signature by which the image policy let it in, where it wanted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<KeptSignature>,
}

/// A layer of an image that is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedLayer {
    /// Digest of the blob.
    pub digest: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Digest of the uncompressed blob.
    pub diff_id: String,
}

impl Record {
    /// The record of an image that is ready now.
    pub fn of(image: &Image, receipt: Option<Receipt>) -> Self {
        let layers = image.layers.iter().zip(&image.diff_ids);
        let now = now();
        Self {
            version: VERSION,
            reference: image.reference.to_string(),
            target: image.target.digest.to_string(),
            digest: image.manifest.digest.to_string(),
            config: image.config.digest.to_string(),
            chain_id: image.chain_id.to_string(),
            layers: layers
                .map(|(blob, diff_id)| RecordedLayer {
                    digest: blob.digest.to_string(),
                    size: blob.size,
                    diff_id: diff_id.to_string(),
                })
                .collect(),
            pinned: false,
            ready_at: now,
            used_at: now,
            receipt,
            signature: None,
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Why a record was not read or written. What was there before is there.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The file system refused.
    #[error("image records: cannot {operation} {}", .path.display())]
    Io {
        /// What was asked for.
        operation: &'static str,
        /// Of which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is no record.
    #[error("image records: {} is no record; it stays as it is", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file was written by a later version.
    #[error(
        "image records: {} has version {found}; this version understands {VERSION}",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// The records of one store. Clones share them.
#[derive(Debug, Clone)]
pub struct Records {
    root: Arc<Path>,
    /// Whoever reads a record to change it is alone: in this process by the mutex, and by a
    /// flock(2) on the file among all that have the store open.
    changing: Arc<Mutex<File>>,
}

impl Records {
    /// Opens the records below `store`.
    pub fn open(store: &Path) -> Result<Self, RecordsError> {
        let root = store.join("images");
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&root);
        made.map_err(failed("create", &root))?;
        let lock = root.join("lock");
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let opened = options.open(&lock).map_err(failed("create", &lock))?;
        Ok(Self {
            root: Arc::from(root),
            changing: Arc::new(Mutex::new(opened)),
        })
    }

    /// The record of this full name.
    pub fn get(&self, reference: &str) -> Result<Option<Record>, RecordsError> {
        read(&self.path(reference))
    }

    /// All records, by name.
    pub fn list(&self) -> Result<Vec<Record>, RecordsError> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed("list", &self.root))? {
            let path = entry.map_err(failed("list", &self.root))?.path();
            if path.extension().is_some_and(|is| is == "json") {
                records.extend(read(&path)?);
            }
        }
        records.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    /// Writes the record of an image that is ready. One that is pinned stays pinned.
    pub fn put(&self, mut record: Record) -> Result<Record, RecordsError> {
        let _changing = self.changing()?;
        if let Some(before) = self.get(&record.reference)? {
            record.pinned |= before.pinned;
            if before.target == record.target {
                record.signature = record.signature.or(before.signature);
            }
            if before.digest == record.digest && record.receipt.is_none() {
                record.receipt = before.receipt;
                record.ready_at = before.ready_at;
            }
        }
        self.write(&record)?;
        Ok(record)
    }

    /// Changes the record of this full name; none when there is none.
    pub fn change(
        &self,
        reference: &str,
        change: impl FnOnce(&mut Record),
    ) -> Result<Option<Record>, RecordsError> {
        let _changing = self.changing()?;
        let Some(mut record) = self.get(reference)? else {
            return Ok(None);
        };
        let before = record.clone();
        change(&mut record);
        if record != before {
            self.write(&record)?;
        }
        Ok(Some(record))
    }

    /// Says that an image was asked for. To the hour: it is not worth a write each time. Whether
    /// there is a record of it.
    pub fn used(&self, reference: &str) -> Result<bool, RecordsError> {
        let now = now();
        let hour = |time: u64| time / 3600;
        let Some(record) = self.get(reference)? else {
            return Ok(false);
        };
        if hour(record.used_at) < hour(now) {
            self.change(reference, |record| record.used_at = now)?;
        }
        Ok(true)
    }

    /// Removes a record; whether it was there.
    pub fn remove(&self, reference: &str) -> Result<bool, RecordsError> {
        let _changing = self.changing()?;
        let path = self.path(reference);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    fn write(&self, record: &Record) -> Result<(), RecordsError> {
        let path = self.path(&record.reference);
        let temporary = path.with_extension("new");
        let put = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(record)?;
            text.push(b'\n');
            let mut file = File::create(&temporary)?;
            file.write_all(&text)?;
            // A record that is there is whole, also after power was lost.
            file.sync_data()?;
            fs::rename(&temporary, &path)
        };
        put().map_err(failed("write", &path))
    }

    /// Names have slashes and are long: the file's name is a hash of it.
    fn path(&self, reference: &str) -> PathBuf {
        let name = Digest::of(reference.as_bytes());
        self.root.join(name.hex()).with_extension("json")
    }

    /// Waits for who is at it: for as long as one file takes to be written.
    fn changing(&self) -> Result<Changing<'_>, RecordsError> {
        let file = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let locked = flock(&*file, FlockOperation::LockExclusive).map_err(io::Error::from);
        locked.map_err(failed("lock", &self.root))?;
        Ok(Changing(file))
    }
}

/// As long as it is there, nobody else changes records.
struct Changing<'r>(MutexGuard<'r, File>);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // The kernel unlocks it when the file is closed, at the latest.
        let _ = flock(&*self.0, FlockOperation::Unlock);
    }
}

fn read(path: &Path) -> Result<Option<Record>, RecordsError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let malformed = |source| RecordsError::Malformed {
        path: path.to_owned(),
        source,
    };
    let Version { version } = serde_json::from_slice(&text).map_err(malformed)?;
    if version > VERSION {
        return Err(RecordsError::Newer {
            path: path.to_owned(),
            found: version,
        });
    }
    serde_json::from_slice(&text).map(Some).map_err(malformed)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordsError {
    let path = path.to_owned();
    move |source| RecordsError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is the report")]

    use super::*;

    fn record(name: &str) -> Record {
        Record {
            version: VERSION,
            reference: name.to_owned(),
            target: "sha256:t".to_owned(),
            digest: "sha256:d".to_owned(),
            config: "sha256:c".to_owned(),
            chain_id: "sha256:x".to_owned(),
            layers: vec![RecordedLayer {
                digest: "sha256:l".to_owned(),
                size: 7,
                diff_id: "sha256:i".to_owned(),
            }],
            pinned: false,
            ready_at: 100,
            used_at: 100,
            receipt: None,
            signature: None,
        }
    }

    #[test]
    fn records_are_there_for_the_next_process() {
        let store = tempfile::tempdir().unwrap();
        let records = Records::open(store.path()).unwrap();
        for name in ["r.lan/web:1", "r.lan/api:1"] {
            records.put(record(name)).unwrap();
        }
        let records = Records::open(store.path()).unwrap();
        let names: Vec<String> = records
            .list()
            .unwrap()
            .into_iter()
            .map(|r| r.reference)
            .collect();
        assert_eq!(names, ["r.lan/api:1", "r.lan/web:1"]);
        assert_eq!(
            records.get("r.lan/web:1").unwrap(),
            Some(record("r.lan/web:1"))
        );
        assert!(records.remove("r.lan/web:1").unwrap());
        assert!(!records.remove("r.lan/web:1").unwrap());
        assert_eq!(records.get("r.lan/web:1").unwrap(), None);
    }

    #[test]
    fn a_pinned_image_that_is_pulled_again_stays_pinned() {
        let store = tempfile::tempdir().unwrap();
        let records = Records::open(store.path()).unwrap();
        records.put(record("web")).unwrap();
        assert_eq!(records.change("none", |_| ()).unwrap(), None);
        records
            .change("web", |record| record.pinned = true)
            .unwrap();
        assert!(records.put(record("web")).unwrap().pinned);
        assert!(records.get("web").unwrap().unwrap().pinned);
        assert!(records.used("web").unwrap());
        assert!(!records.used("api").unwrap(), "there is none of it");
        assert!(records.get("web").unwrap().unwrap().used_at > 100);
    }

    #[test]
    fn two_that_have_the_store_open_change_records_in_turn() {
        let store = tempfile::tempdir().unwrap();
        let first = Records::open(store.path()).unwrap();
        first.put(record("web")).unwrap();
        let second = Records::open(store.path()).unwrap();
        std::thread::scope(|scope| {
            for records in [&first, &second, &first, &second] {
                scope.spawn(move || {
                    for _ in 0..25 {
                        records.change("web", |record| record.used_at += 1).unwrap();
                    }
                });
            }
        });
        assert_eq!(first.get("web").unwrap().unwrap().used_at, 200);
    }

    #[test]
    fn what_is_no_record_is_told_and_stays() {
        let store = tempfile::tempdir().unwrap();
        let records = Records::open(store.path()).unwrap();
        records.put(record("web")).unwrap();
        let path = records.path("web");
        for (text, words) in [
            ("{", "is no record; it stays"),
            (
                "{\"version\": 2}",
                "has version 2; this version understands 1",
            ),
        ] {
            fs::write(&path, text).unwrap();
            let error = records.put(record("web")).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
