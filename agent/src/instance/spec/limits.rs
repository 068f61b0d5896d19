//! Limits of the container's cgroup and of its processes, and what the host can enforce.

use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxMemory, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::app::{self, Resources, Ulimit};

/// The kernel's default period of the CPU quota, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// CPU shares of one core, as Kubernetes counts them.
const SHARES_PER_CORE: u64 = 1024;

/// Soft limit of open files: select(2) breaks above 1024, so more is for the app to ask for.
const NOFILE_SOFT: u64 = 1024;
const NOFILE_HARD: u64 = 1_048_576;
const NOFILE: u32 = 7;

/// By number, as on x86-64 and arm64 (asm-generic/resource.h).
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

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
    /// The agent's own hard limits by number, which stand for containerd's.
    pub inherited: [u64; 16],
    /// Whether the runtime may raise hard limits (CAP_SYS_RESOURCE).
    pub raises: RaisesLimits,
    /// What the host's first process may do at most, which stands for the runtime, whose unit does
    /// not bind it as the agent's binds the agent: a container gets nothing else.
    pub gives: app::CapabilitySet,
}

/// Whether hard limits can be raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaisesLimits {
    /// Up to this many open files (`fs.nr_open`); the others without an end.
    Yes {
        /// `fs.nr_open`.
        nofile: u64,
    },
    /// What is inherited is the most.
    No,
}

impl HostFacts {
    /// Looks at `/sys/fs/cgroup` and at the agent's own limit of open files, which stands for that
    /// of containerd, whose shims start the runtime.
    pub fn detect() -> Self {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let memsw = Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
        let own = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
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
            inherited: RESOURCES.map(|one| getrlimit(one).maximum.unwrap_or(u64::MAX)),
            raises: match own.contains(CapabilitySet::SYS_RESOURCE) {
                true => RaisesLimits::Yes {
                    nofile: nr_open().unwrap_or(NOFILE_HARD),
                },
                false => RaisesLimits::No,
            },
            gives: app::CapabilitySet::of_mask(bounding_set().unwrap_or(own.bits())),
        }
    }

    /// The highest hard limit that a process of a container can have.
    pub fn hard_limit(&self, resource: u32) -> u64 {
        let index = usize::try_from(resource).unwrap_or(usize::MAX);
        let inherited = self.inherited.get(index).copied().unwrap_or(0);
        match self.raises {
            RaisesLimits::Yes { nofile } if resource == NOFILE => nofile,
            RaisesLimits::Yes { .. } if raised_as(resource).is_some() => u64::MAX,
            _ => inherited,
        }
    }
}

/// The bounding set of PID 1 (proc_pid_status(5)).
fn bounding_set() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/1/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn nr_open() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/fs/nr_open").ok()?;
    text.trim().parse().ok()
}

/// The limits that are raised before container-init runs, which lowers them for each process:
/// those of the manifest that do not bind container-init itself, and that of open files. What only
/// an agent asks for is not raised here, where the others would inherit it:
/// [`app::App::to_set_conduct`].
pub(super) fn process(
    limits: &[Ulimit],
    of_agents: &[Ulimit],
    host: &HostFacts,
) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let highest = |limit: &Ulimit| {
        let same = of_agents.iter().filter(|o| o.resource == limit.resource);
        same.fold(limit.hard, |hard, other| hard.max(other.hard))
    };
    let raised = |typ, soft: u64, hard: u64| {
        PosixRlimitBuilder::default()
            .typ(typ)
            .soft(soft)
            .hard(hard)
            .build()
    };
    let mut all = Vec::new();
    if !limits.iter().any(|limit| limit.resource == NOFILE) {
        let hard = NOFILE_HARD.min(host.nofile_hard);
        let soft = NOFILE_SOFT.min(hard);
        all.push(raised(PosixRlimitType::RlimitNofile, soft, hard)?);
    }
    for limit in limits {
        if let Some(typ) = raised_as(limit.resource) {
            let least = if limit.resource == NOFILE {
                NOFILE_SOFT.min(host.nofile_hard)
            } else {
                0
            };
            let hard = highest(limit).max(least);
            all.push(raised(typ, hard, hard)?);
        }
    }
    Ok(all)
}

/// Not among them are those that would end or cripple container-init: cpu, fsize, data, stack, rss,
/// as.
fn raised_as(resource: u32) -> Option<PosixRlimitType> {
    match resource {
        0..=3 | 5 | 9 => None,
        _ => named(resource),
    }
}

/// The limit of this number, as on x86-64 and arm64 (asm-generic/resource.h).
pub(super) fn named(resource: u32) -> Option<PosixRlimitType> {
    use PosixRlimitType as Type;
    const NAMES: [Type; 16] = [
        Type::RlimitCpu,
        Type::RlimitFsize,
        Type::RlimitData,
        Type::RlimitStack,
        Type::RlimitCore,
        Type::RlimitRss,
        Type::RlimitNproc,
        Type::RlimitNofile,
        Type::RlimitMemlock,
        Type::RlimitAs,
        Type::RlimitLocks,
        Type::RlimitSigpending,
        Type::RlimitMsgqueue,
        Type::RlimitNice,
        Type::RlimitRtprio,
        Type::RlimitRttime,
    ];
    NAMES.get(usize::try_from(resource).ok()?).copied()
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
        inherited: [4096; 16],
        raises: RaisesLimits::No,
        gives: app::CapabilitySet::NONE,
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

    fn limit(name: &'static str, resource: u32, soft: u64, hard: u64) -> Ulimit {
        Ulimit {
            name,
            resource,
            soft,
            hard,
        }
    }

    #[test]
    fn limits_start_at_the_highest_and_never_bind_container_init() {
        let asked = [
            limit("fsize", 1, 0, 0),
            limit("core", 4, 0, 4096),
            limit("nofile", NOFILE, 16, 32),
        ];
        let built = process(&asked, &[limit("core", 4, 0, 8192)], &HOST).unwrap();
        let built: Vec<_> = built
            .iter()
            .map(|limit| (limit.typ(), limit.soft(), limit.hard()))
            .collect();
        assert_eq!(
            built,
            [
                (PosixRlimitType::RlimitCore, 8192, 8192),
                (PosixRlimitType::RlimitNofile, 1024, 1024),
            ]
        );
    }

    #[test]
    fn without_the_right_to_raise_what_is_inherited_is_the_most() {
        assert_eq!(HOST.hard_limit(NOFILE), 4096);
        let raises = HostFacts {
            raises: RaisesLimits::Yes { nofile: 1 << 20 },
            ..HOST
        };
        assert_eq!(raises.hard_limit(NOFILE), 1 << 20);
        assert_eq!(raises.hard_limit(8), u64::MAX);
        // Only container-init sets it, and cannot raise it.
        assert_eq!(raises.hard_limit(1), 4096);
    }

    #[test]
    fn devices_begin_with_denying_all() {
        let built = resources(&limits(None), &HOST).unwrap();
        let devices = built.devices().as_ref().unwrap();
        assert!(!devices[0].allow());
        assert!(devices[1..].iter().all(LinuxDeviceCgroup::allow));
    }
}
