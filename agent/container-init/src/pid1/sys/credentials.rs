//! Giving up privileges, in the child, before it executes.
#![allow(unsafe_code)]

use super::{Errno, ForKernel as _, Result, checked};
use crate::pid1::arch::{number, syscall};

fn prctl(option: usize, a: usize, b: usize) -> Result<usize> {
    // SAFETY: the options used here take no pointer.
    checked(unsafe { syscall(number::PRCTL, [option, a, b, 0, 0, 0]) })
}

/// Takes every capability that `kept` does not have out of the bounding set.
pub fn drop_from_bounding_set(kept: u64) -> Result<()> {
    const PR_CAPBSET_READ: usize = 23;
    const PR_CAPBSET_DROP: usize = 24;
    for capability in (0..64).filter(|capability| kept >> capability & 1 == 0) {
        match prctl(PR_CAPBSET_READ, capability, 0) {
            // Beyond the last one that this kernel knows.
            Err(Errno::EINVAL) => return Ok(()),
            Err(errno) => return Err(errno),
            Ok(1) => {
                prctl(PR_CAPBSET_DROP, capability, 0)?;
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Empties the ambient set. Kernels without one are older than we support, and say EINVAL.
pub fn clear_ambient() -> Result<()> {
    const PR_CAP_AMBIENT: usize = 47;
    const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0).map(drop)
}

/// Leaves of the permitted set what `kept` has, makes it effective, and nothing inheritable.
pub fn limit_capabilities(kept: u64) -> Result<()> {
    // struct __user_cap_header_struct with _LINUX_CAPABILITY_VERSION_3 and our own pid.
    let mut header = [0x2008_0522_u32, 0];
    // Twice {effective, permitted, inheritable}: the low and the high 32 capabilities.
    let mut sets = [0u32; 6];
    let (header, room) = (
        header.as_mut_ptr().addr_for_kernel(),
        sets.as_mut_ptr().addr_for_kernel(),
    );
    // SAFETY: version 3 has a header of 8 bytes and two sets of 12 bytes.
    checked(unsafe { syscall(number::CAPGET, [header, room, 0, 0, 0, 0]) })?;
    let [_, low, _, _, high, _] = sets;
    let (low, high) = (low & kept as u32, high & (kept >> 32) as u32);
    let mut sets = [low, low, 0, high, high, 0];
    // SAFETY: as above.
    checked(unsafe {
        syscall(
            number::CAPSET,
            [header, sets.as_mut_ptr().addr_for_kernel(), 0, 0, 0, 0],
        )
    })
    .map(drop)
}

/// Exactly these supplementary groups.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: the kernel reads that many group ids.
    checked(unsafe {
        syscall(
            number::SETGROUPS,
            [groups.len(), groups.as_ptr().addr_for_kernel(), 0, 0, 0, 0],
        )
    })
    .map(drop)
}

/// Real, effective and saved group id.
pub fn set_gid(gid: u32) -> Result<()> {
    let gid = gid as usize;
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::SETRESGID, [gid, gid, gid, 0, 0, 0]) }).map(drop)
}

/// The effective user id alone, so that root finds back.
pub fn act_as(uid: u32) -> Result<()> {
    let (uid, kept) = (uid as usize, u32::MAX as usize);
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::SETRESUID, [kept, uid, kept, 0, 0, 0]) }).map(drop)
}

/// Real, effective and saved user id.
pub fn set_uid(uid: u32) -> Result<()> {
    let uid = uid as usize;
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::SETRESUID, [uid, uid, uid, 0, 0, 0]) }).map(drop)
}
