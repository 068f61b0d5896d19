//! The disk that a test brings into its machine: programs, test binaries, a registry's content.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cli::{container_init, nodeagent};
use crate::ground::Ground;
use crate::image::Image;
use crate::registry::Registry;

/// Room on the disk beside what is put on it.
const SPARE: u64 = 64 * 1024 * 1024;

/// A directory in the making, then an image of it; at [`super::PAYLOAD`] inside.
#[derive(Debug)]
pub struct Payload {
    directory: PathBuf,
}

impl Payload {
    /// The agent, container-init, `guest` (the `vm-guest`), and a registry that has the web image
    /// as `web:1`.
    pub fn new(ground: &Ground, guest: &Path) -> Result<Self> {
        let directory = ground.path("payload");
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        let payload = Self { directory };
        payload.program(guest, "vm-guest")?;
        payload.program(&nodeagent()?, "nodeagent")?;
        payload.program(&container_init()?, "container-init")?;
        let mut registry = Registry::start(ground)?;
        Image::web()?.push(&registry, "web:1")?;
        registry.stop()?;
        let from = ground.path("registry");
        let to = payload.directory.join("registry");
        fs::rename(&from, &to).with_context(|| format!("move {}", from.display()))?;
        Ok(payload)
    }

    /// Adds a program, without what a debugger wants of it.
    pub fn program(&self, program: &Path, name: &str) -> Result<()> {
        let copy = self.directory.join(name);
        let stripped = Command::new("objcopy")
            .arg("--strip-debug")
            .args([program, &copy])
            .output()
            .context("run objcopy")?;
        ensure!(
            stripped.status.success(),
            "copy {}: {}",
            program.display(),
            String::from_utf8_lossy(&stripped.stderr)
        );
        Ok(())
    }

    /// Adds the scenarios `names` of this package (`main_job`), as cargo builds them.
    pub fn scenarios(&self, names: &[&str]) -> Result<()> {
        #[derive(Deserialize)]
        struct Built {
            executable: Option<PathBuf>,
            target: Option<Target>,
        }
        #[derive(Deserialize)]
        struct Target {
            name: String,
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["test", "--locked", "--no-run", "--message-format=json"])
            .args(["--package", "nodeagent-tests"])
            .args(names.iter().flat_map(|name| ["--test", *name]))
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        let built = cargo.output().context("run cargo")?;
        ensure!(
            built.status.success(),
            "build the scenarios: {}",
            String::from_utf8_lossy(&built.stderr)
        );
        for line in String::from_utf8_lossy(&built.stdout).lines() {
            let Ok(Built {
                executable: Some(executable),
                target: Some(target),
            }) = serde_json::from_str(line)
            else {
                continue;
            };
            if names.contains(&target.name.as_str()) {
                self.program(&executable, &target.name)?;
            }
        }
        for name in names {
            ensure!(self.directory.join(name).exists(), "cargo built no {name}");
        }
        Ok(())
    }

    /// Writes a file.
    pub fn file(&self, name: &str, text: &str) -> Result<()> {
        let file = self.directory.join(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    /// The disk.
    pub(super) fn disk(&self) -> Result<PathBuf> {
        let disk = self.directory.with_extension("img");
        let size = size_of(&self.directory)? + SPARE;
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
            .args([&self.directory, &disk])
            .arg(format!("{}k", size / 1024))
            .output()
            .context("run mke2fs")?;
        ensure!(
            made.status.success(),
            "make {}: {}",
            disk.display(),
            String::from_utf8_lossy(&made.stderr)
        );
        Ok(disk)
    }
}

/// Bytes of the files below `directory`, each rounded up to a block.
fn size_of(directory: &Path) -> Result<u64> {
    const BLOCK: u64 = 4096;
    let mut size = BLOCK;
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("read {}", directory.display()))? {
        let entry = entry.with_context(|| format!("read {}", directory.display()))?;
        let facts = entry.metadata().context("look at a file")?;
        size += if facts.is_dir() {
            size_of(&entry.path())?
        } else {
            facts.len().next_multiple_of(BLOCK)
        };
    }
    Ok(size)
}
