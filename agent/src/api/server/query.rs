//! What a caller put behind the `?`: every wrong parameter is named with its value and what is
//! allowed.

use std::time::Duration;

use axum::extract::Query;
use axum::http::Uri;
use container_init::log::Stream;

use super::request::{named, refusal, unknown};
use crate::api::v1::{Finding, Problem, ProblemCode, TaskState};
use crate::api::{Deletion, LogRequest, TaskFilter};
use crate::instance::AppName;
use crate::logs::{self, Since};

/// How long a submission is waited for when the caller does not say. The CLI's default too.
const DEFAULT_WAIT: Duration = Duration::from_secs(90);
/// The longest a submission is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What a caller put behind the `?`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    /// `wait=SECONDS`
    Wait,
    /// `force=true|false`
    Force,
    /// `app=NAME`
    App,
    /// Nothing.
    None,
}

/// Values of the allowed parameter, in order; everything else is refused.
fn parameters(uri: &Uri, allowed: Parameter) -> Result<Vec<String>, Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| Problem::new(ProblemCode::InvalidRequest, error.body_text()))?;
    let known: &[&str] = match allowed {
        Parameter::Wait => &["wait"],
        Parameter::Force => &["force"],
        Parameter::App => &["app"],
        Parameter::None => &[],
    };
    let (good, bad): (Vec<_>, Vec<_>) = pairs
        .into_iter()
        .partition(|(name, _)| known.contains(&name.as_str()));
    if bad.is_empty() {
        return Ok(good.into_iter().map(|(_, value)| value).collect());
    }
    Err(refusal(bad.into_iter().map(|(name, value)| {
        let allowed = unknown(&name, "parameters", known);
        Finding::new(format!("?{name}"), value, allowed)
    })))
}

/// No parameters at all.
pub(super) fn no_parameters(uri: &Uri) -> Result<(), Problem> {
    parameters(uri, Parameter::None).map(|_| ())
}

/// `?wait=SECONDS`: how long the caller waits for the task's end.
pub(super) fn wait(uri: &Uri) -> Result<Duration, Problem> {
    let values = parameters(uri, Parameter::Wait)?;
    let Some(text) = single("?wait", values)? else {
        return Ok(DEFAULT_WAIT);
    };
    let seconds = text
        .parse()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok());
    match seconds.filter(|wait| *wait <= LONGEST_WAIT) {
        Some(wait) => Ok(wait),
        None => Err(refusal([Finding::new(
            "?wait",
            text,
            "a number of seconds from 0 to 3600",
        )])),
    }
}

/// `?force=true|false`: whether instances keep an app from being deleted.
pub(super) fn deletion(uri: &Uri) -> Result<Deletion, Problem> {
    let values = parameters(uri, Parameter::Force)?;
    match single("?force", values)?.as_deref() {
        None | Some("false") => Ok(Deletion::WhenUnused),
        Some("true") => Ok(Deletion::Forced),
        Some(other) => Err(refusal([Finding::new(
            "?force",
            other.to_owned(),
            "true or false",
        )])),
    }
}

/// `?app=NAME`: only what is about this app.
pub(super) fn only_app(uri: &Uri) -> Result<Option<AppName>, Problem> {
    let values = parameters(uri, Parameter::App)?;
    let name = single("?app", values)?;
    name.map(|name| named("?app", &name)).transpose()
}

/// `?process=NAME&tail=N&since=SECONDS|TIME&stream=stdout|stderr&timestamps=true|false&follow=true|false`:
/// what is wanted of a log.
pub(super) fn log(uri: &Uri) -> Result<LogRequest, Problem> {
    let mut request = LogRequest::of(logs::APP);
    each_once(uri, |name, value| set_of_log(&mut request, name, value))?;
    Ok(request)
}

/// Gives every parameter to `set`, and collects what it refuses.
fn each_once(
    uri: &Uri,
    mut set: impl FnMut(&str, &str) -> Result<(), String>,
) -> Result<(), Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| Problem::new(ProblemCode::InvalidRequest, error.body_text()))?;
    let mut findings = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in &pairs {
        let set = if seen.contains(&name.as_str()) {
            Err("each parameter once".to_owned())
        } else {
            set(name, value)
        };
        seen.push(name);
        if let Err(allowed) = set {
            findings.push(Finding::new(format!("?{name}"), value, allowed));
        }
    }
    if findings.is_empty() {
        return Ok(());
    }
    Err(refusal(findings))
}

/// `?app=NAME&state=STATE,...&since=SECONDS&limit=N`: which tasks are listed.
pub(super) fn tasks(uri: &Uri) -> Result<TaskFilter, Problem> {
    let mut filter = TaskFilter::default();
    each_once(uri, |name, value| set_of_tasks(&mut filter, name, value))?;
    Ok(filter)
}

fn set_of_tasks(filter: &mut TaskFilter, name: &str, value: &str) -> Result<(), String> {
    match name {
        "app" => {
            let app: Result<AppName, crate::instance::InvalidName> = value.parse();
            app.map_err(|refused| refused.allowed)?;
            filter.app = Some(value.to_owned());
        }
        "state" => {
            let states = value.split(',').map(TaskState::from_name);
            let rule = || {
                let names = TaskState::ALL.map(TaskState::as_str).join(", ");
                format!("one or more of {names}, with commas between them")
            };
            filter.states = states.collect::<Option<_>>().ok_or_else(rule)?;
        }
        "since" => filter.since = Some(seconds(value)?),
        "limit" => {
            let most = TaskFilter::MOST;
            let limit = value.parse().ok().filter(|n| (1..=most).contains(n));
            filter.limit = limit.ok_or_else(|| format!("a number of tasks from 1 to {most}"))?;
        }
        _ => {
            let known = ["app", "state", "since", "limit"];
            return Err(unknown(name, "parameters", &known));
        }
    }
    Ok(())
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse().ok().map(Duration::try_from_secs_f64);
    let seconds = seconds.and_then(Result::ok);
    Ok(seconds.ok_or("a number of seconds, 0 or more")?)
}

