//! Archives by hand, in the formats that images come in: every field of every entry is the test's.
//!
//! ustar as POSIX.1-1988 has it, GNU as tar(5) describes it, PAX as POSIX.1-2001 does, with extended
//! attributes the way all tools write them (`SCHILY.xattr.`). Sparse files are GNU tar's own.

use std::io::Write;

/// What fills the numeric fields of these widths in octal, a space or NUL behind it.
const LARGEST_IN_8: u64 = 0o7_777_777;
const LARGEST_IN_12: u64 = 0o77_777_777_777;

/// The format of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Names up to 255 bytes, in two fields.
    Ustar,
    /// Long names in entries of their own, large numbers in base 256.
    Gnu,
    /// Records before the entry.
    Pax,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    path: Vec<u8>,
    kind: Kind,
    mode: u32,
    owner: (u64, u64),
    mtime: (i64, u32),
    xattrs: Vec<(&'static str, Vec<u8>)>,
}

/// 2026-01-01, so that the same entries are the same digest whenever they are written.
const MTIME: i64 = 1_767_225_600;

impl Entry {
    fn new(path: impl AsRef<[u8]>, kind: Kind, mode: u32) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            kind,
            mode,
            owner: (0, 0),
            mtime: (MTIME, 0),
            xattrs: Vec::new(),
        }
    }

    /// A file, 0644.
    pub fn file(path: impl AsRef<[u8]>, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(content.into()), 0o644)
    }

    /// A directory, 0755.
    pub fn directory(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Directory, 0o755)
    }

    /// A symbolic link to `target`.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Symlink(target.as_ref().to_vec()), 0o777)
    }

    /// A hard link to the entry `target`.
    pub fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::HardLink(target.as_ref().to_vec()), 0o644)
    }

    /// A character device, 0600.
    pub fn character(path: &str, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Char(major, minor), 0o600)
    }

    /// A block device, 0600.
    pub fn block(path: &str, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Block(major, minor), 0o600)
    }

    /// A named pipe, 0600.
    pub fn fifo(path: &str) -> Self {
        Self::new(path, Kind::Fifo, 0o600)
    }

    /// The whiteout of `path` (image-spec, "layer.md").
    pub fn whiteout(path: &str) -> Self {
        match path.rsplit_once('/') {
            Some((directory, name)) => Self::file(format!("{directory}/.wh.{name}"), ""),
            None => Self::file(format!(".wh.{path}"), ""),
        }
    }

    /// The mark that hides what lower layers have in `directory`.
    pub fn opaque(directory: &str) -> Self {
        Self::file(format!("{directory}/.wh..wh..opq"), "")
    }

    /// Sets the mode.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Sets user and group.
    #[must_use]
    pub fn owner(self, user: u64, group: u64) -> Self {
        Self {
            owner: (user, group),
            ..self
        }
    }

    /// Sets the time of the last change; nanoseconds are kept by PAX alone.
    #[must_use]
    pub fn mtime(self, seconds: i64, nanoseconds: u32) -> Self {
        Self {
            mtime: (seconds, nanoseconds),
            ..self
        }
    }

    /// Adds an extended attribute; kept by PAX alone.
    #[must_use]
    pub fn xattr(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name, value.into()));
        self
    }

    /// Adds a capability set as setcap(8) writes it (capability.h, `VFS_CAP_REVISION_2`): permitted
    /// and effective.
    #[must_use]
    pub fn capabilities(self, bits: u32) -> Self {
        let words: [u32; 5] = [0x0200_0001, bits, 0, 0, 0];
        let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.xattr("security.capability", value)
    }

    fn target(&self) -> &[u8] {
        match &self.kind {
            Kind::Symlink(target) | Kind::HardLink(target) => target,
            _ => &[],
        }
    }

    fn content(&self) -> &[u8] {
        match &self.kind {
            Kind::File(content) => content,
            _ => &[],
        }
    }

    fn flag(&self) -> u8 {
        match self.kind {
            Kind::File(_) => b'0',
            Kind::HardLink(_) => b'1',
            Kind::Symlink(_) => b'2',
            Kind::Char(..) => b'3',
            Kind::Block(..) => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        }
    }

    fn write(&self, format: Format, out: &mut impl Write) -> std::io::Result<()> {
        let mut path = self.path.clone();
        if self.kind == Kind::Directory {
            path.push(b'/');
        }
        match format {
            Format::Ustar => {}
            Format::Gnu => {
                for (flag, name) in [(b'L', path.as_slice()), (b'K', self.target())] {
                    if name.len() > 100 {
                        let zero_ended = [name, b"\0"].concat();
                        part(b"././@LongLink", flag, &zero_ended, format, out)?;
                    }
                }
            }
            Format::Pax => {
                let records = self.records(&path);
                if !records.is_empty() {
                    part(b"PaxHeaders/entry", b'x', &records, format, out)?;
                }
            }
        }
        let mut header = Header::new(self.flag(), format);
        header.name(&path, format);
        header.text(157, 100, self.target());
        header.number(100, 8, u64::from(self.mode), format);
        header.number(108, 8, self.owner.0, format);
        header.number(116, 8, self.owner.1, format);
        header.number(124, 12, self.content().len() as u64, format);
        header.number(136, 12, u64::try_from(self.mtime.0).unwrap_or(0), format);
        if let Kind::Char(major, minor) | Kind::Block(major, minor) = self.kind {
            header.number(329, 8, u64::from(major), format);
            header.number(337, 8, u64::from(minor), format);
        }
        header.write(out)?;
        padded(self.content(), out)
    }

    /// Records of what the header cannot hold.
    fn records(&self, path: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &str, value: &[u8]| {
            // The length counts itself.
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            records.extend_from_slice(format!("{length} {key}=").as_bytes());
            records.extend_from_slice(value);
            records.push(b'\n');
        };
        if path.len() > 100 || !path.is_ascii() {
            add("path", path);
        }
        if self.target().len() > 100 || !self.target().is_ascii() {
            add("linkpath", self.target());
        }
        for (key, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if id > LARGEST_IN_8 {
                add(key, id.to_string().as_bytes());
            }
        }
        let (seconds, nanoseconds) = self.mtime;
        let fits = u64::try_from(seconds).is_ok_and(|seconds| seconds <= LARGEST_IN_12);
        if nanoseconds > 0 {
            add("mtime", format!("{seconds}.{nanoseconds:09}").as_bytes());
        } else if !fits {
            add("mtime", seconds.to_string().as_bytes());
        }
        for (name, value) in &self.xattrs {
            add(&format!("SCHILY.xattr.{name}"), value);
        }
        records
    }
}

