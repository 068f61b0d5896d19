//! An app: what a manifest describes, after validation.
//!
//! [`parse`] turns the text of a manifest (YAML or JSON) into an [`App`] with every default
//! applied, or into every reason why not. What YAML looks like stays in `manifest`; only [`App`]
//! leaves. The text is what the journal keeps: parsing it again gives the same app.
//!
//! Images are not looked up here, and nothing here knows the host; [`check_against`] compares an
//! app with the host's settings when it is applied.

mod manifest;
mod quantity;
mod revision;
mod types;
mod validate;

pub use revision::{Revision, manifest_hash, revision};
pub use types::*;

use std::fmt;
use std::time::Duration;

use crate::document::{Finding, Findings, from_yaml, read};

/// A manifest that changes nothing, because of every one of `findings`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// At least one, in the order of the text.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the manifest was refused")?;
        for finding in &self.findings {
            write!(f, "\n  {finding}")?;
        }
        Ok(())
    }
}

/// Reads and validates the text of one manifest, at most
/// [`MAX_BYTES`](crate::document::MAX_BYTES) of YAML or JSON.
///
/// # Errors
/// [`Refused`] with all mistakes that were found.
pub fn parse(text: &str) -> Result<App, Refused> {
    let root = from_yaml(text).map_err(|finding| Refused {
        findings: vec![finding],
    })?;
    let (shape, unread) = read::<manifest::Manifest>(&root);
    let mut findings = Findings::new(&root);
    findings.extend(unread);
    let app = shape.and_then(|shape| validate::app(shape, &mut findings));
    let findings = findings.finish();
    match app {
        Some(app) if findings.is_empty() => Ok(app),
        _ => Err(Refused { findings }),
    }
}

/// What an app asks for that this host's settings do not allow. `propagation_bound` is the
/// longest that clients of any discovery backend may go on using a deregistered instance.
pub fn check_against(app: &App, propagation_bound: Duration) -> Vec<Finding> {
    if !app.registration.enabled || app.drain >= propagation_bound {
        return Vec::new();
    }
    vec![Finding::new(
        "spec.drainSeconds",
        Some(app.drain.as_secs().to_string()),
        format!(
            "at least the propagation bound of discovery on this host, {} s: until then clients may still come",
            propagation_bound.as_secs_f64()
        ),
    )]
}
