//! `nodeagent image stable`

use std::fmt::Write;

use clap::Args;

use crate::api::v1::{AppImages, Drift, ListedImage, StableEvidence, StableList, StableRequest};
use crate::cli::status::short;
use crate::cli::table::{Align, Table};
use crate::cli::{Exit, Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent image stable
  nodeagent image stable web
  nodeagent image stable web --set registry.lan/web:2
  nodeagent image stable web --auto

An image becomes stable for an app when every instance of the app's target is active with it. While
another image is tried (app apply, roll), scale-out, refill and replacement use the stable one; a
roll, and activate or scale with --image applied, use the one that was applied last. DRIFT says that
the name in the manifest means something else in its registry now: app apply resolves it again.";

/// Show or say which image of an app is stable
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Stable {
    /// Name of the app; all apps, and the images that the host's file names, when absent
    app: Option<String>,
    /// This image is stable from now on, until --auto: one that the app has, by name or digest
    #[arg(long, value_name = "IMAGE", requires = "app")]
    set: Option<String>,
    /// The image that covers all instances is stable again
    #[arg(long, requires = "app", conflicts_with = "set")]
    auto: bool,
}

impl Stable {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let client = options.client();
        if let Some(app) = self
            .app
            .as_ref()
            .filter(|_| self.auto || self.set.is_some())
        {
            let request = StableRequest {
                app: app.clone(),
                image: self.set.clone(),
            };
            return match client.set_stable_image(&request).await {
                Ok(app) => {
                    Report::document(options.output, &app, || apps(std::slice::from_ref(&app)))
                }
                Err(error) => Report::failure(options.output, &error),
            };
        }
        let list = match client.stable_images().await {
            Ok(list) => list,
            Err(error) => return Report::failure(options.output, &error),
        };
        match &self.app {
            None => Report::document(options.output, &list, || render(&list)),
            Some(name) => match list.apps.iter().find(|app| app.app == *name) {
                Some(app) => {
                    Report::document(options.output, app, || apps(std::slice::from_ref(app)))
                }
                None => Report::error(Exit::NotFound, format!("no app {name}: nodeagent app list")),
            },
        }
    }
}

fn render(list: &StableList) -> String {
    let mut text = match list.apps.is_empty() {
        true => "no apps: nodeagent app apply -f FILE\n".to_owned(),
        false => apps(&list.apps),
    };
    if !list.listed.is_empty() {
        text.push('\n');
        text.push_str(&listed(&list.listed));
    }
    if let Some(why) = &list.unreadable {
        let _ = writeln!(text, "the list of images is not read: {why}");
    }
    text
}

fn apps(apps: &[AppImages]) -> String {
    let mut table = Table::new([
        ("APP", Align::Left),
        ("IMAGE", Align::Left),
        ("APPLIED", Align::Left),
        ("STABLE", Align::Left),
        ("EVIDENCE", Align::Left),
        ("SINCE", Align::Left),
        ("SCALE-OUT", Align::Left),
        ("DRIFT", Align::Left),
    ]);
    for app in apps {
        let stable = app.stable.as_ref();
        table.row([
            app.app.clone(),
            app.image.clone(),
            digest(&app.applied),
            stable.map_or_else(none, |stable| digest(&stable.reference)),
            stable.map_or_else(none, |stable| match (stable.evidence, stable.instances) {
                (StableEvidence::ByHand, _) => "set by hand".to_owned(),
                (StableEvidence::Covered, Some(1)) => "covered 1 instance".to_owned(),
                (StableEvidence::Covered, count) => {
                    format!("covered {} instances", count.unwrap_or(0))
                }
            }),
            stable.map_or_else(none, |stable| stable.since.to_string()),
            match app.scale_out == app.applied {
                true => "applied",
                false => "stable",
            }
            .to_owned(),
            drift(app.drift.as_ref()),
        ]);
    }
    table.render()
}

fn listed(images: &[ListedImage]) -> String {
    let mut table = Table::new([
        ("LISTED", Align::Left),
        ("DIGEST", Align::Left),
        ("STATE", Align::Left),
        ("DRIFT", Align::Left),
    ]);
    for image in images {
        table.row([
            image.image.clone(),
            image.reference.as_deref().map_or_else(none, digest),
            match (&image.error, image.ready) {
                (_, true) => "ready".to_owned(),
                (Some(error), false) => error.clone(),
                (None, false) => "not yet".to_owned(),
            },
            drift(image.drift.as_ref()),
        ]);
    }
    table.render()
}

fn drift(drift: Option<&Drift>) -> String {
    drift.map_or_else(none, |drift| {
        format!("{} since {}", short(&drift.digest), drift.seen_at)
    })
}

/// The digest of a reference, short.
fn digest(reference: &str) -> String {
    short(
        reference
            .rsplit_once('@')
            .map_or(reference, |(_, digest)| digest),
    )
}

fn none() -> String {
    "-".to_owned()
}
