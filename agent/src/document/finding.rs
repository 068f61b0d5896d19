//! One mistake in a document, and the list of them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::{Node, Place};

/// One mistake: which field, what stood there, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path of the field, for example `spec.agents[0].readiness.tcpSocket.port`; empty for the
    /// document as a whole.
    pub field: String,
    /// The value as written, shortened to about 80 characters; `None` when it is missing or when
    /// the field itself is not known.
    pub value: Option<String>,
    /// What is allowed, or for a field that may not be there: why.
    pub allowed: String,
    /// The file, when the document came from one.
    pub file: Option<PathBuf>,
    /// Line in the file or text, from 1.
    pub line: Option<usize>,
}

impl Finding {
    /// A finding without a place.
    pub fn new(
        field: impl Into<String>,
        value: Option<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            value,
            allowed: allowed.into(),
            file: None,
            line: None,
        }
    }

    /// The same finding at `place`.
    pub(crate) fn at(mut self, place: &Place) -> Self {
        self.file = place.file.as_deref().map(PathBuf::from);
        self.line = Some(place.line);
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        match &self.value {
            Some(value) => write!(f, "{value} is not allowed; allowed: {}", self.allowed),
            None => f.write_str(&self.allowed),
        }
    }
}

/// After so many findings the rest is cut off: nobody reads on.
pub(super) const MAX_FINDINGS: usize = 50;

/// Collects findings and knows on which line each field of the document stands.
pub(crate) struct Findings {
    places: BTreeMap<String, Place>,
    list: Vec<Finding>,
}

impl Findings {
    /// An empty list for the document `root`.
    pub(crate) fn new(root: &Node) -> Self {
        Self {
            places: root.places(),
            list: Vec::new(),
        }
    }

    /// Adds findings that have their place already.
    pub(crate) fn extend(&mut self, findings: Vec<Finding>) {
        self.list.extend(findings);
    }

    /// `field` has `value`, and `allowed` says what it should have been.
    pub(crate) fn wrong(
        &mut self,
        field: &str,
        value: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        self.push(Finding::new(field, Some(value.into()), allowed));
    }

    /// `field` is missing, or there although it may not be; `sentence` says which.
    pub(crate) fn note(&mut self, field: &str, sentence: impl Into<String>) {
        self.push(Finding::new(field, None, sentence));
    }

    /// A field that could not be read has its finding; whatever follows from its absence is noise.
    fn push(&mut self, finding: Finding) {
        let follows = |known: &Finding| {
            finding.field == known.field
                || below(&finding.field, &known.field)
                || below(&known.field, &finding.field)
        };
        if self.list.len() >= MAX_FINDINGS || self.list.iter().any(follows) {
            return;
        }
        let placed = match self.place_of(&finding.field) {
            Some(place) => finding.clone().at(place),
            None => finding,
        };
        self.list.push(placed);
    }

    /// Where `field` stands, or else the nearest field around it that was written.
    fn place_of(&self, field: &str) -> Option<&Place> {
        let mut path = field;
        loop {
            if let Some(place) = self.places.get(path) {
                return Some(place);
            }
            let cut = path.rfind(['.', '['])?;
            path = &path[..cut];
        }
    }

    /// The findings in the order of the document.
    pub(crate) fn finish(mut self) -> Vec<Finding> {
        let full = self.list.len() >= MAX_FINDINGS;
        self.list
            .sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        if full {
            let sentence = "there may be more mistakes; the first 50 are listed";
            self.list.push(Finding::new("", None, sentence));
        }
        self.list
    }
}

/// Whether `inner` is a field of `outer`.
fn below(inner: &str, outer: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_finding_names_place_field_value_and_what_is_allowed() {
        let finding = Finding::new("spec.x", Some("7".into()), "1 to 5");
        assert_eq!(
            finding.to_string(),
            "spec.x: 7 is not allowed; allowed: 1 to 5"
        );
        let placed = finding.at(&Place {
            file: Some(Path::new("/etc/a.toml").into()),
            line: 3,
        });
        assert_eq!(
            placed.to_string(),
            "/etc/a.toml:3: spec.x: 7 is not allowed; allowed: 1 to 5"
        );
    }

    #[test]
    fn a_field_is_below_another_only_at_a_separator() {
        assert!(below("a.b", "a") && below("a[0]", "a"));
        assert!(!below("ab", "a") && !below("a", "a"));
    }
}
