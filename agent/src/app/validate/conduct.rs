//! Rules for how a process runs beside others and is asked to end.

use std::collections::BTreeSet;

use crate::app::manifest::{ExitCodeRewrite, Scalar, SignalRewrite};
use crate::app::{Conduct, Rewrite, SignalDelivery, signal_number};
use crate::document::{Findings, shown};

const SIGNAL: &str = "a name like SIGTERM or SIGRTMIN+3, or a number 1 to 64";
/// `SIGKILL` and `SIGSTOP` end and stop without being delivered, `SIGCHLD` is container-init's own
/// (signal(7)).
const NEVER_RECEIVED: [u8; 3] = [9, 17, 19];

/// The fields of the app, or of one agent.
pub(super) struct Given {
    pub(super) nice: Option<i8>,
    pub(super) oom_score_adj: Option<i16>,
    pub(super) stop_signal: Option<Scalar>,
    pub(super) delivery: Option<String>,
}

pub(super) fn conduct(field: &str, given: Given, findings: &mut Findings) -> Conduct {
    if let Some(nice) = given.nice.filter(|nice| !(-20..=19).contains(nice)) {
        findings.wrong(
            &format!("{field}.nice"),
            nice.to_string(),
            "-20 (runs first) to 19 (runs last)",
        );
    }
    let score = given.oom_score_adj;
    if let Some(score) = score.filter(|score| !(-999..=1000).contains(score)) {
        findings.wrong(
            &format!("{field}.oomScoreAdj"),
            score.to_string(),
            "-999 (killed last) to 1000 (killed first); with -1000 a full container would hang",
        );
    }
    let at = format!("{field}.stopSignal");
    Conduct {
        nice: given.nice,
        oom_score_adj: score,
        stop_signal: given
            .stop_signal
            .map(|written| signal(&at, &written, findings)),
        delivery: delivery(field, given.delivery.as_deref(), findings),
    }
}

fn delivery(field: &str, given: Option<&str>, findings: &mut Findings) -> SignalDelivery {
    let mut all = SignalDelivery::ALL.into_iter();
    let found = all.find(|one| Some(one.as_str()) == given);
    if let (None, Some(given)) = (found, given) {
        findings.wrong(
            &format!("{field}.signalDelivery"),
            shown(given),
            "Process, Group or All",
        );
    }
    found.unwrap_or_default()
}

fn signal(field: &str, given: &Scalar, findings: &mut Findings) -> u8 {
    let number = signal_number(given.as_str());
    if number.is_none() {
        findings.wrong(field, shown(given.as_str()), SIGNAL);
    }
    number.unwrap_or_default()
}

/// `spec.signals`.
pub(super) fn signals(list: Vec<SignalRewrite>, findings: &mut Findings) -> Vec<Rewrite> {
    let mut seen = BTreeSet::new();
    let mut rewrites = Vec::new();
    for (index, given) in list.into_iter().enumerate() {
        let field = format!("spec.signals[{index}]");
        let at = format!("{field}.from");
        let Some(written) = &given.from else {
            findings.note(&at, format!("required: {SIGNAL}"));
            continue;
        };
        let from = signal(&at, written, findings);
        let refused = if NEVER_RECEIVED.contains(&from) {
            Some("another signal: KILL and STOP are not received, and CHLD is container-init's")
        } else if !seen.insert(from) {
            Some("a signal that no other entry has")
        } else {
            None
        };
        if let Some(allowed) = refused {
            findings.wrong(&at, shown(written.as_str()), allowed);
        }
        let at = format!("{field}.to");
        let to = match &given.to {
            None => {
                findings.note(&at, format!("required: {SIGNAL}; or none"));
                continue;
            }
            Some(to) if to.as_str() == "none" => 0,
            Some(to) => {
                let number = signal_number(to.as_str());
                if number.is_none() {
                    findings.wrong(&at, shown(to.as_str()), format!("{SIGNAL}; or none"));
                }
                number.unwrap_or_default()
            }
        };
        rewrites.push(Rewrite { from, to });
    }
    rewrites
}

/// `spec.exitCodes`.
pub(super) fn exit_codes(list: Vec<ExitCodeRewrite>, findings: &mut Findings) -> Vec<Rewrite> {
    let mut seen = BTreeSet::new();
    let mut rewrites = Vec::new();
    for (index, given) in list.into_iter().enumerate() {
        let field = format!("spec.exitCodes[{index}]");
        for (name, value) in [("from", given.from), ("to", given.to)] {
            if value.is_none() {
                findings.note(&format!("{field}.{name}"), "required: 0 to 255");
            }
        }
        let (Some(from), Some(to)) = (given.from, given.to) else {
            continue;
        };
        if !seen.insert(from) {
            findings.wrong(
                &format!("{field}.from"),
                from.to_string(),
                "a code that no other entry has",
            );
        }
        rewrites.push(Rewrite { from, to });
    }
    rewrites
}
