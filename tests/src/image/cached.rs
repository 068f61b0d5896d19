//! Images that are made once and kept outside of the checkout, beside the other peers: the large one
//! of Debian packages, and synthetic ones that a benchmark needs.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use tar::{EntryType, Header};

use super::layout::{Compression, Layout, LayoutWriter};
use crate::peers::cache;

/// Goes up with every change of what is made here.
const VERSION: u32 = 1;

const MIB: usize = 1 << 20;

/// The image of `tests/peers/debian-image`: four layers, 1.7 GB unpacked, 590 MB in gzip, 58 000
/// small files in one layer. Made the first time, which takes minutes.
pub fn debian() -> Result<Layout> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/debian-image");
    let mut command = Command::new(&script);
    let made = command.stderr(Stdio::inherit()).output();
    let made = made.with_context(|| format!("run {}", script.display()))?;
    ensure!(
        made.status.success(),
        "{} ended with {}",
        script.display(),
        made.status
    );
    Layout::open(Path::new(String::from_utf8_lossy(&made.stdout).trim()))
}

/// 100 layers of 50 files of 4 KiB.
pub fn hundred_layers() -> Result<Layout> {
    cached("hundred-layers", |writer, scratch| {
        for layer in 0..100 {
            let mut archive = Archive::create(scratch)?;
            for file in 0..50 {
                let seed = layer * 1000 + file;
                archive.file(
                    &format!("layer-{layer}/dir-{}/file-{file}", file % 5),
                    seed,
                    4096,
                )?;
            }
            archive.finish()?;
            writer.layer(scratch, Compression::Gzip)?;
        }
        Ok(())
    })
}

/// One layer of 8 files, 1 GB unpacked.
pub fn one_big_layer() -> Result<Layout> {
    cached("one-big-layer", |writer, scratch| {
        let mut archive = Archive::create(scratch)?;
        for file in 0..8 {
            archive.file(&format!("data/part-{file}"), file, 128 * MIB)?;
        }
        archive.finish()?;
        writer.layer(scratch, Compression::Gzip)
    })
}

/// One layer of 50 000 files of 1 KiB.
pub fn small_files() -> Result<Layout> {
    cached("small-files", |writer, scratch| {
        let mut archive = Archive::create(scratch)?;
        for file in 0..50_000 {
            let name = format!("tree/{:02}/{:02}/file-{file}", file % 50, file / 50 % 40);
            archive.file(&name, file, 1024)?;
        }
        archive.finish()?;
        writer.layer(scratch, Compression::Gzip)
    })
}

/// The `number`th of images that share nothing: three layers, 100 MB unpacked, 1500 files.
pub fn one_of_many(number: usize) -> Result<Layout> {
    cached(&format!("one-of-many-{number}"), |writer, scratch| {
        for layer in 0..3 {
            let mut archive = Archive::create(scratch)?;
            let seed = (number * 10 + layer) * 10_000;
            for file in 0..500 {
                let name = format!("layer-{layer}/{}/file-{file}", file % 20);
                archive.file(&name, seed + file, 8192)?;
            }
            archive.file(&format!("layer-{layer}/large"), seed + 9999, 28 * MIB)?;
            archive.finish()?;
            writer.layer(scratch, Compression::Gzip)?;
        }
        Ok(())
    })
}

/// So many layers of one file of so many bytes, about two fifths of that in gzip; made anew in
/// `directory`.
pub fn layers(directory: &Path, count: usize, bytes: usize) -> Result<Layout> {
    let mut writer = LayoutWriter::create(directory)?;
    let scratch = directory.join("scratch.tar");
    for layer in 0..count {
        let mut archive = Archive::create(&scratch)?;
        archive.file(&format!("file-{layer}"), layer, bytes)?;
        archive.finish()?;
        writer.layer(&scratch, Compression::Gzip)?;
    }
    writer.finish()
}

/// `below` with one more layer of one small file on top: the next version of an image.
pub fn next_version(below: &Layout, directory: &Path) -> Result<Layout> {
    let mut writer = LayoutWriter::create(directory)?;
    for number in 0..below.layers().len() {
        writer.layer_of(below, number)?;
    }
    let scratch = directory.join("scratch.tar");
    let mut archive = Archive::create(&scratch)?;
    archive.file("version", 2, 4096)?;
    archive.finish()?;
    writer.layer(&scratch, Compression::Gzip)?;
    writer.finish()
}

