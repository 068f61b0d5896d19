//! Rules for `readiness`: exactly one way to know, and when to look.

use std::time::Duration;

use super::ports;
use super::process::arguments;
use crate::app::manifest;
use crate::app::{Port, ProbeTiming, Readiness};
use crate::document::{Findings, shown};

const KINDS: &str = "httpGet, tcpSocket, exec, notify, none";
/// Above this a start would wait longer than a day.
const MAX_SECONDS: u32 = 3600;
const MAX_THRESHOLD: u32 = 1000;

/// Whose readiness it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    App,
    Agent,
}

/// No section means ready when started, as in Kubernetes.
pub(super) fn readiness(
    field: &str,
    given: Option<manifest::Readiness>,
    ports: &[Port],
    whose: Whose,
    findings: &mut Findings,
) -> Readiness {
    let Some(given) = given else {
        return Readiness::None;
    };
    let chosen: Vec<&str> = [
        ("httpGet", given.http_get.is_some()),
        ("tcpSocket", given.tcp_socket.is_some()),
        ("exec", given.exec.is_some()),
        ("notify", given.notify.is_some()),
        ("none", given.none.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, there)| there.then_some(name))
    .collect();
    match chosen.as_slice() {
        [_] => {}
        [] => {
            findings.note(
                field,
                format!("exactly one of {KINDS} is required (for example `none: {{}}`)"),
            );
            return Readiness::None;
        }
        several => {
            findings.wrong(
                field,
                several.join(" and "),
                format!("exactly one of {KINDS}"),
            );
            return Readiness::None;
        }
    }
    if given.notify.is_some() {
        unused_timing(field, &given, Unused::AllButTimeout, findings);
        let timeout = seconds(
            field,
            "timeoutSeconds",
            given.timeout_seconds,
            30,
            1,
            findings,
        );
        return Readiness::Notify { timeout };
    }
    if given.none.is_some() {
        unused_timing(field, &given, Unused::All, findings);
        return Readiness::None;
    }
    let timing = timing(field, &given, findings);
    if let Some(http) = given.http_get {
        if whose == Whose::Agent {
            findings.note(
                &format!("{field}.httpGet"),
                "not for agents: container-init waits for them from inside and speaks no HTTP; allowed: tcpSocket, exec, notify, none",
            );
        }
        return http_get(&format!("{field}.httpGet"), http, ports, timing, findings);
    }
    if let Some(tcp) = given.tcp_socket {
        let at = format!("{field}.tcpSocket.port");
        return Readiness::Tcp {
            port: required_port(&at, tcp.port.as_ref(), ports, findings),
            timing,
        };
    }
    let command = given.exec.and_then(|exec| exec.command).unwrap_or_default();
    let at = format!("{field}.exec.command");
    if command.first().is_none_or(String::is_empty) {
        findings.note(&at, "required: the program and its arguments, as a list");
    }
    arguments(&at, &command, findings);
    Readiness::Exec { command, timing }
}

fn http_get(
    field: &str,
    http: manifest::HttpGet,
    ports: &[Port],
    timing: ProbeTiming,
    findings: &mut Findings,
) -> Readiness {
    let port = required_port(
        &format!("{field}.port"),
        http.port.as_ref(),
        ports,
        findings,
    );
    let path = http.path.unwrap_or_else(|| "/".to_owned());
    let visible = |b: u8| b.is_ascii_graphic();
    if !path.starts_with('/') || !path.bytes().all(visible) || path.len() > 2048 {
        findings.wrong(
            &format!("{field}.path"),
            shown(&path),
            "an absolute path of visible ASCII characters (others percent-encoded), for example /healthz",
        );
    }
    let mut headers = Vec::new();
    for (index, header) in http
        .http_headers
        .unwrap_or_default()
        .into_iter()
        .enumerate()
    {
        let name = header.name.unwrap_or_default();
        let value = header.value.unwrap_or_default();
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            findings.wrong(
                &format!("{field}.httpHeaders[{index}].name"),
                shown(&name),
                "a header name (RFC 9110 token)",
            );
        }
        if !value
            .bytes()
            .all(|b| b == b' ' || b == b'\t' || b.is_ascii_graphic())
        {
            findings.wrong(
                &format!("{field}.httpHeaders[{index}].value"),
                shown(&value),
                "visible ASCII characters, spaces and tabs",
            );
        }
        headers.push((name, value));
    }
    Readiness::Http {
        port,
        path,
        headers,
        timing,
    }
}

fn required_port(
    field: &str,
    given: Option<&manifest::Scalar>,
    ports: &[Port],
    findings: &mut Findings,
) -> u16 {
    match given {
        Some(port) => ports::number(field, port, ports, findings),
        None => {
            findings.note(
                field,
                "required: a port number or the name of a port in spec.ports",
            );
            1
        }
    }
}

fn timing(field: &str, given: &manifest::Readiness, findings: &mut Findings) -> ProbeTiming {
    let failure_threshold = given.failure_threshold.unwrap_or(3);
    if !(1..=MAX_THRESHOLD).contains(&failure_threshold) {
        findings.wrong(
            &format!("{field}.failureThreshold"),
            failure_threshold.to_string(),
            format!("1 to {MAX_THRESHOLD}"),
        );
    }
    ProbeTiming {
        initial_delay: seconds(
            field,
            "initialDelaySeconds",
            given.initial_delay_seconds,
            0,
            0,
            findings,
        ),
        period: seconds(
            field,
            "periodSeconds",
            given.period_seconds,
            10,
            1,
            findings,
        ),
        timeout: seconds(
            field,
            "timeoutSeconds",
            given.timeout_seconds,
            1,
            1,
            findings,
        ),
        failure_threshold,
    }
}

fn seconds(
    field: &str,
    name: &str,
    given: Option<u32>,
    default: u32,
    least: u32,
    findings: &mut Findings,
) -> Duration {
    let value = given.unwrap_or(default);
    if !(least..=MAX_SECONDS).contains(&value) {
        findings.wrong(
            &format!("{field}.{name}"),
            value.to_string(),
            format!("{least} to {MAX_SECONDS} seconds"),
        );
    }
    Duration::from_secs(value.into())
}

/// Which timing fields a kind does not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unused {
    All,
    AllButTimeout,
}

fn unused_timing(
    field: &str,
    given: &manifest::Readiness,
    unused: Unused,
    findings: &mut Findings,
) {
    let timeout = given.timeout_seconds.filter(|_| unused == Unused::All);
    for (name, value) in [
        ("initialDelaySeconds", given.initial_delay_seconds),
        ("periodSeconds", given.period_seconds),
        ("timeoutSeconds", timeout),
        ("failureThreshold", given.failure_threshold),
    ] {
        if value.is_some() {
            findings.note(
                &format!("{field}.{name}"),
                "has no effect here, because nothing is probed; allowed with httpGet, tcpSocket and exec",
            );
        }
    }
}
