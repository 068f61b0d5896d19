//! The default seccomp profile: which system calls a container may make.
//!
//! What is allowed is what containerd's default (`contrib/seccomp/seccomp_default.go`) of 1.6
//! allows to a container with our capability set, with the differences that its 2.x has as well:
//! io_uring and the socket families AF_ALG and AF_VSOCK (kernel crypto, the hypervisor) are not
//! allowed, and the newer calls that current C libraries try first are. Everything else fails with
//! EPERM. A name that the runtime's libseccomp does not know is passed
//! over by runc and crun, so the list may be newer than the library.

use std::collections::BTreeSet;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use crate::app::CapabilitySet;

/// Allowed without a condition, by subject.
const ALLOWED: [&str; 11] = [
    // Files by path
    "access chdir chmod chown chown32 creat faccessat faccessat2 fchmodat fchmodat2 fchownat \
     fstatat64 futimesat getcwd getxattr getxattrat lchown lchown32 lgetxattr link linkat listxattr \
     listxattrat llistxattr lremovexattr lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat newfstatat open \
     openat openat2 readlink readlinkat removexattr removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat \
     stat64 statfs statfs64 statx symlink symlinkat truncate truncate64 umask unlink unlinkat \
     utime utimensat utimensat_time64 utimes",
    // Open files
    "_llseek cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 \
     fallocate fanotify_mark fchdir fchmod fchown fchown32 fcntl fcntl64 fdatasync fgetxattr \
     flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatfs fstatfs64 fsync ftruncate \
     ftruncate64 getdents getdents64 inotify_add_watch inotify_init inotify_init1 \
     inotify_rm_watch ioctl lseek pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 \
     read readahead readv sendfile sendfile64 splice sync sync_file_range syncfs tee vmsplice \
     write writev",
    // Waiting for files
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
     epoll_wait epoll_wait_old eventfd eventfd2 poll ppoll ppoll_time64 pselect6 pselect6_time64 \
     select signalfd signalfd4",
    // Asynchronous I/O (libaio)
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit \
     ioprio_get ioprio_set",
    // Memory
    "brk madvise map_shadow_stack memfd_create memfd_secret mincore \
     mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap \
     pkey_alloc pkey_free pkey_mprotect \
     remap_file_pages",
    // Processes and threads
    "capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu \
     getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid \
     landlock_add_rule landlock_create_ruleset landlock_restrict_self membarrier pidfd_open \
     pidfd_send_signal prctl prlimit64 process_mrelease ptrace restart_syscall rseq \
     sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
     sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
     sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp \
     set_robust_list set_thread_area set_tid_address setpgid setpriority setrlimit setsid \
     sysinfo times ugetrlimit uname uretprobe vfork wait4 waitid waitpid",
    // Users and groups
    "getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid \
     getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 \
     setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid \
     setresuid32 setreuid setreuid32 setuid setuid32",
    // Signals and futexes
    "alarm futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake getitimer kill \
     pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
     rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo setitimer sigaltstack sigprocmask \
     sigreturn tgkill tkill",
    // System V and POSIX IPC
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
     mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
     semtimedop_time64 shmat shmctl shmdt shmget",
    // Sockets
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
     recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // Time and randomness; adjtimex without CAP_SYS_TIME only reads
    "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
     clock_gettime64 clock_nanosleep clock_nanosleep_time64 getrandom gettimeofday nanosleep time \
     timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
     timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
     timerfd_settime64",
];

