//! The second look: the layers that the images need go into our store, verified on the way.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::ImportError;
use super::contents::{Contents, Item};
use super::found::Found;
use super::survey::check_size;
use crate::Descriptor;
use crate::blobs::{Begun, Blobs, CommitError, Partial};
use crate::waiting::Cancel;

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;
/// How long another writer of a blob is waited for, in all.
const BUSY: Duration = Duration::from_secs(120);
/// How often it is looked whether that writer is done.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What became of a blob.
enum Filled {
    There,
    /// Another pull or import writes it.
    Busy,
    /// What a pull before had left of it was wrong, and is gone: once more from the start.
    Again,
}

/// Brings every layer of `images` into `blobs`. Blocks.
pub(super) fn fill(
    contents: &Contents,
    images: &[Found],
    blobs: &Blobs,
    cancel: &Cancel,
) -> Result<(), ImportError> {
    let mut wanted: BTreeMap<&str, &Descriptor> = BTreeMap::new();
    for (name, layer) in images.iter().flat_map(|found| &found.image.layers) {
        if let Some(other) = wanted
            .insert(name, layer)
            .filter(|other| other.digest != layer.digest)
        {
            return Err(ImportError::Damaged {
                name: name.clone(),
                expected: other.digest.to_string(),
                got: format!("{} in another place", layer.digest),
            });
        }
    }
    let deadline = Instant::now() + BUSY;
    // Each further round is for what another writer, or a former pull, was in the way of.
    loop {
        let mut present = Vec::new();
        for (name, layer) in &wanted {
            if blobs.find(&layer.digest)?.is_some() {
                present.push(*name);
            }
        }
        wanted.retain(|name, _| !present.contains(name));
        let Some((_, first)) = wanted.first_key_value() else {
            return Ok(());
        };
        let first = *first;
        if Instant::now() > deadline {
            return Err(ImportError::Busy {
                digest: first.digest.clone(),
                waited: BUSY.as_secs(),
            });
        }
        match round(contents, &mut wanted, blobs, cancel)? {
            Round::Done => {}
            Round::Again => std::thread::sleep(BUSY_PAUSE),
            Round::Gone(name) => {
                let wanted_by = "its manifest".to_owned();
                return Err(ImportError::Missing { name, wanted_by });
            }
        }
    }
}

/// What came of looking through the archive once.
enum Round {
    Done,
    /// Somebody or something was in the way.
    Again,
    /// A file that was there at the first look is not there any more.
    Gone(String),
}

/// Copies what can be had now.
fn round(
    contents: &Contents,
    wanted: &mut BTreeMap<&str, &Descriptor>,
    blobs: &Blobs,
    cancel: &Cancel,
) -> Result<Round, ImportError> {
    let mut again = false;
    contents.visit(&mut |name, item| {
        cancel.check()?;
        let Item::File { size, data } = item else {
            return Ok(ControlFlow::Continue(()));
        };
        let Some(layer) = wanted.get(name) else {
            return Ok(ControlFlow::Continue(()));
        };
        match one(name, layer, size, data, blobs, cancel)? {
            Filled::There => drop(wanted.remove(name)),
            Filled::Busy | Filled::Again => again = true,
        }
        Ok(match wanted.is_empty() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    Ok(match wanted.keys().next() {
        None => Round::Done,
        Some(_) if again => Round::Again,
        Some(name) => Round::Gone((*name).to_owned()),
    })
}

fn one(
    name: &str,
    layer: &Descriptor,
    size: u64,
    data: &mut dyn Read,
    blobs: &Blobs,
    cancel: &Cancel,
) -> Result<Filled, ImportError> {
    check_size(name, layer.size, size)?;
    let partial = match blobs.begin(layer)? {
        Begun::Present(_) => return Ok(Filled::There),
        Begun::Busy => return Ok(Filled::Busy),
        Begun::Partial(partial) => *partial,
    };
    copy(name, data, &partial, cancel)?;
    match partial.commit() {
        Ok(_) => Ok(Filled::There),
        Err(CommitError::Mismatch { resumed, .. }) if resumed > 0 => Ok(Filled::Again),
        Err(CommitError::Mismatch { expected, got, .. }) => Err(ImportError::Damaged {
            name: name.to_owned(),
            expected: expected.to_string(),
            got: got.to_string(),
        }),
        Err(CommitError::Incomplete { size, missing, .. }) => Err(ImportError::Damaged {
            name: name.to_owned(),
            expected: format!("{size} bytes"),
            got: format!("{} bytes", size - missing),
        }),
        Err(CommitError::Store(error)) => Err(error.into()),
    }
}

fn copy(
    name: &str,
    data: &mut dyn Read,
    partial: &Partial,
    cancel: &Cancel,
) -> Result<(), ImportError> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        cancel.check()?;
        let mut filled = 0;
        while filled < buffer.len() {
            match data.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let name = name.to_owned();
                    return Err(ImportError::Read { name, source });
                }
            }
        }
        if filled == 0 {
            return Ok(());
        }
        partial.write_at(at, &buffer[..filled])?;
        at += filled as u64;
    }
}