/// Writes an archive of `entries` with its end.
pub fn write(entries: &[Entry], format: Format, out: &mut impl Write) -> std::io::Result<()> {
    for entry in entries {
        entry.write(format, out)?;
    }
    out.write_all(&[0; 1024])
}

/// Writes a global PAX header (POSIX.1-2001, typeflag `g`), which has nothing to say of entries.
pub fn write_global(comment: &str, out: &mut impl Write) -> std::io::Result<()> {
    let body = format!(" comment={comment}\n");
    let record = format!("{}{body}", body.len() + 2);
    part(
        b"pax_global_header",
        b'g',
        record.as_bytes(),
        Format::Pax,
        out,
    )
}

/// An entry that is part of the next one.
fn part(
    name: &[u8],
    flag: u8,
    content: &[u8],
    format: Format,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let mut header = Header::new(flag, format);
    header.text(0, 100, name);
    header.number(100, 8, 0o644, format);
    header.number(124, 12, content.len() as u64, format);
    header.write(out)?;
    padded(content, out)
}

fn padded(content: &[u8], out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(content)?;
    let rest = content.len() % 512;
    out.write_all(&[0; 512][..if rest == 0 { 0 } else { 512 - rest }])
}

/// A header block.
struct Header([u8; 512]);

impl Header {
    fn new(flag: u8, format: Format) -> Self {
        let mut header = Self([0; 512]);
        header.0[156] = flag;
        let magic: &[u8] = match format {
            Format::Gnu => b"ustar  \0",
            Format::Ustar | Format::Pax => b"ustar\x0000",
        };
        header.text(257, 8, magic);
        header
    }

