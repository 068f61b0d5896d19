//! Refusals and failures: RFC 9457 problem documents with a stable code.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document;

/// `application/problem+json`: why a request was not done. On the wire the code's `type`, `title`
/// and `status` stand beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "Wire", from = "Wire")]
pub struct Problem {
    /// Stable, for programs.
    pub code: ProblemCode,
    /// A sentence for people about this occurrence.
    pub detail: String,
    /// URI reference of what it is about: `/v1/tasks/peak-7`.
    pub instance: Option<String>,
    /// Each field that was refused.
    pub findings: Vec<Finding>,
    /// What is true now, where it explains the refusal: an object of plain values, for example
    /// `{"target":3,"targetSeq":8}`.
    pub current: Option<Value>,
}

/// The document as written.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Wire {
    /// `urn:nodeagent:problem:<code>`.
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    title: Cow<'static, str>,
    /// HTTP status.
    #[serde(default)]
    status: u16,
    code: ProblemCode,
    detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    findings: Vec<Finding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<Value>,
}

impl JsonSchema for Problem {
    fn schema_name() -> Cow<'static, str> {
        "Problem".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Wire::json_schema(generator)
    }
}

impl From<Problem> for Wire {
    fn from(problem: Problem) -> Self {
        let row = problem.code.row();
        Self {
            kind: format!("urn:nodeagent:problem:{}", row.code),
            title: Cow::Borrowed(row.title),
            status: row.status,
            code: problem.code,
            detail: problem.detail,
            instance: problem.instance,
            findings: problem.findings,
            current: problem.current,
        }
    }
}

impl From<Wire> for Problem {
    fn from(wire: Wire) -> Self {
        Self {
            code: wire.code,
            detail: wire.detail,
            instance: wire.instance,
            findings: wire.findings,
            current: wire.current,
        }
    }
}

/// One refused field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Path of the field: `to`, `spec.ports[0].containerPort`, `?wait`; empty for the document as a
    /// whole.
    pub field: String,
    /// Its value as given, shortened; absent when the field is missing or not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What would have been accepted.
    pub allowed: String,
    /// Line of the document, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

/// Stable codes. Status, exit code and title of each stand in one table: [`ProblemCode::row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// A field, parameter or the JSON itself is wrong.
    InvalidRequest,
    /// The manifest is wrong.
    InvalidManifest,
    /// The image cannot be had as it is: the registry has none, refuses, or sends what is none.
    ImageRefused,
    /// The caller may not.
    Forbidden,
    /// No such app, task or path.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The request did not arrive in time.
    Timeout,
    /// The task id was used for another request.
    TaskConflict,
    /// The target's sequence number is not the expected one.
    SeqMismatch,
    /// A later request moved the target the other way.
    Superseded,
    /// The task id belongs to an epoch whose journal was lost.
    UnknownEpoch,
    /// The app still has a target or instances.
    AppInUse,
    /// The instance cannot be started again in its container as it is.
    NotRestartable,
    /// The body is over the limit.
    TooLarge,
    /// The host has no capacity or no addresses left for the plan.
    NoCapacity,
    /// The agent or what it needs is not there at the moment.
    Unavailable,
    /// The journal could not be written; nothing was begun.
    JournalFull,
    /// A defect of the agent.
    Internal,
}

/// What belongs to a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProblemRow {
    /// The code as spelt on the wire.
    pub code: &'static str,
    /// HTTP status.
    pub status: u16,
    /// Exit code of the CLI (DESIGN, "API and CLI").
    pub exit: u8,
    /// The title.
    pub title: &'static str,
}

impl ProblemCode {
    /// Every code, in the order of the table.
    pub const ALL: [Self; 18] = [
        Self::InvalidRequest,
        Self::InvalidManifest,
        Self::ImageRefused,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::TaskConflict,
        Self::SeqMismatch,
        Self::Superseded,
        Self::UnknownEpoch,
        Self::AppInUse,
        Self::NotRestartable,
        Self::TooLarge,
        Self::NoCapacity,
        Self::Unavailable,
        Self::JournalFull,
        Self::Internal,
    ];

