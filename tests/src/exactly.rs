//! Exactly so many instances, each in service found and started once, and nothing besides.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::documents::{Instance, Pool};
use crate::host::TestHost;
use crate::wait::{Look, until};
use crate::{http, leaks};

/// Removal is asynchronous in part.
const SETTLES: Duration = Duration::from_secs(15);

/// Things of which every instance has one.
const ONE_EACH: [&str; 6] = [
    "containers",
    "tasks",
    "snapshots",
    "netns",
    "links",
    "instance directories",
];

impl TestHost {
    /// Waits for a pool with `active` in service and `armed` at the gate, the only one of the host,
    /// and fails if anything else is there. Its app serves on 8080 and appends `started` to
    /// `/www/starts` when it starts: each is found to have started once.
    pub fn assert_exactly(&self, app: &str, active: u32, armed: u32) -> Result<Pool> {
        let pool = self.assert_nothing_besides(app, active, armed)?;
        for instance in pool.instances.iter().filter(|i| i.state == "active") {
            let starts = self.starts(instance)?;
            ensure!(starts == 1, "{} was started {starts} times", instance.name);
        }
        Ok(pool)
    }

    /// How often the app of an instance has been started on its present rootfs.
    pub fn starts(&self, instance: &Instance) -> Result<usize> {
        let address = instance.address.as_deref();
        let server = format!("{}:8080", address.context("active without an address")?);
        let answer = http::get(self.ground.netns(), server.parse()?, "/starts")?;
        ensure!(answer.status == 200, "{server}: status {}", answer.status);
        Ok(answer.text().lines().count())
    }

    /// As [`assert_exactly`](Self::assert_exactly), however often they were started.
    pub fn assert_nothing_besides(&self, app: &str, active: u32, armed: u32) -> Result<Pool> {
        let pool = self.wait_for_pool(app, &format!("{active} active, {armed} armed"), |pool| {
            (pool.active, pool.armed) == (active, armed)
                && pool.arming + pool.starting + pool.draining + pool.failed == 0
        })?;
        let count = (active + armed) as usize;
        ensure!(pool.alarm.is_none(), "{:?}", pool.alarm);
        ensure!(pool.instances.len() == count, "{:?}", pool.instances);
        let found = self.discovered()?;
        ensure!(found.len() == active as usize, "clients find {found:?}");
        for instance in pool.instances.iter().filter(|i| i.state == "active") {
            let address = instance.address.as_deref();
            let address = address.context("active without an address")?;
            let server = format!("{address}:8080");
            ensure!(found.contains(&server), "{server} is not in {found:?}");
        }
        let ports = pool
            .instances
            .iter()
            .map(|i| i.host_ports.len())
            .sum::<usize>();
        until("exactly these containers", SETTLES, || {
            let there = leaks::look(&self.ground, &self.containerd, &self.agent)?;
            let right = ONE_EACH.iter().all(|kind| there.of(kind).len() == count)
                && there.of("host ports").len() == ports;
            Ok(if right && there.of("leases").is_empty() {
                Look::Seen(())
            } else {
                Look::NotYet(there.to_string())
            })
        })?;
        Ok(pool)
    }
}
