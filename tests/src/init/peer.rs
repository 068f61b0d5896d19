//! What can stand before a command as its init.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Place;
use crate::cli;

/// An init, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// What it is called in a report.
    pub name: &'static str,
    program: Option<PathBuf>,
    options: &'static [&'static str],
    options_as_subreaper: &'static [&'static str],
}

impl Init {
    /// No init: the command is executed itself.
    pub fn none() -> Self {
        Self {
            name: "bare exec",
            program: None,
            options: &[],
            options_as_subreaper: &[],
        }
    }

    /// Ours.
    pub fn container_init() -> Result<Self> {
        Ok(Self {
            name: "container-init",
            program: Some(cli::container_init()?),
            options: &["--"],
            options_as_subreaper: &["-s", "--"],
        })
    }

    /// tini of Debian.
    pub fn tini() -> Result<Self> {
        Ok(Self {
            name: "tini",
            program: Some(installed("tini")?),
            options: &["--"],
            options_as_subreaper: &["-s", "--"],
        })
    }

    /// dumb-init of Debian, with signals for the command alone, as the others do it.
    pub fn dumb_init() -> Result<Self> {
        Ok(Self {
            name: "dumb-init",
            program: Some(installed("dumb-init")?),
            options: &["-c", "--"],
            options_as_subreaper: &["-c", "--"],
        })
    }

    /// Its file, unless there is no init.
    pub fn program(&self) -> Option<&Path> {
        self.program.as_deref()
    }

    /// `argv`, with the init before it.
    pub fn command<S: AsRef<OsStr>>(&self, place: Place, argv: &[S]) -> Command {
        let options = match place {
            Place::Pid1 => self.options,
            Place::Subreaper => self.options_as_subreaper,
        };
        let before = self.program.iter().map(|path| path.as_os_str());
        let mut words = before
            .chain(options.iter().map(OsStr::new))
            .chain(argv.iter().map(S::as_ref));
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }
}

fn installed(name: &str) -> Result<PathBuf> {
    Path::new("/usr/bin")
        .join(name)
        .canonicalize()
        .with_context(|| format!("{name} is missing; run `tests/peers/install bench`"))
}