    /// The one table of codes, statuses, exit codes and titles.
    pub const fn row(self) -> ProblemRow {
        const fn row(code: &'static str, status: u16, exit: u8, title: &'static str) -> ProblemRow {
            ProblemRow {
                code,
                status,
                exit,
                title,
            }
        }
        match self {
            Self::InvalidRequest => row("invalid_request", 400, 3, "the request is not valid"),
            Self::InvalidManifest => row("invalid_manifest", 422, 3, "the manifest is not valid"),
            Self::ImageRefused => row("image_refused", 422, 3, "the image cannot be had"),
            Self::Forbidden => row("forbidden", 403, 3, "the caller is not allowed to do this"),
            Self::NotFound => row("not_found", 404, 4, "not found"),
            Self::MethodNotAllowed => {
                row("method_not_allowed", 405, 3, "this path has no such method")
            }
            Self::Timeout => row("timeout", 408, 1, "the request did not arrive in time"),
            Self::TaskConflict => row(
                "task_conflict",
                409,
                5,
                "the task id was used for another request",
            ),
            Self::SeqMismatch => row("seq_mismatch", 409, 5, "the target has moved since"),
            Self::Superseded => row(
                "superseded",
                409,
                5,
                "a later request moved the target the other way",
            ),
            Self::UnknownEpoch => row(
                "unknown_epoch",
                409,
                5,
                "the journal that knew this task id was lost",
            ),
            Self::AppInUse => row("app_in_use", 409, 5, "the app is in use"),
            Self::NotRestartable => row(
                "not_restartable",
                409,
                5,
                "the instance cannot be restarted as it is",
            ),
            Self::TooLarge => row("too_large", 413, 3, "the request is too large"),
            Self::NoCapacity => row("no_capacity", 503, 3, "the host has no room for this"),
            Self::Unavailable => row(
                "unavailable",
                503,
                1,
                "the agent cannot do this at the moment",
            ),
            Self::JournalFull => row(
                "journal_full",
                507,
                3,
                "the journal cannot be written, nothing was begun",
            ),
            Self::Internal => row("internal", 500, 1, "the agent has a defect"),
        }
    }

    /// As spelt on the wire.
    pub const fn as_str(self) -> &'static str {
        self.row().code
    }
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Problem {
    /// A problem of this code; `detail` says what is special about this occurrence.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            instance: None,
            findings: Vec::new(),
            current: None,
        }
    }

    /// No `what` is named `name`; `what` is a noun: `app`, `task`.
    pub fn not_found(what: &str, name: &str) -> Self {
        Self::new(
            ProblemCode::NotFound,
            format!("no {what} is named {name:?}"),
        )
        .about(format!("/v1/{what}s/{name}"))
    }

    /// Sets the URI reference of what it is about.
    pub fn about(mut self, instance: impl Into<String>) -> Self {
        self.instance = Some(instance.into());
        self
    }

    /// Adds refused fields.
    pub fn with_findings(mut self, findings: impl IntoIterator<Item = Finding>) -> Self {
        self.findings.extend(findings);
        self
    }

    /// Says what is true now; `current` is a document of plain values, such as
    /// [`super::Current`] or `serde_json::json!({"epoch": 2})`.
    pub fn with_current(mut self, current: impl Serialize) -> Self {
        self.current = serde_json::to_value(current).ok();
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.row().title, self.detail)
    }
}

impl std::error::Error for Problem {}

impl Finding {
    /// Longest value that is repeated to the caller, in characters.
    const LONGEST_VALUE: usize = 120;

    /// A refused value; a long one is shortened.
    pub fn new(
        field: impl Into<String>,
        value: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        let mut value = value.into();
        if let Some((end, _)) = value.char_indices().nth(Self::LONGEST_VALUE) {
            value.truncate(end);
            value.push('…');
        }
        Self {
            value: Some(value),
            ..Self::missing(field, allowed)
        }
    }

    /// A field that is missing, or that may not be there; `allowed` says which.
    pub fn missing(field: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            value: None,
            allowed: allowed.into(),
            line: None,
        }
    }
}

impl From<document::Finding> for Finding {
    fn from(finding: document::Finding) -> Self {
        Self {
            field: finding.field,
            value: finding.value,
            allowed: finding.allowed,
            line: finding.line,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_spelt_the_same_in_the_table_and_on_the_wire() {
        let mut seen = BTreeSet::new();
        for code in ProblemCode::ALL {
            let wire = serde_json::to_value(code).unwrap();
            assert_eq!(wire, Value::from(code.as_str()));
            assert!(seen.insert(code.as_str()), "{code} stands twice in ALL");
        }
    }

    #[test]
    fn refusals_exit_with_the_documented_codes() {
        for code in ProblemCode::ALL {
            let row = code.row();
            let expected: &[u8] = match row.status {
                400 | 403 | 405 | 413 | 422 | 507 => &[3],
                404 => &[4],
                409 => &[5],
                408 | 500 => &[1],
                503 => &[1, 3],
                other => panic!("{code}: no rule for status {other}"),
            };
            assert!(expected.contains(&row.exit), "{code} exits {}", row.exit);
        }
    }

    #[test]
    fn a_problem_is_an_rfc_9457_document() {
        let problem = Problem::new(ProblemCode::SeqMismatch, "expected 7, the target has 8")
            .about("/v1/apps/web")
            .with_current(serde_json::json!({"target": 3, "targetSeq": 8}));
        let wire = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            wire,
            serde_json::json!({
                "type": "urn:nodeagent:problem:seq_mismatch",
                "title": "the target has moved since",
                "status": 409,
                "code": "seq_mismatch",
                "detail": "expected 7, the target has 8",
                "instance": "/v1/apps/web",
                "current": {"target": 3, "targetSeq": 8},
            })
        );
        assert_eq!(serde_json::from_value::<Problem>(wire).unwrap(), problem);
    }

    #[test]
    fn a_long_value_is_not_thrown_back_whole() {
        let finding = Finding::new("taskId", "é".repeat(500), "less");
        let value = finding.value.unwrap();
        assert_eq!(value.chars().count(), 121);
        assert!(value.ends_with('…'));
    }
}
