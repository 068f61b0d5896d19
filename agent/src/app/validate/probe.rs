//! Rules for `startup`, `readiness` and `liveness`: exactly one way to look, and when.

use std::net::IpAddr;
use std::time::Duration;

use super::ports;
use super::process::arguments;
use crate::app::manifest;
use crate::app::{Look, Port, Probe, ProbeTiming, Readiness, Scheme, VitalProbe};
use crate::document::{Findings, shown};

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
    let chosen = [
        ("httpGet", given.http_get.is_some()),
        ("tcpSocket", given.tcp_socket.is_some()),
        ("exec", given.exec.is_some()),
        ("notify", given.notify.is_some()),
        ("notificationFd", given.notification_fd.is_some()),
        ("none", given.none.is_some()),
    ];
    if !exactly_one(field, &chosen, " (for example `none: {}`)", findings) {
        return Readiness::None;
    }
    if given.notify.is_some() || given.notification_fd.is_some() {
        unused_timing(field, &given, Unused::AllButTimeout, findings);
        let timeout = seconds(
            field,
            "timeoutSeconds",
            given.timeout_seconds,
            30,
            1,
            findings,
        );
        return match given.notification_fd {
            None => Readiness::Notify { timeout },
            Some(fd) => notification_fd(field, fd, timeout, findings),
        };
    }
    if given.none.is_some() {
        unused_timing(field, &given, Unused::All, findings);
        return Readiness::None;
    }
    if whose == Whose::Agent {
        not_for_agents(field, &given, findings);
    }
    let timing = timing(field, &given, findings);
    let look = look(
        field,
        given.http_get,
        given.tcp_socket,
        given.exec,
        ports,
        findings,
    );
    Readiness::Probe(Probe { look, timing })
}

/// Below are the standard streams; above, a descriptor that a process may not be able to have.
fn notification_fd(field: &str, fd: u32, timeout: Duration, findings: &mut Findings) -> Readiness {
    if !(3..=255).contains(&fd) {
        findings.wrong(
            &format!("{field}.notificationFd"),
            fd.to_string(),
            "3 to 255: the number of the descriptor that the process writes a newline to",
        );
    }
    Readiness::NotificationFd { fd, timeout }
}

/// `startup`. container-init waits for one thing in a start: a command of startup, or the app's word.
pub(super) fn startup(
    given: Option<manifest::VitalProbe>,
    readiness: &Readiness,
    ports: &[Port],
    findings: &mut Findings,
) -> Option<VitalProbe> {
    let field = "spec.startup";
    let vital = vital(field, given, ports, findings)?;
    if vital.probe.look.is_command()
        && matches!(
            readiness,
            Readiness::Notify { .. } | Readiness::NotificationFd { .. }
        )
    {
        findings.note(
            &format!("{field}.exec"),
            "not beside readiness notify or notificationFd, which bounds the start by itself: give it the time that the start takes; allowed here: httpGet, tcpSocket, or no startup",
        );
    }
    Some(vital)
}

/// `liveness`.
pub(super) fn liveness(
    given: Option<manifest::VitalProbe>,
    ports: &[Port],
    findings: &mut Findings,
) -> Option<VitalProbe> {
    vital("spec.liveness", given, ports, findings)
}

/// One pass is enough, as in Kubernetes.
fn vital(
    field: &str,
    given: Option<manifest::VitalProbe>,
    ports: &[Port],
    findings: &mut Findings,
) -> Option<VitalProbe> {
    let given = given?;
    let chosen = [
        ("httpGet", given.http_get.is_some()),
        ("tcpSocket", given.tcp_socket.is_some()),
        ("exec", given.exec.is_some()),
    ];
    if !exactly_one(field, &chosen, "", findings) {
        return None;
    }
    if let Some(successes) = given.success_threshold.filter(|n| *n != 1) {
        findings.wrong(
            &format!("{field}.successThreshold"),
            successes.to_string(),
            "1: one pass is enough here",
        );
    }
    let termination_grace = given.termination_grace_period_seconds.map(|grace| {
        if grace > super::MAX_SECONDS {
            findings.wrong(
                &format!("{field}.terminationGracePeriodSeconds"),
                grace.to_string(),
                format!("0 to {} seconds", super::MAX_SECONDS),
            );
        }
        Duration::from_secs(grace.into())
    });
    let timed = manifest::Readiness {
        initial_delay_seconds: given.initial_delay_seconds,
        period_seconds: given.period_seconds,
        timeout_seconds: given.timeout_seconds,
        failure_threshold: given.failure_threshold,
        ..Default::default()
    };
    let timing = timing(field, &timed, findings);
    let look = look(
        field,
        given.http_get,
        given.tcp_socket,
        given.exec,
        ports,
        findings,
    );
    Some(VitalProbe {
        probe: Probe { look, timing },
        termination_grace,
    })
}

