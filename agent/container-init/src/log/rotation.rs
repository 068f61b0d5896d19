//! When a log file is full, and which files move then.
//!
//! ```text
//!   PATH ──► PATH.1 ──► PATH.2 ──► ... ──► PATH.(max_files - 1) ──► gone
//! ```

/// The size of the file that is written, and its limits.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    max_bytes: u64,
    max_files: u8,
    size: u64,
}

/// One thing to do, in order. What is not there needs nothing to be done; any other failure ends the
/// rotation, and the file is written on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The written file gets no other name.
    Remove,
    /// `PATH.from` becomes `PATH.to`, whatever that was; 0 is the written file.
    Rename {
        /// Number before.
        from: u8,
        /// Number after.
        to: u8,
    },
}

impl Rotation {
    /// A file of at most `max_bytes`, 0 for any number, and `max_files` of them.
    pub fn new(max_bytes: u64, max_files: u8) -> Self {
        Self {
            max_bytes,
            max_files,
            size: 0,
        }
    }

    /// The written file is this long.
    pub fn opened(&mut self, size: u64) {
        self.size = size;
    }

    /// It became longer.
    pub fn wrote(&mut self, bytes: usize) {
        self.size = self.size.saturating_add(bytes as u64);
    }

    /// It could not be moved: written on, it is tried again after as many bytes.
    pub fn failed(&mut self) {
        self.size = 0;
    }

    /// Whether another file has to begin before so many bytes are written. An empty one never is
    /// too full.
    pub fn is_due(&self, bytes: usize) -> bool {
        let after = self.size.saturating_add(bytes as u64);
        self.max_bytes != 0 && self.size != 0 && after > self.max_bytes
    }

    /// What to do then, before the file is made anew.
    pub fn steps(&self) -> impl Iterator<Item = Step> + use<> {
        let oldest = self.max_files.saturating_sub(1);
        let renames = (0..oldest)
            .rev()
            .map(|from| Step::Rename { from, to: from + 1 });
        (oldest == 0)
            .then_some(Step::Remove)
            .into_iter()
            .chain(renames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_file_never_grows_beyond_its_limit_and_an_empty_one_takes_anything() {
        let mut rotation = Rotation::new(100, 3);
        assert!(!rotation.is_due(1000));
        rotation.opened(60);
        assert!(!rotation.is_due(40));
        assert!(rotation.is_due(41));
        rotation.wrote(40);
        assert!(rotation.is_due(1));
        rotation.failed();
        assert!(!rotation.is_due(100));
        rotation.wrote(100);
        assert!(rotation.is_due(1));
        rotation.opened(0);
        assert!(!rotation.is_due(1));
        let mut endless = Rotation::new(0, 3);
        endless.opened(u64::MAX);
        assert!(!endless.is_due(usize::MAX));
    }

    #[test]
    fn files_move_from_the_oldest_to_the_written_one() {
        let steps = |max_files| Rotation::new(1, max_files).steps().collect::<Vec<_>>();
        let rename = |from| Step::Rename { from, to: from + 1 };
        assert_eq!(steps(1), [Step::Remove]);
        assert_eq!(steps(2), [rename(0)]);
        assert_eq!(steps(5), [rename(3), rename(2), rename(1), rename(0)]);
        assert_eq!(steps(255).len(), 254);
    }
}
