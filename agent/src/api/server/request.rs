//! What a caller sent in path, headers and body, field by field: every wrong one is named with its
//! value and what is allowed.

use std::fmt;

use axum::http::HeaderMap;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::api::task_id::{TASK_ID_RULE, is_task_id};
use crate::api::v1::{
    ExecRequest, Finding, Problem, ProblemCode, RollStep, SCALE_IMAGE_RULE, STEP_RULE,
    STRATEGY_RULE, TaskRequest, TerminalSize, Verb,
};
use crate::instance::AppName;

const FIELDS: [&str; 10] = [
    "to",
    "step",
    "strategy",
    "process",
    "taskId",
    "expectSeq",
    "deadlineSeconds",
    "image",
    "force",
    "newEpoch",
];

/// The body of a submission.
pub(super) fn task_request(verb: Verb, body: &[u8]) -> Result<TaskRequest, Problem> {
    let example = match verb {
        Verb::Restart => r#"{"strategy": "reuse"}"#,
        _ => r#"{"to": 3}"#,
    };
    let fields = Fields::of(body, example)?;
    let mut request = TaskRequest::default();
    let mut findings = fields.each(|name, value| set(&mut request, verb, name, value));
    if !fields.has("strategy") && verb == Verb::Restart {
        let rule = format!("required: {STRATEGY_RULE}");
        findings.push(Finding::missing("strategy", rule));
    }
    if request.force == Some(true) && request.process.is_some() {
        let rule = "only with the app: an in-container agent is restarted without a drain";
        findings.push(Finding::new("force", "true", rule));
    }
    if !fields.has("to") && !matches!(verb, Verb::Roll | Verb::Restart) {
        findings.push(Finding::missing("to", format!("required: {TO_RULE}")));
    }
    match findings.is_empty() {
        true => Ok(request),
        false => Err(refusal(findings)),
    }
}

const COMMAND_RULE: &str =
    "a list of texts, the program and its arguments, without NUL and at most 128 KiB";

