//! `nodeagent man`

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::report::{Exit, line};
use super::{Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent man /usr/share/man/man1
  mkdir pages && nodeagent man pages && man ./pages/nodeagent-activate.1";

/// Write the manual pages, one for each verb
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Man {
    /// A directory; pages that are there are replaced
    directory: PathBuf,
}

/// What `-o json` prints.
#[derive(Serialize)]
struct Written {
    files: Vec<PathBuf>,
}

impl Man {
    pub(super) fn execute(&self, options: &Options) -> Report {
        let mut command = super::command().disable_help_subcommand(true);
        command.build();
        let mut files = Vec::new();
        if let Err(error) = write(&command, &self.directory, &mut files) {
            let directory = self.directory.display();
            let sentence = format!("the manual cannot be written to {directory}: {error}");
            return Report::error(Exit::Failed, sentence);
        }
        files.sort();
        let written = Written { files };
        Report::document(options.output, &written, || {
            let mut text = String::new();
            for file in &written.files {
                line(&mut text, format_args!("{}", file.display()));
            }
            text
        })
    }
}

/// The command's page and those of its verbs.
fn write(command: &clap::Command, directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for verb in command.get_subcommands() {
        write(verb, directory, files)?;
    }
    files.push(clap_mangen::Man::new(command.clone()).generate_to(directory)?);
    Ok(())
}