/// What a capability adds, as in containerd's default.
const ALLOWED_BY_CAPABILITY: [(&str, &str); 14] = [
    ("SYS_CHROOT", "chroot"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
         mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    (
        "SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev",
    ),
    ("SYS_RAWIO", "ioperm iopl"),
    (
        "SYS_TIME",
        "clock_settime clock_settime64 settimeofday stime",
    ),
    ("SYS_TTY_CONFIG", "vhangup"),
    (
        "SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

#[cfg(target_arch = "x86_64")]
const ALLOWED_BY_ARCHITECTURE: &str = "arch_prctl modify_ldt";
#[cfg(target_arch = "aarch64")]
const ALLOWED_BY_ARCHITECTURE: &str =
    "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2";

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Arch; 3] = [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Arch; 2] = [Arch::ScmpArchAarch64, Arch::ScmpArchArm];

/// Execution domains of personality(2) that may be set: Linux, Linux 32 bit, both with `UNAME26`,
/// and the query.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET` of clone(2).
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Address families of socket(2) that are not allowed; the one between them is.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The profile for a container with these capabilities.
pub(super) fn default_profile(capabilities: CapabilitySet) -> Result<LinuxSeccomp, OciSpecError> {
    let by_capability = ALLOWED_BY_CAPABILITY
        .iter()
        .filter_map(|(name, calls)| capabilities.has(name).then_some(calls));
    // Two capabilities may allow one call.
    let names: BTreeSet<String> = ALLOWED
        .iter()
        .chain(by_capability)
        .chain([&ALLOWED_BY_ARCHITECTURE])
        .flat_map(|names| names.split_ascii_whitespace())
        .map(str::to_owned)
        .collect();
    let administers = capabilities.has("SYS_ADMIN");
    let unconditional = LinuxSyscallBuilder::default()
        .names::<Vec<String>>(names.into_iter().collect())
        .action(LinuxSeccompAction::ScmpActAllow)
        .build()?;
    let mut rules = vec![unconditional];
    for domain in PERSONALITIES {
        rules.push(rule_for(
            "personality",
            domain,
            LinuxSeccompOperator::ScmpCmpEq,
        )?);
    }
    // By socketcall(2) of 32-bit programs every family stays reachable: its arguments lie in memory.
    for (family, operator) in [
        (AF_ALG, LinuxSeccompOperator::ScmpCmpLt),
        (AF_ALG + 1, LinuxSeccompOperator::ScmpCmpEq),
        (AF_VSOCK, LinuxSeccompOperator::ScmpCmpGt),
    ] {
        rules.push(rule_for("socket", family, operator)?);
    }
    if administers {
        return profile(rules);
    }
    // Threads and processes, but no namespaces: those need CAP_SYS_ADMIN, or a user namespace,
    // which is the first step of most ways out.
    rules.push(rule_for(
        "clone",
        CLONE_NAMESPACES,
        LinuxSeccompOperator::ScmpCmpMaskedEq,
    )?);
    // The flags of clone3 lie in memory, where a filter cannot look. ENOSYS makes the C library
    // fall back to clone; EPERM would fail the thread.
    rules.push(
        LinuxSyscallBuilder::default()
            .names(vec!["clone3".to_owned()])
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(ENOSYS)
            .build()?,
    );
    profile(rules)
}

fn profile(rules: Vec<LinuxSyscall>) -> Result<LinuxSeccomp, OciSpecError> {
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(ARCHITECTURES)
        .syscalls(rules)
        .build()
}

/// Allows `call` on a condition on its first argument. For a masked comparison `value` is the mask,
/// and the masked argument must be 0.
fn rule_for(
    call: &str,
    value: u64,
    operator: LinuxSeccompOperator,
) -> Result<LinuxSyscall, OciSpecError> {
    let argument = LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .value(value)
        .value_two(0_u64)
        .op(operator)
        .build()?;
    LinuxSyscallBuilder::default()
        .names(vec![call.to_owned()])
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(vec![argument])
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unconditional() -> Vec<String> {
        let profile = default_profile(CapabilitySet::STANDARD).unwrap();
        let rules = profile.syscalls().as_ref().unwrap();
        rules[0].names().clone()
    }

    #[test]
    fn every_call_is_named_once() {
        let mut seen = BTreeSet::new();
        for name in ALLOWED
            .iter()
            .flat_map(|names| names.split_ascii_whitespace())
        {
            assert!(seen.insert(name), "{name}");
        }
    }

    #[test]
    fn a_capability_opens_its_calls_and_no_others() {
        let calls = |capability: &str| {
            let one = CapabilitySet::named(capability).unwrap();
            let profile = default_profile(CapabilitySet::STANDARD.with(one)).unwrap();
            profile.syscalls().clone().unwrap()
        };
        let named = |capability: &str| calls(capability)[0].names().clone();
        let has = |names: &[String], call: &str| names.iter().any(|name| name == call);
        assert!(has(&named("SYS_TIME"), "settimeofday") && !has(&named("SYS_TIME"), "mount"));
        assert!(has(&named("SYS_ADMIN"), "mount") && has(&named("SYS_ADMIN"), "clone3"));
        let denied = |capability: &str| {
            calls(capability)
                .iter()
                .any(|rule| rule.names() == &["clone3"])
        };
        assert!(denied("SYS_TIME") && !denied("SYS_ADMIN"));
    }

    #[test]
    fn the_ways_out_are_closed() {
        let names = unconditional();
        for call in [
            "add_key",
            "bpf",
            "clone",
            "clone3",
            "delete_module",
            "finit_module",
            "fsopen",
            "init_module",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "kexec_load",
            "keyctl",
            "mount",
            "move_mount",
            "name_to_handle_at",
            "open_by_handle_at",
            "open_tree",
            "perf_event_open",
            "personality",
            "pivot_root",
            "process_vm_readv",
            "quotactl",
            "reboot",
            "request_key",
            "setns",
            "settimeofday",
            "swapon",
            "syslog",
            "umount2",
            "unshare",
            "userfaultfd",
        ] {
            assert!(!names.iter().any(|name| name == call), "{call}");
        }
    }

    #[test]
    fn what_a_c_library_tries_first_does_not_fail_with_eperm() {
        let names = unconditional();
        for call in [
            "rseq",
            "faccessat2",
            "fchmodat2",
            "close_range",
            "statx",
            "membarrier",
            "openat2",
        ] {
            assert!(names.iter().any(|name| name == call), "{call}");
        }
    }

    #[test]
    fn clone3_says_enosys_so_that_threads_start_by_clone() {
        let profile = default_profile(CapabilitySet::STANDARD).unwrap();
        let rules = profile.syscalls().as_ref().unwrap();
        let clone3 = rules
            .iter()
            .find(|rule| rule.names() == &["clone3"])
            .unwrap();
        assert_eq!(clone3.errno_ret(), Some(38));
        assert_eq!(profile.default_errno_ret(), Some(1));
    }
}
