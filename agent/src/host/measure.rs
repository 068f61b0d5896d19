//! What is looked up for a page of metrics.

use imagecache::fetch::SourceKind;

use super::node::Node;
use super::{answers, node};
use crate::api::v1::Pool;
use crate::images::Images;
use crate::metrics::{Facts, ImageFacts, PoolFacts, ProcessFacts};
use crate::pool::Effects;

/// `USER_HZ`, in which the kernel tells times of processes: 100 on every architecture that Rust
/// supports but Alpha (time(7)).
const USER_HZ: f64 = 100.0;

impl<E: Effects> Node<E> {
    pub(super) async fn facts(&self) -> Facts {
        let version =
            tokio::time::timeout(node::VERSION_DEADLINE, self.executor.runtime.version()).await;
        let pools = self.pools_now();
        Facts {
            pools: pools.iter().map(pool).collect(),
            alarms: self
                .shared
                .alarms
                .standing_now()
                .into_iter()
                .map(|alarm| alarm.code)
                .collect(),
            ready: *self.observed.borrow(),
            containerd: matches!(version, Ok(Ok(_))),
            gate_sessions: self.gate.sessions(),
            images: images(&self.executor.images),
            process: process(self.identity.started_ms),
        }
    }
}

fn pool(pool: &Pool) -> PoolFacts {
    let mut instances: Vec<(&'static str, u64)> = Vec::new();
    for instance in &pool.instances {
        let state = instance.state.as_str();
        match instances.iter_mut().find(|(known, _)| *known == state) {
            Some((_, count)) => *count += 1,
            None => instances.push((state, 1)),
        }
    }
    PoolFacts {
        app: pool.app.clone(),
        target: pool.target,
        warm_armed: pool.warm.armed,
        instances,
    }
}

fn images(images: &Images) -> ImageFacts {
    let served = images.served();
    ImageFacts {
        fetched: SourceKind::ALL
            .map(|kind| (kind.as_str(), images.fetched(kind)))
            .to_vec(),
        served_bytes: served.bytes,
        uploads: served.uploads,
    }
}

/// What `/proc` says of this process; what cannot be read is 0.
fn process(started_ms: u64) -> ProcessFacts {
    let read =
        |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let (status, stat) = (read("status"), read("stat"));
    let kib = |field: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|kib| kib.parse().ok()).unwrap_or(0)
    };
    // The name in parentheses may hold anything; utime and stime are fields 14 and 15 (proc(5)).
    let ticks: u64 = stat.rsplit_once(')').map_or(0, |(_, rest)| {
        let times = rest.split_whitespace().skip(11).take(2);
        times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
    });
    let open_fds = std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count() as u64);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    ProcessFacts {
        cpu_seconds: answers::lossy(ticks) / USER_HZ,
        resident_bytes: kib("VmRSS:") * 1024,
        virtual_bytes: kib("VmSize:") * 1024,
        // The one that reads the directory does not count.
        open_fds: open_fds.saturating_sub(1),
        max_fds: limit.current.unwrap_or(u64::MAX),
        start_seconds: answers::lossy(started_ms) / 1000.0,
    }
}