/// Whether one way was chosen; else it is said.
fn exactly_one(field: &str, ways: &[(&str, bool)], example: &str, findings: &mut Findings) -> bool {
    let all: Vec<&str> = ways.iter().map(|(name, _)| *name).collect();
    let all = all.join(", ");
    let chosen: Vec<&str> = ways
        .iter()
        .filter_map(|(name, there)| there.then_some(*name))
        .collect();
    match chosen.as_slice() {
        [_] => return true,
        [] => findings.note(field, format!("exactly one of {all} is required{example}")),
        several => findings.wrong(
            field,
            several.join(" and "),
            format!("exactly one of {all}"),
        ),
    }
    false
}

/// container-init looks at agents from inside, on loopback, and stops looking when they are ready.
fn not_for_agents(field: &str, given: &manifest::Readiness, findings: &mut Findings) {
    if given.http_get.is_some() {
        findings.note(
            &format!("{field}.httpGet"),
            "not for agents: container-init waits for them from inside and speaks no HTTP; allowed: tcpSocket, exec, notify, notificationFd, none",
        );
    }
    if given
        .tcp_socket
        .as_ref()
        .is_some_and(|tcp| tcp.host.is_some())
    {
        findings.note(
            &format!("{field}.tcpSocket.host"),
            "not for agents: container-init looks at them on loopback",
        );
    }
    if given.success_threshold.is_some_and(|n| n != 1) {
        findings.note(
            &format!("{field}.successThreshold"),
            "not for agents: one pass is enough",
        );
    }
}

fn look(
    field: &str,
    http: Option<manifest::HttpGet>,
    tcp: Option<manifest::TcpSocket>,
    exec: Option<manifest::Exec>,
    ports: &[Port],
    findings: &mut Findings,
) -> Look {
    if let Some(http) = http {
        return http_get(&format!("{field}.httpGet"), http, ports, findings);
    }
    if let Some(tcp) = tcp {
        let field = format!("{field}.tcpSocket");
        return Look::Tcp {
            port: required_port(&format!("{field}.port"), tcp.port.as_ref(), ports, findings),
            host: host(&field, tcp.host.as_deref(), findings),
        };
    }
    let command = exec.and_then(|exec| exec.command).unwrap_or_default();
    let at = format!("{field}.exec.command");
    if command.first().is_none_or(String::is_empty) {
        findings.note(&at, "required: the program and its arguments, as a list");
    }
    arguments(&at, &command, findings);
    Look::Exec { command }
}

/// Names are not looked up: a probe must not hang on a resolver.
fn host(field: &str, given: Option<&str>, findings: &mut Findings) -> Option<IpAddr> {
    let given = given?;
    let address = given.parse().ok();
    if address.is_none() {
        findings.wrong(
            &format!("{field}.host"),
            shown(given),
            "an IP address; without it the instance's own is probed",
        );
    }
    address
}

fn http_get(field: &str, http: manifest::HttpGet, ports: &[Port], findings: &mut Findings) -> Look {
    let port = required_port(
        &format!("{field}.port"),
        http.port.as_ref(),
        ports,
        findings,
    );
    let host = host(field, http.host.as_deref(), findings);
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
    Look::Http {
        port,
        host,
        scheme: match http.scheme {
            None | Some(manifest::Scheme::Http) => Scheme::Http,
            Some(manifest::Scheme::Https) => Scheme::Https,
        },
        path,
        headers,
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
    let success_threshold = given.success_threshold.unwrap_or(1);
    if !(1..=MAX_THRESHOLD).contains(&success_threshold) {
        findings.wrong(
            &format!("{field}.successThreshold"),
            success_threshold.to_string(),
            format!("1 to {MAX_THRESHOLD}"),
        );
    }
    ProbeTiming {
        success_threshold,
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
        ("successThreshold", given.success_threshold),
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
