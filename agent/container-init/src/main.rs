//! container-init, the program: PID 1 of a container.
//!
//! `container-init --plan FILE` blocks signals, reads the plan, and turns around in one loop that
//! waits for signals, the agent, readiness and time ([`pid1`]). All judgement is in the library.
//! `container-init --hold`, outside of containers, only stays.
//! No libc, no allocation, no threads but one that waits for disks; memory is one arena in .bss. Looks
//! at nothing below /proc, /dev or /tmp that it cannot do without.
#![no_std]
#![no_main]

mod pid1;

pub use pid1::entry;
