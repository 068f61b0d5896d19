//! `nodeagent app list`

use clap::Args;

use crate::api::v1::AppList;
use crate::cli::status::short;
use crate::cli::table::{Align, Table};
use crate::cli::{Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent app list
  nodeagent app list -o json | jq -r '.apps[].name'";

/// List the apps that this host knows
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct List {}

impl List {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        match options.client().apps().await {
            Ok(list) => Report::document(options.output, &list, || render(&list)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

fn render(list: &AppList) -> String {
    if list.apps.is_empty() {
        return "no apps: nodeagent app apply -f FILE\n".to_owned();
    }
    let mut table = Table::new([
        ("APP", Align::Left),
        ("REVISION", Align::Left),
        ("IMAGE", Align::Left),
        ("DIGEST", Align::Left),
        ("ARMED", Align::Right),
        ("APPLIED", Align::Left),
    ]);
    for app in &list.apps {
        table.row([
            app.name.clone(),
            short(&app.revision),
            app.image.clone(),
            app.image_digest
                .as_deref()
                .map_or_else(|| "-".to_owned(), short),
            app.warm.armed.to_string(),
            app.applied_at.to_string(),
        ]);
    }
    table.render()
}
