//! Whether an unpacked layer is still what its blob says.
//!
//! The layer is extracted once more beside it, from its verified blob, and the two trees are
//! compared. Nothing is changed, and the second tree is gone before the answer comes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::extract::Turn;
use super::image::{blocking, chain_mark};
use super::implicit::inherit;
use super::{Extraction, Layer, Tree, UnpackError, Workplace};
use crate::blobs::Blobs;
use crate::cache::Cache;
use crate::layer::{CompareError, Difference, What, compare};
use crate::waiting::Cancel;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recheck {
    /// It is what its blob says.
    Right,
    /// It is not.
    Damaged {
        /// Sentences, each with a path from the layer's root: what should be there comes first,
        /// what is there second.
        differences: Vec<String>,
        /// Whether there are more.
        is_cut: bool,
    },
    /// Its blob is not in our store: there is nothing to compare it with.
    Absent,
}

impl Cache {
    /// Compares an unpacked layer with its blob, and lists at most `most` differences. Of
    /// `directories` the first is the layer's, and those below it follow, the topmost first.
    /// A layer that a former boot left unsettled and that is right is trusted from now on. Rests
    /// while layers of pulls are extracted. Takes as much room in `workplace` as the layer has.
    pub async fn recheck(
        &self,
        layer: &Layer,
        directories: &[PathBuf],
        workplace: &Workplace,
        most: usize,
    ) -> Result<Recheck, UnpackError> {
        let work = Work {
            layer: layer.clone(),
            directories: directories.to_vec(),
            workplace: workplace.clone(),
            extraction: self.extraction.clone(),
            blobs: self.blobs.clone(),
            most,
        };
        blocking(move |cancel| work.run(cancel)).await
    }
}

struct Work {
    layer: Layer,
    directories: Vec<PathBuf>,
    workplace: Workplace,
    extraction: Extraction,
    blobs: Blobs,
    most: usize,
}

impl Work {
    fn run(&self, cancel: &Cancel) -> Result<Recheck, UnpackError> {
        let (Some((own, below)), Some(blob)) = (
            self.directories.split_first(),
            self.blobs.find(&self.layer.blob.digest)?,
        ) else {
            return Ok(Recheck::Absent);
        };
        let tree = self.workplace.tree()?;
        let turn = Turn::BehindPulls;
        let applied = self
            .extraction
            .run(&self.layer, blob, &tree, turn, cancel)?;
        inherit(tree.path(), &applied.implicit, below)?;
        self.extraction.turns.wait();
        let found = self.compare(&tree, own, &applied.implicit)?;
        tree.remove()?;
        if found == Recheck::Right {
            let mark = chain_mark(&self.layer.chain_id);
            self.blobs.unsettled().trust(&mark)?;
        }
        Ok(found)
    }

    /// Directories without an entry have the time of unpacking where nothing is below them.
    fn compare(
        &self,
        tree: &Tree,
        own: &Path,
        implicit: &BTreeSet<PathBuf>,
    ) -> Result<Recheck, UnpackError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = |path: &Path| {
            let opened = open(path, flags, Mode::empty()).map_err(io::Error::from);
            opened.map_err(UnpackError::io("open", path))
        };
        let (expected, there) = (root(tree.path())?, root(own)?);
        // Each of them differs in its time at most once.
        let most = self.most.saturating_add(implicit.len());
        let compared = match compare(expected.as_fd(), there.as_fd(), most) {
            Ok(compared) => compared,
            Err(error) => return unreadable(error, own),
        };
        let counts = |difference: &Difference| {
            !matches!(difference.what, What::Modified(..)) || !implicit.contains(&difference.path)
        };
        let mut differences: Vec<String> = compared
            .differences
            .into_iter()
            .filter(counts)
            .map(sentence)
            .collect();
        if differences.is_empty() && !compared.is_cut {
            return Ok(Recheck::Right);
        }
        let is_cut = compared.is_cut || differences.len() > self.most;
        differences.truncate(self.most);
        Ok(Recheck::Damaged {
            differences,
            is_cut,
        })
    }
}

fn sentence(difference: Difference) -> String {
    match difference.what {
        What::OnlyFirst => format!("{:?}: is missing", difference.path),
        What::OnlySecond => format!("{:?}: does not belong there", difference.path),
        _ => difference.to_string(),
    }
}

/// What the disk does not give back is damaged, too.
fn unreadable(error: CompareError, own: &Path) -> Result<Recheck, UnpackError> {
    let errno = Errno::from_io_error(&error.source);
    let is_damage = matches!(errno, Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG));
    if error.tree == "second" && is_damage {
        let difference = format!(
            "{:?}: cannot {} it: {}",
            error.path, error.operation, error.source
        );
        return Ok(Recheck::Damaged {
            differences: vec![difference],
            is_cut: true,
        });
    }
    Err(UnpackError::Io {
        operation: error.operation,
        path: own.join(error.path),
        source: error.source,
    })
}
