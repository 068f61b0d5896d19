//! `nodeagent image`: the images of this host.

mod bars;
mod evict;
mod export;
mod import;
mod list;
mod path;
mod pin;
mod pull;
mod stable;
mod verify;

use clap::{Args, Subcommand};

use super::{Options, Report};

/// List, pull, pin, verify, evict, import and export images
#[derive(Debug, Args)]
#[command(visible_alias = "images")]
pub(super) struct Image {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::List),
    Pull(pull::Pull),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    Verify(verify::Verify),
    Evict(evict::Evict),
    Stable(stable::Stable),
    Import(import::Import),
    Export(export::Export),
}

impl Image {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        match &self.verb {
            Verb::List(verb) => verb.execute(options).await,
            Verb::Pull(verb) => verb.execute(options).await,
            Verb::Pin(verb) => verb.execute(options).await,
            Verb::Unpin(verb) => verb.execute(options).await,
            Verb::Verify(verb) => verb.execute(options).await,
            Verb::Evict(verb) => verb.execute(options).await,
            Verb::Stable(verb) => verb.execute(options).await,
            Verb::Import(verb) => verb.execute(options).await,
            Verb::Export(verb) => verb.execute(options).await,
        }
    }
}
