//! What a check says.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much of the agent's work this allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Works {
    /// All of it.
    Full,
    /// Some of it, or all of it badly.
    Part,
    /// None of it.
    Not,
}

impl fmt::Display for Works {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "in full",
            Self::Part => "in part",
            Self::Not => "not",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `<subject>.<thing>`, stable, for programs: `kernel.release`.
    pub check: String,
    /// How much it allows.
    pub works: Works,
    /// What is true.
    pub found: String,
    /// What that costs; absent when it works in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub means: Option<String>,
    /// A command to run, or a key to set; absent when it works in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    /// Nothing to do.
    pub fn full(check: &str, found: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            works: Works::Full,
            found: found.into(),
            means: None,
            mend: None,
        }
    }

    /// It goes on, with this loss.
    pub fn part(
        check: &str,
        found: impl Into<String>,
        means: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            works: Works::Part,
            means: Some(means.into()),
            mend: Some(mend.into()),
            ..Self::full(check, found)
        }
    }

    /// Without this the agent cannot do its work.
    pub fn not(
        check: &str,
        found: impl Into<String>,
        means: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            works: Works::Not,
            ..Self::part(check, found, means, mend)
        }
    }
}

/// All findings, and the worst of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assessment {
    /// As the worst finding.
    pub works: Works,
    /// By subject.
    pub findings: Vec<Finding>,
}

impl Assessment {
    pub(super) fn of(findings: Vec<Finding>) -> Self {
        let worst = findings.iter().map(|finding| finding.works).max();
        Self {
            works: worst.unwrap_or(Works::Full),
            findings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_is_the_verdict() {
        let full = Finding::full("a.b", "x");
        let part = Finding::part("a.c", "x", "y", "z");
        let not = Finding::not("a.d", "x", "y", "z");
        let verdict = |findings: &[&Finding]| {
            Assessment::of(findings.iter().copied().cloned().collect()).works
        };
        assert_eq!(verdict(&[&full]), Works::Full);
        assert_eq!(verdict(&[&full, &part, &full]), Works::Part);
        assert_eq!(verdict(&[&part, &not, &full]), Works::Not);
    }
}
