//! `nodeagent roll`

use clap::Args;

use super::submit::TaskOptions;
use super::{Options, Report};
use crate::api::v1::{RollStep, STEP_RULE, TaskRequest, Verb};

const EXAMPLES: &str = "\
Examples:
  nodeagent app apply -f web.yaml && nodeagent roll web
  nodeagent roll web --step 25% --task-id release-42 --timeout 15m

A new instance comes into service first, then an old one is drained and stopped: the host needs room
for as many more instances as the step says. A new one that does not become ready ends the roll; the
old ones that are left go on serving.";

/// Replace the instances in service by ones of the current revision
///
/// The number of instances in service stays. Applying another manifest, moving the target, or
/// another roll ends this one; what was replaced stays replaced.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Roll {
    /// Name of the app
    app: String,
    /// How many instances are replaced at a time: a number, or a percentage of the target
    #[arg(long, value_name = "N|N%", default_value = "1", value_parser = step)]
    step: RollStep,
    #[command(flatten)]
    options: TaskOptions,
}

impl Roll {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let asked = TaskRequest {
            step: Some(self.step.clone()),
            ..TaskRequest::default()
        };
        self.options
            .execute(options, &self.app, Verb::Roll, asked)
            .await
    }
}

fn step(text: &str) -> Result<RollStep, String> {
    let step = match text.parse() {
        Ok(count) => RollStep::Instances(count),
        Err(_) => RollStep::Percent(text.to_owned()),
    };
    match step.is_allowed() {
        true => Ok(step),
        false => Err(format!("not {STEP_RULE}")),
    }
}
