//! Reading a manifest from a file or from stdin.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::cli::Report;
use crate::cli::report::Exit;

/// Reading stops here, far above any manifest; the agent then refuses it by its own limit.
const MOST: u64 = 2 * 1024 * 1024;

/// The bytes of `path`, or of stdin for `-`.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Report> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(MOST).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut bytes))
    };
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Report::error(
            Exit::Usage,
            format!("cannot read the manifest {}: {error}", path.display()),
        )),
    }
}
