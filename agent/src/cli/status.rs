//! `nodeagent status`

use std::fmt::Write;

use clap::Args;

use super::report::line;
use super::table::{Align, Table, plain};
use super::{Options, Report, watch};
use crate::api::v1::{self, DiscoveryState, Pool, Problem, Reachability};

const EXAMPLES: &str = "\
Examples:
  nodeagent status
  nodeagent status web
  nodeagent status --watch web
  nodeagent status --watch -o json | jq -c 'select(.event == \"instance\")'
  nodeagent status -o json | jq '.pools[] | {app, target, active}'

ARMED is: instances at the gate / wanted ones. With --watch, -o json prints a line for each event
of the API's /v1/events.";

/// Show the host and its pools; with APP, that pool's instances
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Status {
    /// Only the pool of this app, with its instances
    app: Option<String>,
    /// Go on with what changes, until Ctrl-C; an agent that is restarted is waited for
    #[arg(short, long)]
    watch: bool,
}

impl Status {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let client = options.client();
        let mut status = match client.status().await {
            Ok(status) => status,
            Err(error) => return Report::failure(options.output, &error),
        };
        if let Some(app) = &self.app {
            status.pools.retain(|pool| pool.app == *app);
            if status.pools.is_empty() {
                return Report::problem(options.output, &Problem::not_found("app", app));
            }
        }
        let app = self.app.as_deref();
        if self.watch {
            return watch::run(&client, options.output, app, status.host).await;
        }
        Report::document(options.output, &status, || render(&status, app))
    }
}

/// The host and its pools, or the one pool with its instances.
pub(super) fn render(status: &v1::Status, app: Option<&str>) -> String {
    match app {
        None => host(status) + &alarms(status) + "\n" + &pools(&status.pools),
        Some(_) => {
            pools(&status.pools) + "\n" + &status.pools.iter().map(instances).collect::<String>()
        }
    }
}

fn host(status: &v1::Status) -> String {
    let host = &status.host;
    let containerd = match (host.containerd.reachable, &host.containerd.version) {
        (Reachability::Yes, Some(version)) => format!("containerd {version} answers"),
        (Reachability::Yes, None) => "containerd answers".to_owned(),
        (Reachability::No, _) => "containerd does not answer".to_owned(),
        (Reachability::Unknown, _) => "containerd was not asked yet".to_owned(),
    };
    let ready = if host.ready { "ready" } else { "not ready yet" };
    let text = format!(
        "host {} (fleet {}): {ready}; {containerd}\nagent {}, up since {}, journal epoch {}",
        host.id, host.fleet, host.version, host.started_at, host.epoch
    );
    let backends = host.discovery.iter().map(backend);
    let lines = text.lines().map(str::to_owned).chain(backends);
    lines.map(|text| plain(&text) + "\n").collect()
}

fn backend(backend: &v1::DiscoveryStatus) -> String {
    let optional = if backend.required { "" } else { " (optional)" };
    let mut text = format!("discovery {}{optional}: ", backend.name);
    match backend.state {
        DiscoveryState::Serving => text.push_str("serving"),
        DiscoveryState::Connecting => text.push_str("connecting"),
        DiscoveryState::Away => text.push_str("AWAY"),
        DiscoveryState::Refused => text.push_str("REFUSED"),
        DiscoveryState::Fenced => text.push_str("FENCED"),
    }
    if let Some(since) = &backend.since {
        line_part(&mut text, format_args!(" since {since}"));
    }
    if let Some(registered) = backend.registered {
        line_part(&mut text, format_args!(", {registered} registered"));
    }
    if let Some(lease) = &backend.lease {
        let v1::LeaseStatus { id, renewed_at, .. } = lease;
        line_part(&mut text, format_args!(", lease {id} renewed {renewed_at}"));
    }
    if let Some(error) = &backend.error {
        line_part(&mut text, format_args!(": {error}"));
    }
    text
}

fn line_part(text: &mut String, part: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(part);
}

/// The alarms that no pool's line tells.
fn alarms(status: &v1::Status) -> String {
    let mut text = String::new();
    for alarm in status.alarms.iter().filter(|alarm| alarm.app.is_none()) {
        let about = alarm.backend.as_deref().map(|name| format!(" ({name})"));
        line(
            &mut text,
            format_args!(
                "ALARM {}{} since {}: {}",
                plain(&alarm.code),
                plain(&about.unwrap_or_default()),
                alarm.since,
                plain(&alarm.detail)
            ),
        );
    }
    text
}

fn pools(pools: &[Pool]) -> String {
    if pools.is_empty() {
        return "no apps: nodeagent app apply -f FILE\n".to_owned();
    }
    let mut table = Table::new([
        ("APP", Align::Left),
        ("REVISION", Align::Left),
        ("TARGET", Align::Right),
        ("SEQ", Align::Right),
        ("ACTIVE", Align::Right),
        ("STARTING", Align::Right),
        ("ARMED", Align::Right),
        ("ARMING", Align::Right),
        ("DRAINING", Align::Right),
        ("FAILED", Align::Right),
    ]);
    for pool in pools {
        table.row([
            pool.app.clone(),
            short(&pool.revision),
            pool.target.to_string(),
            pool.target_seq.to_string(),
            pool.active.to_string(),
            pool.starting.to_string(),
            format!("{}/{}", pool.armed, pool.warm.armed),
            pool.arming.to_string(),
            pool.draining.to_string(),
            pool.failed.to_string(),
        ]);
    }
    let mut text = table.render();
    for pool in pools {
        if let Some(alarm) = &pool.alarm {
            line(
                &mut text,
                format_args!("ALARM {}: {}", pool.app, plain(alarm)),
            );
        }
    }
    text
}

fn instances(pool: &Pool) -> String {
    if pool.instances.is_empty() {
        return "no instances\n".to_owned();
    }
    let mut table = Table::new([
        ("INSTANCE", Align::Left),
        ("STATE", Align::Left),
        ("GENERATION", Align::Right),
        ("REVISION", Align::Left),
        ("ADDRESS", Align::Left),
        ("HOST PORTS", Align::Left),
        ("TASK", Align::Left),
        ("SINCE", Align::Left),
        ("ERROR", Align::Left),
    ]);
    for instance in &pool.instances {
        table.row([
            instance.name.clone(),
            instance.state.to_string(),
            instance.generation.to_string(),
            short(&instance.revision),
            instance.address.clone().unwrap_or_else(|| "-".to_owned()),
            instance.host_ports.join(", "),
            instance.task_id.clone().unwrap_or_else(|| "-".to_owned()),
            instance.since.to_string(),
            match &instance.error {
                Some(error) => format!("{}: {}", error.code, error.detail),
                None => String::new(),
            },
        ]);
    }
    table
        .without_empty("HOST PORTS")
        .without_empty("ERROR")
        .render()
}

/// The first 12 characters of a hash: enough to tell revisions apart by eye.
pub(super) fn short(hash: &str) -> String {
    let hash = hash.strip_prefix("sha256:").unwrap_or(hash);
    hash.chars().take(12).collect()
}
