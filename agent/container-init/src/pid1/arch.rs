//! What only assembly can say, for x86-64: entry, system call, the vfork-like clone, and the
//! memory functions that the compiler calls and no libc is there to give.
#![allow(unsafe_code)]

use core::arch::{asm, naked_asm};
use core::ffi::c_void;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("container-init: this architecture has no entry, system call and clone yet");

/// System call numbers of x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`).
pub mod number {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const LSEEK: usize = 8;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const PREAD64: usize = 17;
    pub const PWRITE64: usize = 18;
    pub const SHMCTL: usize = 31;
    pub const GETPID: usize = 39;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const SENDTO: usize = 44;
    pub const RECVMSG: usize = 47;
    pub const BIND: usize = 49;
    pub const SOCKETPAIR: usize = 53;
    pub const SETSOCKOPT: usize = 54;
    pub const GETSOCKOPT: usize = 55;
    pub const FORK: usize = 57;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SEMCTL: usize = 66;
    pub const MSGCTL: usize = 71;
    pub const FCNTL: usize = 72;
    pub const CHDIR: usize = 80;
    pub const FCHMOD: usize = 91;
    pub const UMASK: usize = 95;
    pub const SETPGID: usize = 109;
    pub const GETPPID: usize = 110;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SETRESUID: usize = 117;
    pub const SETRESGID: usize = 119;
    pub const GETSID: usize = 124;
    pub const CAPGET: usize = 125;
    pub const CAPSET: usize = 126;
    pub const RT_SIGQUEUEINFO: usize = 129;
    pub const SETPRIORITY: usize = 141;
    pub const PRCTL: usize = 157;
    pub const GETDENTS64: usize = 217;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const MKDIRAT: usize = 258;
    pub const UNLINKAT: usize = 263;
    pub const RENAMEAT: usize = 264;
    pub const PPOLL: usize = 271;
    pub const FALLOCATE: usize = 285;
    pub const SIGNALFD4: usize = 289;
    pub const EVENTFD2: usize = 290;
    pub const DUP3: usize = 292;
    pub const PIPE2: usize = 293;
    pub const PRLIMIT64: usize = 302;
    pub const PWRITEV2: usize = 328;
    pub const STATX: usize = 332;
    pub const PIDFD_SEND_SIGNAL: usize = 424;
    pub const PIDFD_OPEN: usize = 434;
    pub const CLOSE_RANGE: usize = 436;
    pub const OPENAT2: usize = 437;
}

/// Makes a system call; a result of -4095..=-1 is a negated errno.
///
/// # Safety
/// The arguments must be what the call `number` wants: pointers valid for as much as the kernel
/// reads or writes through them.
pub unsafe fn syscall(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the kernel changes rax, rcx and r11 only, and memory as the caller vouched for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number.cast_signed() => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// The body of a naked `fn(stack_top, function, argument)`: clone(flags, stack, 0, 0, unused), behind
/// which the clone calls the function.
macro_rules! cloned {
    ($flags:literal) => {
        naked_asm!(
            "mov r8, rsi",
            "mov r9, rdx",
            "mov rsi, rdi",
            concat!("mov edi, ", $flags),
            "xor edx, edx",
            "xor r10d, r10d",
            "mov eax, 56",
            "syscall",
            "test rax, rax",
            "jz 2f",
            "ret",
            "2:",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r8",
            "ud2",
        )
    };
}

/// Runs `child(argument)` in a new process that shares our memory, and returns its pid once it
/// executed another program or ended: until then we are suspended (`CLONE_VM | CLONE_VFORK`).
///
/// # Safety
/// `stack_top` must be the 16-byte aligned end of a stack that nobody else uses; `child` must
/// touch only what `argument` gives it, and never return.
#[unsafe(naked)]
pub unsafe extern "C" fn vfork(
    stack_top: *mut u8,
    child: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> isize {
    // CLONE_VFORK | CLONE_VM | SIGCHLD
    cloned!("0x4111")
}

/// Runs `work(argument)` in a second thread of ours, with the same memory, descriptors and signal
/// mask, and returns its tid at once.
///
/// # Safety
/// `stack_top` must be the 16-byte aligned end of a stack that nobody else ever uses; `argument`
/// must be what `work` wants for as long as the program lives, and `work` must never return.
#[unsafe(naked)]
pub unsafe extern "C" fn thread(
    stack_top: *mut u8,
    work: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> isize {
    // CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM
    cloned!("0x50f00")
}

/// Where the kernel begins: hands the initial stack (argc, argv) to [`crate::entry`].
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {entry}", "ud2", entry = sym crate::entry)
}

/// memcpy(3).
///
/// # Safety
/// As in C: both valid for `count` bytes, not overlapping.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise is what `rep movsb` needs; the direction flag is clear by ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

/// memmove(3).
///
/// # Safety
/// As in C: both valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= count {
        // SAFETY: copying upwards reads every byte before it is overwritten.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: `to` lies inside `from..from + count`, so copying downwards from the last byte is
    // right; the direction flag is clear again afterwards as the ABI wants.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") count => _,
            inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _,
            options(nostack),
        );
    }
    to
}

/// memset(3).
///
/// # Safety
/// As in C: valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise is what `rep stosb` needs.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8, options(nostack, preserves_flags));
    }
    to
}

/// memcmp(3).
///
/// # Safety
/// As in C: both valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for at in 0..count {
        // SAFETY: `at < count`, for which both are valid.
        let (x, y) = unsafe { (a.add(at).read(), b.add(at).read()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// bcmp(3).
///
/// # Safety
/// As in C: both valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the same promise.
    unsafe { memcmp(a, b, count) }
}

/// strlen(3), called by `CStr`.
///
/// # Safety
/// As in C: a string that ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: no byte behind the NUL is read.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
