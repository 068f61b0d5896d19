//! Where reading begins.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime};

use super::Extent;
use super::files::Files;
use super::records::Selection;
use super::tail::Tail;
use crate::gate::UntrustedError;

/// Bytes that are looked at in one go.
const BLOCK: usize = 64 * 1024;
/// Longest look for the last lines: a container may have made files of any size, and move them.
const LOOK: Duration = Duration::from_secs(10);
/// How much later than its times say a file may have been written to: file systems count in ticks
/// (`CONFIG_HZ`), and the writer reads its clock before it writes.
const TICK: Duration = Duration::from_secs(1);

/// A place in a log, and the end that it has now.
#[derive(Debug)]
pub(super) struct Start {
    /// None until there is one.
    pub file: Option<File>,
    pub at: u64,
    /// Lines that are left out from there.
    pub skipped: u64,
    /// The newest file and its length.
    pub end: Option<(File, u64)>,
}

impl Start {
    /// Of a log that nobody has written to yet.
    pub fn empty() -> Self {
        Self {
            file: None,
            at: 0,
            skipped: 0,
            end: None,
        }
    }

    pub fn find(
        files: &Files,
        selection: &Selection,
        extent: &Extent,
    ) -> Result<Self, UntrustedError> {
        let newest = files.newest()?;
        let found = || {
            let length = newest.metadata()?.len();
            let since = extent
                .since
                .map(|since| since.checked_sub(TICK).unwrap_or(since));
            let (file, at, skipped) = match extent.tail {
                Some(0) => (newest.try_clone()?, length, 0),
                Some(lines) => {
                    let mut tail = Tail::new(selection.clone(), lines);
                    let look = Backwards {
                        files,
                        since,
                        deadline: Instant::now() + LOOK,
                    };
                    let (file, at) = look.show(newest.try_clone()?, length, &mut tail)?;
                    (file, at, tail.skipped())
                }
                None => match files.oldest(since)? {
                    Some(file) => (file, 0, 0),
                    // All of it is too old.
                    None => (newest.try_clone()?, length, 0),
                },
            };
            Ok(Self {
                file: Some(file),
                at,
                skipped,
                end: Some((newest.try_clone()?, length)),
            })
        };
        found().map_err(UntrustedError::Open)
    }
}

/// The way through a log from its end.
struct Backwards<'a> {
    files: &'a Files,
    /// No further than to files that were written to last before that.
    since: Option<SystemTime>,
    /// No longer than so long.
    deadline: Instant,
}

impl Backwards<'_> {
    /// Shows the log to `tail` from this length of this file, until that has enough or nothing is
    /// left: file and place of the line that was shown last.
    fn show(&self, newest: File, length: u64, tail: &mut Tail) -> io::Result<(File, u64)> {
        let mut block = vec![0; BLOCK];
        let (mut file, mut length) = (newest, length);
        if !is_of(&file, self.since)? {
            return Ok((file, length));
        }
        loop {
            let mut begin = length;
            while begin > 0 {
                self.check_time()?;
                let from = begin.saturating_sub(BLOCK as u64);
                let room = usize::try_from(begin - from).unwrap_or(0);
                let bytes = block.get_mut(..room).unwrap_or_default();
                match file.read_exact_at(bytes, from) {
                    // It was made shorter meanwhile: what is left is all there is.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        return Ok((file, 0));
                    }
                    other => other?,
                }
                if let Some(at) = tail.push(bytes) {
                    return Ok((file, from + at as u64));
                }
                begin = from;
            }
            self.check_time()?;
            match self.files.older(&file)? {
                Some(older) if is_of(&older, self.since)? => {
                    length = older.metadata()?.len();
                    file = older;
                }
                _ => {
                    tail.finish();
                    return Ok((file, 0));
                }
            }
        }
    }

    fn check_time(&self) -> io::Result<()> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let about = format!("the last lines were not found within {LOOK:?}: ask for fewer");
        Err(io::Error::new(io::ErrorKind::TimedOut, about))
    }
}

/// Whether it was written to at that time or later.
fn is_of(file: &File, since: Option<SystemTime>) -> io::Result<bool> {
    Ok(match since {
        Some(since) => file.metadata()?.modified()? >= since,
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_look_for_the_last_lines_has_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        std::fs::write(&path, "a\nb\nc\n").unwrap();
        let files = Files::new(directory.path(), "app.log".to_owned());
        let look = |left| {
            let look = Backwards {
                files: &files,
                since: None,
                deadline: Instant::now() + left,
            };
            let mut tail = Tail::new(Selection::default(), 1);
            let found = look.show(File::open(&path).unwrap(), 6, &mut tail);
            found.map(|(_, at)| (at, tail.skipped()))
        };
        assert_eq!(look(LOOK).unwrap(), (4, 0));
        let error = look(Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            error.to_string(),
            "the last lines were not found within 10s: ask for fewer"
        );
    }
}
