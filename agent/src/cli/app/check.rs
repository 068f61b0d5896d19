//! `nodeagent app check`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::manifest;
use crate::api::v1::{Finding, Problem, ProblemCode};
use crate::app::parse;
use crate::cli::{Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent app check web.yaml
  nodeagent app check - < web.yaml

No agent is asked: it also checks what depends on the host, when the manifest is applied.";

/// Check a manifest without an agent; every mistake is named with its line
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Check {
    /// The manifest; - is stdin
    file: PathBuf,
}

/// What `-o json` prints of a valid manifest.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Valid {
    valid: bool,
    name: String,
    image: String,
}

impl Check {
    pub(super) fn execute(&self, options: &Options) -> Report {
        let bytes = match manifest::read(&self.file) {
            Ok(bytes) => bytes,
            Err(report) => return report,
        };
        let refused = |detail: String, findings: Vec<Finding>| {
            let problem =
                Problem::new(ProblemCode::InvalidManifest, detail).with_findings(findings);
            Report::problem(options.output, &problem)
        };
        let file = self.file.display();
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return refused(format!("{file} is not UTF-8 text: {error}"), Vec::new()),
        };
        match parse(&text) {
            Ok(app) => {
                let valid = Valid {
                    valid: true,
                    name: app.name.to_string(),
                    image: app.image,
                };
                Report::document(options.output, &valid, || {
                    format!("{file}: app {} is valid\n", valid.name)
                })
            }
            Err(error) => {
                let findings = error.findings.into_iter().map(Finding::from);
                refused(format!("{file} was refused"), findings.collect())
            }
        }
    }
}
