//! `nodeagent image`: the images of this host.

mod bars;
mod evict;
mod list;
mod pin;
mod pull;
mod verify;

use clap::{Args, Subcommand};

use super::{Options, Report};

/// List, pull, pin, verify and evict images
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
        }
    }
}
