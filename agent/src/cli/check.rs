//! `nodeagent check`

use clap::Args;

use super::config::loaded;
use super::report::{Exit, line};
use super::table::{Align, Table, plain};
use super::{Options, Report};
use crate::check::{Assessment, Facts, Works, judge};

const EXAMPLES: &str = "\
Examples:
  nodeagent check
  nodeagent check --config-dir ./config.d
  nodeagent check -o json | jq -r '.findings[] | select(.works != \"full\") | .mend'

Looks at this host with the configuration that the agent would run with; an agent need not run.
Nothing is changed. Exits 0 when everything works in full, 8 when something works in part, 1 when
something does not work, 3 when the configuration is refused.";

/// Check whether this host can do the agent's work, and how to mend what it cannot
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Check {}

impl Check {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let settings = match loaded(options) {
            Ok(loaded) => loaded.settings,
            Err(report) => return report,
        };
        let assessment = judge(&Facts::read(&settings).await);
        let exit = match assessment.works {
            Works::Full => Exit::Done,
            Works::Part => Exit::Partial,
            Works::Not => Exit::Failed,
        };
        Report::document(options.output, &assessment, || render(&assessment)).exiting(exit)
    }
}

fn render(assessment: &Assessment) -> String {
    let mut table = Table::new([
        ("CHECK", Align::Left),
        ("WORKS", Align::Left),
        ("FOUND", Align::Left),
    ]);
    for finding in &assessment.findings {
        table.row([
            finding.check.clone(),
            finding.works.to_string(),
            finding.found.clone(),
        ]);
    }
    let mut text = table.render();
    for finding in &assessment.findings {
        let (Some(means), Some(mend)) = (&finding.means, &finding.mend) else {
            continue;
        };
        text.push('\n');
        line(
            &mut text,
            format_args!(
                "{} works {}: {}",
                finding.check,
                finding.works,
                plain(means)
            ),
        );
        line(&mut text, format_args!("  mend: {}", plain(mend)));
    }
    text.push('\n');
    let count = |works| {
        assessment
            .findings
            .iter()
            .filter(|f| f.works == works)
            .count()
    };
    line(
        &mut text,
        format_args!(
            "this host works {}: {} in full, {} in part, {} not",
            assessment.works,
            count(Works::Full),
            count(Works::Part),
            count(Works::Not)
        ),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;

    #[test]
    fn a_person_reads_what_is_true_what_it_costs_and_how_to_mend_it() {
        let assessment = Assessment {
            works: Works::Not,
            findings: vec![
                Finding::full("kernel.release", "6.12.0"),
                Finding::part(
                    "network.forwarding",
                    "net.ipv4.ip_forward is 0",
                    "nobody else reaches instances",
                    "sysctl -w net.ipv4.ip_forward=1",
                ),
                Finding::not(
                    "containerd.answers",
                    "nothing on /run/c.sock: a\u{1b}[31m lie",
                    "no instances",
                    "systemctl start containerd",
                ),
            ],
        };
        assert_eq!(
            render(&assessment),
            "\
CHECK               WORKS    FOUND
kernel.release      in full  6.12.0
network.forwarding  in part  net.ipv4.ip_forward is 0
containerd.answers  not      nothing on /run/c.sock: a\\u{1b}[31m lie

network.forwarding works in part: nobody else reaches instances
  mend: sysctl -w net.ipv4.ip_forward=1

containerd.answers works not: no instances
  mend: systemctl start containerd

this host works not: 1 in full, 1 in part, 1 not
"
        );
    }
}