/// Makes the image `name`, unless it is there.
fn cached(name: &str, make: impl FnOnce(&mut LayoutWriter, &Path) -> Result<()>) -> Result<Layout> {
    let images = cache().join("images");
    fs::create_dir_all(&images).with_context(|| format!("create {}", images.display()))?;
    let name = format!("{name}-{VERSION}");
    let lock = images.join(format!("{name}.lock"));
    let held = File::create(&lock).with_context(|| format!("create {}", lock.display()))?;
    // Two runs that want it: the second finds it made.
    flock(&held, FlockOperation::LockExclusive)
        .with_context(|| format!("lock {}", lock.display()))?;
    let made = images.join(&name);
    if !made.exists() {
        eprintln!("making the image {name}, once");
        let fresh = images.join(format!("{name}.fresh"));
        let _ = fs::remove_dir_all(&fresh);
        let mut writer = LayoutWriter::create(&fresh)?;
        let scratch = fresh.join("scratch.tar");
        make(&mut writer, &scratch)?;
        writer.finish()?;
        fs::remove_file(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
        fs::rename(&fresh, &made).with_context(|| format!("rename to {}", made.display()))?;
    }
    Layout::open(&made)
}

/// An archive of regular files, written to a file; directories are made as they are needed.
struct Archive {
    builder: tar::Builder<BufWriter<File>>,
    directories: Vec<PathBuf>,
    block: Vec<u8>,
}

impl Archive {
    fn create(file: &Path) -> Result<Self> {
        let file = File::create(file).with_context(|| format!("create {}", file.display()))?;
        Ok(Self {
            builder: tar::Builder::new(BufWriter::with_capacity(MIB, file)),
            directories: Vec::new(),
            block: block(),
        })
    }

    /// A file of `size` bytes that compresses as programs do; another `seed` is other content.
    fn file(&mut self, path: &str, seed: usize, size: usize) -> Result<()> {
        let directory = Path::new(path).parent().unwrap_or(Path::new("")).to_owned();
        if !directory.as_os_str().is_empty() && !self.directories.contains(&directory) {
            let mut header = header(EntryType::Directory, 0o755, 0);
            let name = format!("{}/", directory.display());
            self.builder
                .append_data(&mut header, name, std::io::empty())
                .context("write a directory")?;
            self.directories.push(directory);
        }
        let content = Content {
            block: &self.block,
            at: seed.wrapping_mul(7919) % MIB,
            mark: (seed as u64).to_le_bytes(),
            left: size,
        };
        let mut header = header(EntryType::Regular, 0o644, size as u64);
        let written = self.builder.append_data(&mut header, path, content);
        written.with_context(|| format!("write {path}"))
    }

    fn finish(self) -> Result<()> {
        let done = self.builder.into_inner().and_then(|mut file| file.flush());
        done.context("finish an archive")
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    // The same content is the same digest, whenever it was made.
    header.set_mtime(1_767_225_600);
    header
}

/// Reads as a part of the block again and again, each time round with a mark of its own.
struct Content<'a> {
    block: &'a [u8],
    at: usize,
    mark: [u8; 8],
    left: usize,
}

impl std::io::Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left > 0 && self.at == self.block.len() {
            self.at = 0;
        }
        let length = buffer.len().min(self.left).min(self.block.len() - self.at);
        buffer[..length].copy_from_slice(&self.block[self.at..self.at + length]);
        if let Some(head) = buffer[..length].first_chunk_mut::<8>() {
            *head = self.mark;
        }
        self.at += length;
        self.left -= length;
        Ok(length)
    }
}

/// A MiB, about two and a half times smaller in gzip: words of a small alphabet between random
/// bytes, by a generator whose numbers are always the same.
fn block() -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<[u8; 8]> = (0..256).map(|_| next().to_le_bytes()).collect();
    let mut block = Vec::with_capacity(MIB);
    while block.len() < MIB {
        let number = next();
        if number % 16 < 3 {
            block.extend_from_slice(&next().to_le_bytes());
        } else {
            let word = usize::try_from(number >> 56).unwrap_or_default();
            block.extend_from_slice(&words[word]);
        }
    }
    block
}
