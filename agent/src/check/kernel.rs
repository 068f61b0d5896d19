//! The kernel: its version and the parts that the agent cannot do without.

use std::fs::File;
use std::io;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::facts::line_of;
use super::finding::Finding;
use crate::chain::chain;
use crate::network;

/// Oldest kernel: openat2(2) came with 5.6, the other parts are older.
const OLDEST: (u32, u32) = (5, 6);
/// `SO_PEERPIDFD` (unix(7)): who dials the gate is known beyond doubt.
const PEER_PIDFD: (u32, u32) = (6, 5);
/// How long netfilter may take for an answer; it answers at once.
const NETFILTER_DEADLINE: Duration = Duration::from_secs(1);

/// What the kernel is and has. `Err` says why a part cannot be used.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub release: String,
    pub overlayfs: Result<(), String>,
    pub veth: Result<(), String>,
    pub pidfd: Result<(), String>,
    pub openat2: Result<(), String>,
    pub nf_tables: Result<(), String>,
    pub pressure: Result<(), String>,
}

pub(super) fn read() -> Kernel {
    let release = rustix::system::uname();
    Kernel {
        release: release.release().to_string_lossy().into_owned(),
        overlayfs: overlayfs(),
        veth: network::try_veth().map_err(|error| chain(&error)),
        pidfd: pidfd_open(getpid(), PidfdFlags::empty())
            .map(drop)
            .map_err(said),
        openat2: beneath().map_err(said),
        nf_tables: nf_tables().map_err(|error| error.to_string()),
        pressure: line_of("/proc/pressure/memory").map(drop),
    }
}

/// Loaded or built in, or a module that mount(2) loads.
fn overlayfs() -> Result<(), String> {
    let known = line_of("/proc/filesystems")?;
    if known
        .lines()
        .any(|line| line.trim_end().ends_with("\toverlay"))
    {
        return Ok(());
    }
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let modules = line_of(&format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    if modules.lines().any(|line| line.contains("/overlay.ko")) {
        return Ok(());
    }
    Err("overlay is neither in /proc/filesystems nor among the modules".to_owned())
}

/// Tries openat2(2), by which files that containers can reach are opened.
pub(crate) fn beneath() -> Result<(), rustix::io::Errno> {
    let root = File::open("/").map_err(|_| rustix::io::Errno::NOENT)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(root, "proc", flags, Mode::empty(), ResolveFlags::BENEATH).map(drop)
}

/// Asks nf_tables for its generation (NFT_MSG_GETGEN of linux/netfilter/nf_tables.h), which
/// changes nothing and has the module loaded.
fn nf_tables() -> io::Result<()> {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_GETGEN: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const NLMSG_ERROR: u16 = 2;
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(NETFILTER_DEADLINE))?;
    // struct nlmsghdr (length, type, flags, sequence, pid) and struct nfgenmsg (family, version, 0).
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 12]);
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0_u8; 256];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    let kind = answer
        .get(4..6)
        .and_then(|b| Some(u16::from_ne_bytes(b.try_into().ok()?)));
    let error = answer
        .get(16..20)
        .and_then(|b| Some(i32::from_ne_bytes(b.try_into().ok()?)));
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(errno)) if errno != 0 => Err(io::Error::from_raw_os_error(-errno)),
        _ if length >= 20 => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn said(errno: rustix::io::Errno) -> String {
    io::Error::from(errno).to_string()
}