    /// The first bytes of a name that is longer are in the field, too: its record has the rest.
    fn text(&mut self, at: usize, width: usize, text: &[u8]) {
        let length = text.len().min(width);
        self.0[at..at + length].copy_from_slice(&text[..length]);
    }

    fn name(&mut self, path: &[u8], format: Format) {
        if format == Format::Ustar && path.len() > 100 {
            // The last slash that leaves both parts small enough; a directory's own does not count.
            let slash = (1..path.len() - 1)
                .rev()
                .find(|at| path[*at] == b'/' && *at <= 155 && path.len() - at - 1 <= 100);
            if let Some(slash) = slash {
                self.text(345, 155, &path[..slash]);
                self.text(0, 100, &path[slash + 1..]);
                return;
            }
        }
        self.text(0, 100, path);
    }

    fn number(&mut self, at: usize, width: usize, value: u64, format: Format) {
        let largest = if width == 8 {
            LARGEST_IN_8
        } else {
            LARGEST_IN_12
        };
        if value <= largest {
            let digits = width - 1;
            self.text(at, digits, format!("{value:0digits$o}").as_bytes());
        } else if format == Format::Gnu {
            let bytes = value.to_be_bytes();
            self.0[at + width - bytes.len().min(width)..at + width]
                .copy_from_slice(&bytes[bytes.len().saturating_sub(width)..]);
            self.0[at] |= 0x80;
        }
    }

    fn write(mut self, out: &mut impl Write) -> std::io::Result<()> {
        // The sum is made with spaces in its place.
        self.text(148, 8, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        out.write_all(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the crate `tar` reads: path, link, uid, mtime of each entry.
    fn read(archive: &[u8]) -> Vec<(String, Option<String>, u64, u64)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (
                text(&entry.path_bytes()),
                entry.link_name_bytes().map(|link| text(&link)),
                entry.header().uid().unwrap(),
                entry.header().mtime().unwrap(),
            )
        });
        entries.collect()
    }

    #[test]
    fn long_names_and_large_numbers_are_read_by_others() {
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(90));
        let target = "t".repeat(150);
        for format in [Format::Ustar, Format::Gnu, Format::Pax] {
            let mut entries = vec![Entry::file(&long, "content")];
            if format != Format::Ustar {
                entries.push(Entry::symlink("link", &target));
                entries.push(Entry::directory(&long));
            }
            let mut archive = Vec::new();
            write(&entries, format, &mut archive).unwrap();
            let read = read(&archive);
            assert_eq!(read[0].0, long, "{format:?}");
            if format != Format::Ustar {
                assert_eq!(read[1].1.as_deref(), Some(target.as_str()), "{format:?}");
                assert_eq!(read[2].0, format!("{long}/"), "{format:?}");
            }
        }
    }

    #[test]
    fn a_large_owner_is_in_base_256_or_in_a_record() {
        let entries = [Entry::file("a", "").owner(3_000_000, 4)];
        let mut gnu = Vec::new();
        write(&entries, Format::Gnu, &mut gnu).unwrap();
        assert_eq!(read(&gnu)[0].2, 3_000_000);
        let mut pax = Vec::new();
        write(&entries, Format::Pax, &mut pax).unwrap();
        let records = String::from_utf8_lossy(&pax[512..1024]).into_owned();
        assert!(records.starts_with("15 uid=3000000\n"), "{records}");
    }
}
