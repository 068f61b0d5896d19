//! `nodeagent completions`

use clap::{Args, ValueEnum};
use clap_complete::shells;

use super::Report;

const EXAMPLES: &str = "\
Examples:
  . <(nodeagent completions bash)
  nodeagent completions bash > /usr/share/bash-completion/completions/nodeagent
  nodeagent completions zsh > /usr/share/zsh/vendor-completions/_nodeagent
  nodeagent completions fish > /usr/share/fish/vendor_completions.d/nodeagent.fish";

/// Print what makes a shell complete verbs and options
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Completions {
    /// bash, zsh or fish
    #[arg(value_enum, hide_possible_values = true)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(super) fn execute(&self) -> Report {
        let mut text = Vec::new();
        let (mut command, name) = (super::command(), "nodeagent");
        match self.shell {
            Shell::Bash => clap_complete::generate(shells::Bash, &mut command, name, &mut text),
            Shell::Zsh => clap_complete::generate(shells::Zsh, &mut command, name, &mut text),
            Shell::Fish => clap_complete::generate(shells::Fish, &mut command, name, &mut text),
        }
        Report::text(String::from_utf8_lossy(&text).into_owned())
    }
}
