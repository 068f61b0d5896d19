//! All metrics as one page. Pure: a golden file has its names and help texts.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{Call, ENDS, Kind, Metrics, Page, Verdict, WARMTHS};
use crate::alarm::AlarmCode;
use crate::instance::EffectKind;

/// What is looked up for a page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    /// Pools by app.
    pub pools: Vec<PoolFacts>,
    /// The code of each alarm that stands.
    pub alarms: Vec<AlarmCode>,
    /// Whether the journal is loaded and every pool was observed.
    pub ready: bool,
    /// Whether containerd answers.
    pub containerd: bool,
    /// container-inits that are connected.
    pub gate_sessions: usize,
    /// Layers that came and went.
    pub images: ImageFacts,
    /// The process, as far as `/proc` tells.
    pub process: ProcessFacts,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PoolFacts {
    /// The app.
    pub app: String,
    /// Wanted active instances.
    pub target: u32,
    /// Wanted instances at the gate.
    pub warm_armed: u32,
    /// Instances by state; states without one are left out.
    pub instances: Vec<(&'static str, u64)>,
}

/// Layers that came over the network and that peers were sent, since the start.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImageFacts {
    /// Bytes that came, by kind of source.
    pub fetched: Vec<(&'static str, u64)>,
    /// Bytes that peers were sent.
    pub served_bytes: u64,
    /// Uploads to peers that are running.
    pub uploads: u64,
}

/// This process (proc(5)).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProcessFacts {
    /// User and system time in seconds.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// Most open descriptors.
    pub max_fds: u64,
    /// Start, in seconds since 1970.
    pub start_seconds: f64,
}

/// The page, without what the server itself counts.
pub fn render(metrics: &Metrics, facts: &Facts) -> Page {
    let mut page = Page::default();
    host(&mut page, facts);
    pools(&mut page, facts);
    work(&mut page, metrics);
    discovery(&mut page, metrics);
    images(&mut page, &facts.images);
    process(&mut page, &facts.process);
    page
}

fn host(page: &mut Page, facts: &Facts) {
    let version = env!("CARGO_PKG_VERSION");
    page.family(
        "nodeagent_build_info",
        Kind::Gauge,
        "Version of the agent; always 1.",
    )
    .sample(&[("version", version)], 1);
    page.single(
        "nodeagent_ready",
        Kind::Gauge,
        "Whether the journal is loaded and every pool was observed.",
        u8::from(facts.ready),
    );
    page.single(
        "nodeagent_containerd_up",
        Kind::Gauge,
        "Whether containerd answers.",
        u8::from(facts.containerd),
    );
    page.single(
        "nodeagent_gate_sessions",
        Kind::Gauge,
        "Instances whose container-init is connected.",
        facts.gate_sessions,
    );
    let mut family = page.family(
        "nodeagent_alarm",
        Kind::Gauge,
        "Alarms that stand, by code.",
    );
    for code in AlarmCode::ALL {
        let standing = facts.alarms.iter().filter(|alarm| **alarm == code).count();
        family.sample(&[("code", code.as_str())], standing);
    }
}

fn pools(page: &mut Page, facts: &Facts) {
    let mut family = page.family(
        "nodeagent_instances",
        Kind::Gauge,
        "Instances by app and state.",
    );
    for pool in &facts.pools {
        for (state, count) in &pool.instances {
            family.sample(&[("app", &pool.app), ("state", state)], count);
        }
    }
    let mut family = page.family(
        "nodeagent_target_instances",
        Kind::Gauge,
        "Instances wanted in service.",
    );
    for pool in &facts.pools {
        family.sample(&[("app", &pool.app)], pool.target);
    }
    let mut family = page.family(
        "nodeagent_warm_target_instances",
        Kind::Gauge,
        "Instances wanted at a warmth, beyond those in service.",
    );
    for pool in &facts.pools {
        family.sample(&[("app", &pool.app), ("warmth", "armed")], pool.warm_armed);
    }
}