pub(super) fn judge(kernel: &Kernel) -> Vec<Finding> {
    let there = |check, part: &Result<(), String>, means, mend| match part {
        Ok(()) => Finding::full(check, "there"),
        Err(why) => Finding::not(check, why, means, mend),
    };
    vec![
        release(&kernel.release),
        there(
            "kernel.overlayfs",
            &kernel.overlayfs,
            "containerd's snapshotter overlayfs cannot mount root file systems",
            "modprobe overlay, or another snapshotter: containerd.snapshotter",
        ),
        there(
            "kernel.veth",
            &kernel.veth,
            "instances with a network of their own cannot be made",
            "as root: modprobe veth; or only apps with `network: host`",
        ),
        there(
            "kernel.pidfd",
            &kernel.pidfd,
            "the ends of containers cannot be watched",
            "a kernel of 5.6 or newer",
        ),
        there(
            "kernel.openat2",
            &kernel.openat2,
            "files that containers can write cannot be opened safely",
            "a kernel of 5.6 or newer; in a container: a seccomp profile that allows openat2",
        ),
        match &kernel.nf_tables {
            Ok(()) => Finding::full("kernel.nf_tables", "there"),
            Err(why) => Finding::part(
                "kernel.nf_tables",
                why,
                "no host ports and no masquerade for instances",
                "as root: modprobe nf_tables",
            ),
        },
        match &kernel.pressure {
            Ok(()) => Finding::full("kernel.psi", "there"),
            Err(why) => Finding::part(
                "kernel.psi",
                why,
                "pressure on memory, cpu and io cannot be sensed",
                "boot with psi=1 on the kernel's command line",
            ),
        },
    ]
}

fn release(release: &str) -> Finding {
    let check = "kernel.release";
    match version(release) {
        None => Finding::part(
            check,
            format!("{release:?} is no version"),
            "it is not known to be new enough",
            "a kernel of 5.6 or newer",
        ),
        Some(version) if version < OLDEST => Finding::not(
            check,
            release,
            "openat2 is missing, on which safety depends",
            "a kernel of 5.6 or newer; 6.5 and newer know who dials the gate beyond doubt",
        ),
        Some(version) if version < PEER_PIDFD => Finding::full(
            check,
            format!("{release}; before 6.5 who dials the gate is known by its pid alone"),
        ),
        Some(_) => Finding::full(check, release),
    }
}

/// `6.1.0-13-amd64` is 6.1.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    pub(crate) fn whole(release: &str) -> Kernel {
        Kernel {
            release: release.to_owned(),
            overlayfs: Ok(()),
            veth: Ok(()),
            pidfd: Ok(()),
            openat2: Ok(()),
            nf_tables: Ok(()),
            pressure: Ok(()),
        }
    }

    #[test]
    fn kernels_are_judged_by_the_versions_that_brought_what_is_needed() {
        let works = |text| release(text).works;
        assert_eq!(works("5.4.0-150-generic"), Works::Not);
        assert_eq!(works("5.6.0"), Works::Full);
        assert_eq!(works("6.18.44-fc-v669"), Works::Full);
        assert_eq!(works("custom"), Works::Part);
        assert!(release("6.1.0-13-amd64").found.contains("by its pid alone"));
        assert_eq!(release("6.5.0").found, "6.5.0");
    }

    #[test]
    fn a_missing_part_is_named_with_its_reason_and_its_mend() {
        let mut kernel = whole("6.12.0");
        assert!(judge(&kernel).iter().all(|f| f.works == Works::Full));
        kernel.overlayfs = Err("not there".to_owned());
        kernel.pressure = Err("no file".to_owned());
        let wrong: Vec<_> = judge(&kernel)
            .into_iter()
            .filter(|f| f.works != Works::Full)
            .collect();
        assert_eq!(
            wrong
                .iter()
                .map(|f| (f.check.as_str(), f.works))
                .collect::<Vec<_>>(),
            [
                ("kernel.overlayfs", Works::Not),
                ("kernel.psi", Works::Part)
            ]
        );
        assert_eq!(wrong[0].found, "not there");
        assert!(
            wrong[0]
                .mend
                .as_ref()
                .is_some_and(|m| m.contains("modprobe overlay"))
        );
    }

    #[test]
    fn nf_tables_answers_or_says_why_not() {
        // Whatever this machine has: an answer in time, and a refusal with its reason.
        if let Err(error) = nf_tables() {
            assert!(error.raw_os_error().is_some(), "{error}");
        }
    }
}