/// The body of a command.
pub(super) fn exec_request(body: &[u8]) -> Result<ExecRequest, Problem> {
    let fields = Fields::of(body, r#"{"command": ["ls", "-l"]}"#)?;
    let mut request = ExecRequest::default();
    let mut findings = fields.each(|name, value| {
        match name {
            "command" => request.command = command(value).ok_or(COMMAND_RULE)?,
            "stdin" => request.stdin = value.as_bool().ok_or("true or false")?,
            "terminal" if value.is_null() => {}
            "terminal" => {
                let size: Option<TerminalSize> = serde_json::from_value(value.clone()).ok();
                let size = size.filter(|size| size.columns > 0 && size.rows > 0);
                let rule = r#"the size of a terminal like {"columns": 80, "rows": 24}"#;
                request.terminal = Some(size.ok_or(rule)?);
            }
            _ => return Err(unknown(name, "fields", &["command", "stdin", "terminal"])),
        }
        Ok(())
    });
    if !fields.has("command") {
        findings.push(Finding::missing(
            "command",
            format!("required: {COMMAND_RULE}"),
        ));
    }
    match findings.is_empty() {
        true => Ok(request),
        false => Err(refusal(findings)),
    }
}

fn command(value: &Value) -> Option<Vec<String>> {
    let command: Vec<String> = serde_json::from_value(value.clone()).ok()?;
    let length: usize = command.iter().map(|word| word.len() + 1).sum();
    let program = command.first().is_some_and(|program| !program.is_empty());
    let allowed = program
        && length <= ExecRequest::LONGEST_COMMAND
        && command.iter().all(|word| !word.contains('\0'));
    allowed.then_some(command)
}

const TO_RULE: &str = "a whole number of instances from 0 to 10000";

/// Sets one field, or says what is allowed. `null` leaves an optional field absent.
fn set(request: &mut TaskRequest, verb: Verb, name: &str, value: &Value) -> Result<(), String> {
    match (name, value) {
        ("to", _) if verb == Verb::Roll => {
            return Err("not with roll: it keeps the target".to_owned());
        }
        ("to", _) if verb == Verb::Restart => {
            return Err("not with restart: it keeps the target".to_owned());
        }
        ("strategy" | "process", _) if verb != Verb::Restart => {
            return Err("only with restart".to_owned());
        }
        ("to", _) => {
            let to = value.as_u64().and_then(|to| u32::try_from(to).ok());
            let to = to.filter(|to| *to <= TaskRequest::MAX_TO);
            request.to = Some(to.ok_or(TO_RULE)?);
        }
        ("image", _) if !matches!(verb, Verb::Activate | Verb::Scale) => {
            return Err("only with activate and scale: the other verbs choose no image".to_owned());
        }
        ("step", _) if verb != Verb::Roll => {
            return Err("only with roll: the other verbs act on all at once".to_owned());
        }
        (
            "image" | "step" | "process" | "taskId" | "expectSeq" | "deadlineSeconds" | "force"
            | "newEpoch",
            Value::Null,
        ) => {}
        ("image", _) => {
            let image = serde_json::from_value(value.clone()).ok();
            request.image = Some(image.ok_or(SCALE_IMAGE_RULE)?);
        }
        ("taskId", _) => {
            let id = value
                .as_str()
                .filter(|id| is_task_id(id))
                .ok_or(TASK_ID_RULE)?;
            request.task_id = Some(id.to_owned());
        }
        ("strategy", _) => {
            let strategy = serde_json::from_value(value.clone()).ok();
            request.strategy = Some(strategy.ok_or(STRATEGY_RULE)?);
        }
        ("process", _) => {
            let process = value.as_str().filter(|name| !name.is_empty());
            let rule = "the name of an in-container agent, or \"app\"";
            request.process = Some(process.ok_or(rule)?.to_owned());
        }
        ("expectSeq", _) => {
            let seq = value
                .as_u64()
                .ok_or("a whole number, the targetSeq that was seen last")?;
            request.expect_seq = Some(seq);
        }
        ("deadlineSeconds", _) => {
            let allowed = |s: &f64| *s > 0.0 && *s <= TaskRequest::MAX_DEADLINE_SECONDS;
            let seconds = value.as_f64().filter(allowed);
            let rule = "a number of seconds greater than 0, at most 86400";
            request.deadline_seconds = Some(seconds.ok_or(rule)?);
        }
        ("step", _) => {
            let step = serde_json::from_value(value.clone()).ok();
            request.step = Some(step.filter(RollStep::is_allowed).ok_or(STEP_RULE)?);
        }
        ("force", _) if verb == Verb::Roll => {
            return Err(
                "only with deactivate and scale: a roll drains what it replaces".to_owned(),
            );
        }
        ("force", _) if verb == Verb::Activate => {
            return Err(
                "only with deactivate and scale: nothing is drained by an activation".to_owned(),
            );
        }
        ("force", _) => request.force = Some(value.as_bool().ok_or("true or false")?),
        ("newEpoch", _) => request.new_epoch = Some(value.as_bool().ok_or("true or false")?),
        _ => return Err(unknown(name, "fields", &FIELDS)),
    }
    Ok(())
}

/// The app's name in the path.
pub(super) fn app_name(text: &str) -> Result<AppName, Problem> {
    named("app", text)
}

pub(super) fn named(field: &str, text: &str) -> Result<AppName, Problem> {
    text.parse()
        .map_err(|refused: crate::instance::InvalidName| {
            refusal([Finding::new(field, refused.value, refused.allowed)])
        })
}

/// The task's id in the path.
pub(super) fn task_id(text: &str) -> Result<&str, Problem> {
    if is_task_id(text) {
        Ok(text)
    } else {
        Err(refusal([Finding::new(
            "taskId",
            text.to_owned(),
            TASK_ID_RULE,
        )]))
    }
}

/// The caller's `traceparent`, when it is well-formed (W3C Trace Context, 3.2): otherwise it is
/// ignored, as the specification says.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    let [version, trace, parent, flags] = parts[..] else {
        return None;
    };
    let lengths = (version.len(), trace.len(), parent.len(), flags.len()) == (2, 32, 16, 2);
    let well_formed = lengths && parts.iter().all(|p| hex(p)) && version != "ff";
    (well_formed && !zero(trace) && !zero(parent)).then(|| text.to_owned())
}