fn work(page: &mut Page, metrics: &Metrics) {
    let mut family = page.family(
        "nodeagent_activations_total",
        Kind::Counter,
        "Instances that a task wanted in service, by how warm they were and whether they are.",
    );
    for (from, counters) in WARMTHS.iter().zip(&metrics.activations) {
        for verdict in Verdict::ALL {
            let labels = [("from", *from), ("outcome", verdict.as_str())];
            family.sample(&labels, counters[verdict as usize].get());
        }
    }
    let mut family = page.family(
        "nodeagent_activation_duration_seconds",
        Kind::Histogram,
        "From the first byte of the request to an instance's registration.",
    );
    for (from, histogram) in WARMTHS.iter().zip(&metrics.activation_times) {
        family.histogram(&[("from", from)], histogram);
    }
    let mut family = page.family(
        "nodeagent_task_duration_seconds",
        Kind::Histogram,
        "From the first byte of a request to its durable outcome.",
    );
    for (end, histogram) in ENDS.iter().zip(&metrics.tasks) {
        family.histogram(&[("outcome", end.as_str())], histogram);
    }
    let mut family = page.family(
        "nodeagent_step_duration_seconds",
        Kind::Histogram,
        "Work on one instance, by step.",
    );
    for (kind, histograms) in EffectKind::ALL.iter().zip(&metrics.steps) {
        for verdict in Verdict::ALL {
            let labels = [("step", kind.as_str()), ("outcome", verdict.as_str())];
            family.histogram(&labels, &histograms[verdict as usize]);
        }
    }
    let mut family = page.family(
        "nodeagent_journal_commit_duration_seconds",
        Kind::Histogram,
        "From the hand-over of a commit to its durability.",
    );
    for verdict in Verdict::ALL {
        family.histogram(
            &[("outcome", verdict.as_str())],
            &metrics.commits[verdict as usize],
        );
    }
    let mut family = page.family(
        "nodeagent_refill_total",
        Kind::Counter,
        "Instances made for warm targets.",
    );
    for verdict in Verdict::ALL {
        family.sample(
            &[("outcome", verdict.as_str())],
            metrics.refills[verdict as usize].get(),
        );
    }
}

fn discovery(page: &mut Page, metrics: &Metrics) {
    let backends = metrics
        .backends
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let mut family = page.family(
        "nodeagent_discovery_call_duration_seconds",
        Kind::Histogram,
        "Calls to a discovery backend.",
    );
    for backend in backends.iter() {
        for call in Call::ALL {
            for verdict in Verdict::ALL {
                let labels = [
                    ("backend", backend.name.as_str()),
                    ("call", call.as_str()),
                    ("outcome", verdict.as_str()),
                ];
                family.histogram(&labels, &backend.calls[call as usize][verdict as usize]);
            }
        }
    }
    let mut family = page.family(
        "nodeagent_discovery_records_total",
        Kind::Counter,
        "Records that a discovery backend acknowledged.",
    );
    for backend in backends.iter() {
        family.sample(&[("backend", &backend.name)], backend.records.get());
    }
    let mut family = page.family(
        "nodeagent_discovery_last_success_timestamp_seconds",
        Kind::Gauge,
        "When a discovery backend acknowledged last; 0: not since the start.",
    );
    for backend in backends.iter() {
        let at = std::time::Duration::from_millis(backend.last_success_ms.load(Ordering::Relaxed));
        family.sample(&[("backend", &backend.name)], at.as_secs_f64());
    }
}

fn images(page: &mut Page, images: &ImageFacts) {
    let mut family = page.family(
        "nodeagent_image_fetched_bytes_total",
        Kind::Counter,
        "Bytes of layers that came over the network, by kind of source.",
    );
    for (from, bytes) in &images.fetched {
        family.sample(&[("from", from)], bytes);
    }
    page.single(
        "nodeagent_image_served_bytes_total",
        Kind::Counter,
        "Bytes of layers that peers were sent.",
        images.served_bytes,
    );
    page.single(
        "nodeagent_image_uploads",
        Kind::Gauge,
        "Uploads of layers to peers that are running.",
        images.uploads,
    );
}

fn process(page: &mut Page, process: &ProcessFacts) {
    page.single(
        "process_cpu_seconds_total",
        Kind::Counter,
        "User and system time of the agent.",
        process.cpu_seconds,
    );
    page.single(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "Resident memory of the agent.",
        process.resident_bytes,
    );
    page.single(
        "process_virtual_memory_bytes",
        Kind::Gauge,
        "Address space of the agent.",
        process.virtual_bytes,
    );
    page.single(
        "process_open_fds",
        Kind::Gauge,
        "Open descriptors of the agent.",
        process.open_fds,
    );
    page.single(
        "process_max_fds",
        Kind::Gauge,
        "Most open descriptors of the agent.",
        process.max_fds,
    );
    page.single(
        "process_start_time_seconds",
        Kind::Gauge,
        "Start of the agent, in seconds since 1970.",
        process.start_seconds,
    );
}
