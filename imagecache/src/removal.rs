//! Removing a tree of any depth with four descriptors and no recursion.
//!
//! What is in a tree may have been chosen by somebody who means harm: a removal that calls itself
//! for each level ends the process on a deep one, and again after each restart, because the tree is
//! still there. Here what lies deeper is first moved up into the tree's topmost directory, so that
//! nothing is ever looked at more than one level down.
//!
//! Follows no link and crosses no mount. A removal that breaks off, also by the end of the process,
//! leaves a tree that can be removed again, its directories in other places.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

/// Removes the directory `name` of `at` with all that is below it.
pub(crate) fn remove_tree<Name: Arg + Copy>(at: impl AsFd, name: Name) -> io::Result<()> {
    let mut tree = Removal {
        top: open(&at, name)?,
        moved: 0,
    };
    // What is moved up during a look is seen by the next one, if not by this one.
    while tree.look()? {}
    Ok(unlinkat(at, name, AtFlags::REMOVEDIR)?)
}

struct Removal {
    top: OwnedFd,
    /// Directories that were moved up; each has the next number as its name.
    moved: u64,
}

impl Removal {
    /// Removes what a look at the topmost directory sees; false when that was nothing.
    fn look(&mut self) -> io::Result<bool> {
        let mut is_empty = true;
        for name in names(&self.top)? {
            let name = name?;
            is_empty = false;
            if is_directory(&self.top, &name)? {
                self.directory(&name)?;
            }
        }
        Ok(!is_empty)
    }

    /// Removes a directory of the topmost one; those in it are moved beside it.
    fn directory(&mut self, name: &CStr) -> io::Result<()> {
        let directory = match open(&self.top, name) {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened?,
        };
        for name in names(&directory)? {
            let name = name?;
            if is_directory(&directory, &name)? {
                self.move_up(&directory, &name)?;
            }
        }
        match unlinkat(&self.top, name, AtFlags::REMOVEDIR) {
            // A look need not see everything of a directory that changes: the next one does.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn move_up(&mut self, from: &OwnedFd, name: &CStr) -> io::Result<()> {
        loop {
            self.moved += 1;
            match renameat(from, name, &self.top, self.moved.to_string()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // The tree has that name; an empty directory would have been replaced.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Whether it is a directory; what is none is removed.
fn is_directory(at: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::ISDIR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

fn open<Name: Arg>(at: impl AsFd, name: Name) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn names(of: &OwnedFd) -> io::Result<impl Iterator<Item = io::Result<CString>> + use<>> {
    let entries = Dir::read_from(of)?.map(|entry| Ok(entry?.file_name().to_owned()));
    let is_own = |name: &CString| matches!(name.to_bytes(), b"." | b"..");
    Ok(entries.filter(move |name| !name.as_ref().is_ok_and(is_own)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn all_of_a_tree_goes_and_nothing_beside_it() {
        let around = tempfile::tempdir().unwrap();
        let tree = around.path().join("tree");
        fs::create_dir(around.path().join("beside")).unwrap();
        fs::write(around.path().join("beside/file"), "stays").unwrap();
        // With the names that directories have that were moved up, of each kind.
        for path in ["1/1/1", "1/2", "2", "4/5/6/7", "5", "a/1", "a/2/3"] {
            fs::create_dir_all(tree.join(path)).unwrap();
        }
        for file in ["3", "1/3", "4/4", "a/2/file"] {
            fs::write(tree.join(file), "goes").unwrap();
        }
        symlink("../beside", tree.join("link")).unwrap();
        symlink("../../beside", tree.join("a/2/link")).unwrap();
        remove_tree(CWD, &tree).unwrap();
        assert!(!tree.exists());
        let beside = fs::read_to_string(around.path().join("beside/file"));
        assert_eq!(beside.unwrap(), "stays");
    }

    #[test]
    fn what_is_not_there_or_no_directory_is_an_error() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("tree");
        let kind = |path| remove_tree(CWD, path).unwrap_err().kind();
        assert_eq!(kind(&path), io::ErrorKind::NotFound);
        symlink(".", &path).unwrap();
        assert_eq!(kind(&path), io::ErrorKind::NotADirectory);
    }
}