/// Sets one parameter of a log, or says what is allowed.
fn set_of_log(request: &mut LogRequest, name: &str, value: &str) -> Result<(), String> {
    match name {
        "process" if is_process_name(value) => request.process = value.to_owned(),
        "process" => return Err(PROCESS_RULE.to_owned()),
        "tail" => {
            let tail = value.parse().ok().filter(|tail| *tail <= MOST_LINES);
            let rule = || format!("a number of lines from 0 to {MOST_LINES}");
            request.tail = Some(tail.ok_or_else(rule)?);
        }
        "since" => {
            let ago = seconds(value).ok().map(Since::Ago);
            let since = ago.or_else(|| Since::from_rfc3339(value));
            let rule =
                "a number of seconds, 0 or more, or an RFC 3339 time like 2026-11-22T13:31:55Z";
            request.since = Some(since.ok_or(rule)?);
        }
        "stream" => {
            let stream = Stream::from_name(value);
            request.stream = Some(stream.ok_or("stdout or stderr")?);
        }
        "timestamps" => request.timestamps = value.parse().map_err(|_| "true or false")?,
        "follow" => request.follow = value.parse().map_err(|_| "true or false")?,
        _ => {
            let known = ["process", "tail", "since", "stream", "timestamps", "follow"];
            return Err(unknown(name, "parameters", &known));
        }
    }
    Ok(())
}

/// Lines that are counted from the end at most.
const MOST_LINES: u64 = 10_000_000;
const PROCESS_RULE: &str =
    "a name of 1 to 64 letters, digits, '-', '_' and '.', not beginning with a dot";

fn is_process_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=64).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(allowed)
}

fn single(field: &str, values: Vec<String>) -> Result<Option<String>, Problem> {
    if values.len() > 1 {
        return Err(refusal([Finding::new(
            field,
            values.join(", "),
            "each parameter once",
        )]));
    }
    Ok(values.into_iter().next())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_wait_is_seconds_within_an_hour() {
        let wait_of = |query: &str| wait(&format!("/x{query}").parse().unwrap());
        assert_eq!(wait_of("").unwrap(), DEFAULT_WAIT);
        assert_eq!(wait_of("?wait=0.5").unwrap(), Duration::from_millis(500));
        for bad in [
            "?wait=-1",
            "?wait=abc",
            "?wait=3601",
            "?wait=NaN",
            "?wait=",
            "?wait=1&wait=2",
        ] {
            assert_eq!(
                wait_of(bad).unwrap_err().findings[0].field,
                "?wait",
                "{bad}"
            );
        }
        let misspelt = wait_of("?wiat=3").unwrap_err();
        assert!(misspelt.findings[0].allowed.ends_with("did you mean wait?"));
    }

    #[test]
    fn what_is_wanted_of_a_log_is_judged_parameter_by_parameter() {
        let of = |query: &str| log(&format!("/x{query}").parse().unwrap());
        let whole =
            of("?process=side.car&tail=10&since=1.5&follow=true&stream=stderr&timestamps=true");
        assert_eq!(
            whole.unwrap(),
            LogRequest {
                process: "side.car".to_owned(),
                follow: true,
                tail: Some(10),
                since: Some(Since::Ago(Duration::from_millis(1500))),
                stream: Some(Stream::Stderr),
                timestamps: true,
            }
        );
        assert_eq!(of("").unwrap(), LogRequest::of("app"));
        let time = UNIX_EPOCH + Duration::from_millis(1_767_225_600_500);
        for text in [
            "2026-01-01T00:00:00.5Z",
            "2026-01-01T01:00:00.500%2B01:00",
            "2025-12-31T23:00:00.5-01:00",
        ] {
            let request = of(&format!("?since={text}")).unwrap();
            assert_eq!(request.since, Some(Since::At(time)), "{text}");
        }
        for bad in [
            "?process=..%2Fplan",
            "?process=",
            "?tail=-1",
            "?tail=10000001",
            "?since=NaN",
            "?since=2026-01-01",
            "?since=2026-13-01T00:00:00Z",
            "?stream=both",
            "?timestamps=1",
            "?follow=yes",
            "?tail=1&tail=2",
            "?tial=1",
        ] {
            assert_eq!(of(bad).unwrap_err().findings.len(), 1, "{bad}");
        }
        assert_eq!(of("?tail=x&since=y").unwrap_err().findings.len(), 2);
    }

    #[test]
    fn which_tasks_are_listed_is_judged_parameter_by_parameter() {
        let of = |query: &str| tasks(&format!("/x{query}").parse().unwrap());
        let whole = of("?app=web&state=running,failed&since=60&limit=3").unwrap();
        assert_eq!(
            whole,
            TaskFilter {
                app: Some("web".to_owned()),
                states: vec![TaskState::Running, TaskState::Failed],
                since: Some(Duration::from_secs(60)),
                limit: 3,
            }
        );
        assert_eq!(of("").unwrap(), TaskFilter::default());
        for bad in [
            "?app=Web",
            "?state=",
            "?state=open",
            "?state=done,",
            "?since=-1",
            "?limit=0",
            "?limit=1001",
            "?sate=done",
        ] {
            assert_eq!(of(bad).unwrap_err().findings.len(), 1, "{bad}");
        }
    }
}
