//! Limits of the container's cgroup, and what the host can enforce.

use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxMemory, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};
use rustix::process::{Resource, getrlimit};

use crate::app::Resources;

/// The kernel's default period of the CPU quota, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// CPU shares of one core, as Kubernetes counts them.
const SHARES_PER_CORE: u64 = 1024;

/// Which cgroup hierarchy the runtime uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller; a hybrid host counts as this.
    V1,
    /// The unified hierarchy.
    V2,
}

/// Whether a limit on memory and swap together can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapAccounting {
    /// It can; instances get no swap.
    Present,
    /// It cannot (cgroup v1 without `swapaccount=1`); runc would fail on a limit.
    Absent,
}

/// What a spec needs to know about the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// Hierarchy of the controllers.
    pub cgroup: CgroupVersion,
    /// Of the memory controller.
    pub swap: SwapAccounting,
    /// Highest hard limit of open files that the runtime may set. A runtime without
    /// CAP_SYS_RESOURCE cannot raise its own, and fails instead of clipping.
    pub nofile_hard: u64,
}

impl HostFacts {
    /// Looks at `/sys/fs/cgroup` and at the agent's own limit of open files, which stands for that
    /// of containerd, whose shims start the runtime.
    pub fn detect() -> Self {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let memsw = Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
        Self {
            cgroup: if unified {
                CgroupVersion::V2
            } else {
                CgroupVersion::V1
            },
            swap: if unified || memsw {
                SwapAccounting::Present
            } else {
                SwapAccounting::Absent
            },
            nofile_hard: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
        }
    }
}

/// The limits that the manifest asks for, and the device rules.
pub(super) fn resources(
    limits: &Resources,
    host: &HostFacts,
) -> Result<LinuxResources, OciSpecError> {
    let resources = LinuxResourcesBuilder::default()
        .devices(devices()?)
        .memory(memory(limits.memory_bytes, host.swap)?)
        .pids(
            LinuxPidsBuilder::default()
                .limit(signed(limits.pids))
                .build()?,
        );
    match limits.cpu_millis {
        Some(millis) => resources.cpu(cpu(millis)?).build(),
        None => resources.build(),
    }
}

/// Limits are validated far below this; the cast must only not wrap.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn memory(bytes: u64, swap: SwapAccounting) -> Result<LinuxMemory, OciSpecError> {
    let memory = LinuxMemoryBuilder::default().limit(signed(bytes));
    match swap {
        // The same number for memory and for memory with swap: no swap.
        SwapAccounting::Present => memory.swap(signed(bytes)).build(),
        SwapAccounting::Absent => memory.build(),
    }
}

fn cpu(millis: u64) -> Result<LinuxCpu, OciSpecError> {
    LinuxCpuBuilder::default()
        .quota(signed(millis * CPU_PERIOD / 1000))
        .period(CPU_PERIOD)
        // Kubernetes takes the limit for the request where only the limit is given.
        .shares((millis * SHARES_PER_CORE / 1000).clamp(2, 262_144))
        .build()
}

/// Deny all, then what every container has: making nodes, and the pseudo devices of
/// Documentation/admin-guide/devices.txt. Terminals are those of the container's own devpts.
fn devices() -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow, typ, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(typ)
            .access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build()
    };
    let character = |major, minor| rule(true, LinuxDeviceType::C, Some(major), minor, "rwm");
    Ok(vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm")?,
        rule(true, LinuxDeviceType::C, None, None, "m")?,
        rule(true, LinuxDeviceType::B, None, None, "m")?,
        character(1, Some(3))?, // null
        character(1, Some(5))?, // zero
        character(1, Some(7))?, // full
        character(1, Some(8))?, // random
        character(1, Some(9))?, // urandom
        character(5, Some(0))?, // tty
        character(5, Some(2))?, // ptmx
        character(136, None)?,  // pts
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostFacts = HostFacts {
        cgroup: CgroupVersion::V1,
        swap: SwapAccounting::Present,
        nofile_hard: 4096,
    };

    fn limits(cpu_millis: Option<u64>) -> Resources {
        Resources {
            cpu_millis,
            memory_bytes: 64 << 20,
            pids: 32,
        }
    }

    #[test]
    fn half_a_core_is_half_a_period() {
        let built = resources(&limits(Some(500)), &HOST).unwrap();
        let cpu = built.cpu().as_ref().unwrap();
        assert_eq!(
            (cpu.quota(), cpu.period(), cpu.shares()),
            (Some(50_000), Some(100_000), Some(512))
        );
        assert_eq!(*resources(&limits(None), &HOST).unwrap().cpu(), None);
    }

    #[test]
    fn no_swap_is_given_and_none_is_limited_where_it_cannot_be() {
        let memory = |host| (*resources(&limits(None), host).unwrap().memory()).unwrap();
        assert_eq!(
            (memory(&HOST).limit(), memory(&HOST).swap()),
            (Some(64 << 20), Some(64 << 20))
        );
        let without = HostFacts {
            swap: SwapAccounting::Absent,
            ..HOST
        };
        assert_eq!(
            (memory(&without).limit(), memory(&without).swap()),
            (Some(64 << 20), None)
        );
    }

    #[test]
    fn devices_begin_with_denying_all() {
        let built = resources(&limits(None), &HOST).unwrap();
        let devices = built.devices().as_ref().unwrap();
        assert!(!devices[0].allow());
        assert!(devices[1..].iter().all(LinuxDeviceCgroup::allow));
    }
}