pub(super) fn refusal(findings: impl IntoIterator<Item = Finding>) -> Problem {
    let findings: Vec<Finding> = findings.into_iter().collect();
    let names: Vec<&str> = findings.iter().map(|f| f.field.as_str()).collect();
    let detail = format!("refused: {}; nothing was changed", names.join(", "));
    Problem::new(ProblemCode::InvalidRequest, detail).with_findings(findings)
}

pub(super) fn unknown(name: &str, what: &str, known: &[&str]) -> String {
    let near =
        |known: &&&str| strsim::damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase());
    let suggestion = known.iter().min_by_key(near).filter(|k| near(k) <= 3);
    let list = match known {
        [] => format!("no {what} here"),
        _ => format!("the {what} {}", known.join(", ")),
    };
    match suggestion {
        Some(known) => format!("{list}; did you mean {known}?"),
        None => list,
    }
}

fn shown(value: &Value) -> String {
    value.to_string()
}

/// The members of a JSON object as written: a name that comes twice is still there twice.
pub(super) struct Fields(Vec<(String, Value)>);

impl Fields {
    pub(super) fn of(body: &[u8], example: &str) -> Result<Self, Problem> {
        serde_json::from_slice(body).map_err(|error| {
            let detail = format!("the body is not a JSON object like {example}: {error}");
            Problem::new(ProblemCode::InvalidRequest, detail)
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// Sets each field once; what `set` refuses, it says what is allowed instead.
    pub(super) fn each(
        &self,
        mut set: impl FnMut(&str, &Value) -> Result<(), String>,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (index, (name, value)) in self.0.iter().enumerate() {
            let before = self.0.iter().take(index);
            let refused = match before.clone().any(|(known, _)| known == name) {
                true => Err("each field once".to_owned()),
                false => set(name, value),
            };
            if let Err(allowed) = refused {
                findings.push(Finding::new(name, shown(value), allowed));
            }
        }
        findings
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Fields, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Fields(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1::Strategy;

    fn findings(verb: Verb, body: &str) -> Vec<(String, Option<String>, String)> {
        let problem = task_request(verb, body.as_bytes()).unwrap_err();
        assert_eq!(problem.code, ProblemCode::InvalidRequest);
        let plain = |f: Finding| (f.field, f.value, f.allowed);
        problem.findings.into_iter().map(plain).collect()
    }

    #[test]
    fn a_whole_request_is_read() {
        let body =
            br#"{"to":3,"taskId":"peak-7","expectSeq":8,"deadlineSeconds":1.5,"force":true,"newEpoch":true,"image":"applied"}"#;
        assert_eq!(
            task_request(Verb::Scale, body).unwrap(),
            TaskRequest {
                to: Some(3),
                image: Some(crate::api::v1::ScaleImage::Applied),
                step: None,
                strategy: None,
                process: None,
                task_id: Some("peak-7".into()),
                expect_seq: Some(8),
                deadline_seconds: Some(1.5),
                force: Some(true),
                new_epoch: Some(true),
            }
        );
        assert_eq!(
            task_request(Verb::Activate, br#"{"to":0,"taskId":null}"#).unwrap(),
            TaskRequest::to(0)
        );
    }

    #[test]
    fn every_wrong_field_is_named_with_its_value_and_what_is_allowed() {
        let body = r#"{"to":-1,"taskId":"a b","expectSeq":"8","deadlineSeconds":0,"force":1}"#;
        let found = findings(Verb::Scale, body);
        let named: Vec<_> = found
            .iter()
            .map(|f| (f.0.as_str(), f.1.as_deref().unwrap()))
            .collect();
        assert_eq!(
            named,
            [
                ("to", "-1"),
                ("taskId", "\"a b\""),
                ("expectSeq", "\"8\""),
                ("deadlineSeconds", "0"),
                ("force", "1")
            ]
        );
        assert_eq!(found[0].2, TO_RULE);
        assert_eq!(found[4].2, "true or false");
    }

    #[test]
    fn a_roll_has_a_step_and_no_target() {
        let step = |body: &str| task_request(Verb::Roll, body.as_bytes()).unwrap().step;
        assert_eq!(step("{}"), None);
        assert_eq!(step(r#"{"step":3}"#), Some(RollStep::Instances(3)));
        assert_eq!(
            step(r#"{"step":"25%"}"#),
            Some(RollStep::Percent("25%".into()))
        );
        for bad in [
            "0", "10001", "\"0%\"", "\"101%\"", "\"3\"", "1.5", "[1]", "true",
        ] {
            let found = findings(Verb::Roll, &format!("{{\"step\":{bad}}}"));
            assert_eq!(
                (found[0].0.as_str(), found[0].2.as_str()),
                ("step", STEP_RULE),
                "{bad}"
            );
        }
        let found = findings(Verb::Roll, r#"{"to":3,"force":true}"#);
        assert_eq!(found[0].2, "not with roll: it keeps the target");
        assert!(found[1].2.starts_with("only with deactivate and scale"));
        let found = findings(Verb::Scale, r#"{"to":3,"step":2}"#);
        assert!(found[0].2.starts_with("only with roll"), "{}", found[0].2);
    }

    #[test]
    fn a_restart_has_a_strategy_and_perhaps_a_process() {
        let body = br#"{"strategy":"reuse","process":"log","taskId":"m-1"}"#;
        assert_eq!(
            task_request(Verb::Restart, body).unwrap(),
            TaskRequest {
                strategy: Some(Strategy::Reuse),
                process: Some("log".into()),
                task_id: Some("m-1".into()),
                ..TaskRequest::default()
            }
        );
        let found = findings(Verb::Restart, "{}");
        assert_eq!(found[0].2, format!("required: {STRATEGY_RULE}"));
        let body = r#"{"strategy":"rebuild","to":1,"step":1,"process":""}"#;
        let found = findings(Verb::Restart, body);
        let named: Vec<&str> = found.iter().map(|f| f.0.as_str()).collect();
        assert_eq!(named, ["strategy", "to", "step", "process"]);
        assert_eq!(found[0].2, STRATEGY_RULE);
        let body = r#"{"strategy":"reuse","process":"log","force":true}"#;
        assert_eq!(findings(Verb::Restart, body)[0].0, "force");
        let found = findings(Verb::Scale, r#"{"to":1,"strategy":"reuse"}"#);
        assert_eq!(found[0].2, "only with restart");
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_one_that_was_meant() {
        let found = findings(Verb::Activate, r#"{"to":1,"taskID":"x"}"#);
        assert_eq!(found[0].0, "taskID");
        assert!(
            found[0].2.ends_with("did you mean taskId?"),
            "{}",
            found[0].2
        );
    }

    #[test]
    fn a_field_given_twice_or_not_at_all_is_refused() {
        assert_eq!(
            findings(Verb::Activate, r#"{"to":1,"to":2}"#)[0].2,
            "each field once"
        );
        assert_eq!(findings(Verb::Activate, "{}")[0].1, None);
        assert_eq!(findings(Verb::Activate, r#"{"to":10001}"#)[0].2, TO_RULE);
    }

    #[test]
    fn what_is_no_object_is_answered_with_an_example() {
        for body in ["", "[1]", "3", "{\"to\":1", "{\"to\":1}x", "\u{0}"] {
            let problem = task_request(Verb::Activate, body.as_bytes()).unwrap_err();
            assert!(problem.detail.contains("{\"to\": 3}"), "{}", problem.detail);
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let body = format!("{{\"to\":{}", "[".repeat(200_000));
        let problem = task_request(Verb::Activate, body.as_bytes()).unwrap_err();
        assert!(
            problem.detail.contains("recursion limit"),
            "{}",
            problem.detail
        );
    }

    #[test]
    fn a_malformed_traceparent_is_ignored() {
        let of = |text: &'static str| {
            traceparent(&HeaderMap::from_iter([(
                "traceparent".parse().unwrap(),
                text.parse().unwrap(),
            )]))
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(of(good).as_deref(), Some(good));
        assert_eq!(
            of("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
            None
        );
        assert_eq!(
            of("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
            None
        );
        assert_eq!(of("x"), None);
    }
}
