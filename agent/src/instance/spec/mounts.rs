//! Mounts, masked and read-only paths.

use std::ffi::CStr;
use std::path::Path;

use container_init::paths;
use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};

use super::{Content, SpecInput, text};
use crate::app::Access;

/// Unreadable inside: they tell about the host or its other guests. containerd's list
/// (`oci/spec.go`), with `/sys/devices/virtual/powercap` (CVE-2020-8694) and `/proc/scsi`.
pub(super) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Not writable inside, not even by root.
pub(super) const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// File systems of the kernel: destination, type, source, options.
const KERNEL: [(&str, &str, &str, &str); 6] = [
    ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
    (
        "/dev",
        "tmpfs",
        "tmpfs",
        "nosuid,strictatime,mode=755,size=65536k",
    ),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
    ),
    (
        "/dev/shm",
        "tmpfs",
        "shm",
        "nosuid,noexec,nodev,mode=1777,size=65536k",
    ),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
];

const CGROUP: &str = "nosuid,noexec,nodev,relatime";

/// All mounts in the order in which they are made.
pub(super) fn mounts(input: &SpecInput<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let mut mounts = KERNEL
        .iter()
        .map(|(destination, typ, source, options)| {
            mount(destination, typ, Path::new(source), options)
        })
        .collect::<Result<Vec<_>, _>>()?;
    // container-init divides the container's cgroup where processes have limits of their own.
    let access = match input.app.divides_cgroup() {
        true => "rw",
        false => "ro",
    };
    let options = format!("{CGROUP},{access}");
    mounts.push(mount(
        "/sys/fs/cgroup",
        "cgroup",
        Path::new("cgroup"),
        &options,
    )?);
    let bind = |destination: &CStr, source: &Path, options: &str| {
        mount(&text(destination), "bind", source, options)
    };
    mounts.extend([
        bind(
            paths::BIN_DIR,
            input.bin_dir,
            "bind,rprivate,ro,nosuid,nodev",
        )?,
        bind(
            paths::CTL_DIR,
            input.ctl_dir,
            "bind,rprivate,ro,nosuid,nodev,noexec",
        )?,
        bind(
            paths::LOG_DIR,
            input.log_dir,
            "bind,rprivate,rw,nosuid,nodev,noexec",
        )?,
        mount(
            &text(paths::RUN_DIR),
            "tmpfs",
            Path::new("tmpfs"),
            "nosuid,nodev,noexec,mode=0755,size=1m",
        )?,
    ]);
    for volume in input.volumes {
        let access = match volume.access {
            Access::ReadOnly => "ro",
            Access::ReadWrite => "rw",
        };
        let (typ, source, options) = match &volume.content {
            // Not recursive: what is mounted below it on the host stays there.
            Content::Host(source) => (
                "bind",
                source.as_path(),
                format!("bind,rprivate,nosuid,nodev,{access}"),
            ),
            Content::Memory { size, group } => (
                "tmpfs",
                Path::new("tmpfs"),
                match group {
                    None => format!("nosuid,nodev,mode=1777,size={size},{access}"),
                    // What is made in it belongs to the group as well.
                    Some(group) => {
                        format!("nosuid,nodev,mode=3777,gid={group},size={size},{access}")
                    }
                },
            ),
        };
        mounts.push(mount(&volume.destination, typ, source, &options)?);
    }
    Ok(mounts)
}

fn mount(
    destination: &str,
    typ: &str,
    source: &Path,
    options: &str,
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ(typ)
        .source(source)
        .options(options.split(',').map(str::to_owned).collect::<Vec<_>>())
        .build()
}
