//! Names in a layer: paths without detours, and the names that mark a deletion.

/// Prefix of a name that deletes the same name below (OCI image-spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of aufs's own names, which nobody else uses.
const RESERVED: &[u8] = b".wh..wh.";
/// Deletes all that is below in the same directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A path from the root of the layer, without empty names, `.` and `..`: a `..` takes the name
/// before it away, and nothing at the root, as Go's `filepath.Clean` has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Clean(Vec<Vec<u8>>);

impl Clean {
    pub fn of(path: &[u8]) -> Self {
        let mut names: Vec<Vec<u8>> = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => drop(names.pop()),
                name => names.push(name.to_vec()),
            }
        }
        Self(names)
    }

    /// The last name; none for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.0.last().map(Vec::as_slice)
    }

    /// The names above the last one.
    pub fn above(&self) -> &[Vec<u8>] {
        self.0.split_last().map_or(&[], |(_, above)| above)
    }

    /// As text.
    pub fn path(&self) -> Vec<u8> {
        self.0.join(&b'/')
    }
}

/// What a name deletes below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker<'a> {
    /// This name in the same directory.
    Name(&'a [u8]),
    /// All of the directory.
    Directory,
}

impl<'a> Marker<'a> {
    /// The marker that `name` is; none for a usual one, an error for one that nothing may have.
    pub fn of(name: &'a [u8]) -> Result<Option<Self>, &'static str> {
        if name == OPAQUE {
            return Ok(Some(Self::Directory));
        }
        if name.starts_with(RESERVED) {
            return Err("names that begin with .wh..wh. are reserved, but for .wh..wh..opq");
        }
        match name.strip_prefix(WHITEOUT) {
            None => Ok(None),
            Some(b"" | b"." | b"..") => Err("it deletes no name"),
            Some(deleted) => Ok(Some(Self::Name(deleted))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_above_the_root() {
        let clean = |path: &str| String::from_utf8(Clean::of(path.as_bytes()).path()).unwrap();
        assert_eq!(clean("/etc//./passwd/"), "etc/passwd");
        assert_eq!(clean("../../etc/passwd"), "etc/passwd");
        assert_eq!(clean("a/../../b"), "b");
        assert_eq!(clean("./"), "");
        assert_eq!(Clean::of(b"..").name(), None);
    }

    #[test]
    fn marks_are_known_by_their_names() {
        assert_eq!(Marker::of(b"x.wh."), Ok(None));
        assert_eq!(Marker::of(b".wh.x"), Ok(Some(Marker::Name(b"x"))));
        assert_eq!(Marker::of(b".wh..wh..opq"), Ok(Some(Marker::Directory)));
        for refused in [
            &b".wh."[..],
            b".wh..",
            b".wh...",
            b".wh..wh.plnk",
            b".wh..wh.x",
        ] {
            assert!(Marker::of(refused).is_err(), "{refused:?}");
        }
    }
}
