//! System V IPC objects, which outlive their processes.
#![allow(unsafe_code)]

use super::{Result, checked};
use crate::pid1::arch::{number, syscall};

/// Kinds of System V IPC objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipc {
    /// Shared memory.
    Memory,
    /// Semaphores.
    Semaphores,
    /// Message queue.
    Queue,
}

/// Removes an object by its id.
pub fn remove_ipc(kind: Ipc, id: u32) -> Result<()> {
    const IPC_RMID: usize = 0;
    let id = id as usize;
    let (call, arguments) = match kind {
        Ipc::Memory => (number::SHMCTL, [id, IPC_RMID, 0, 0, 0, 0]),
        Ipc::Semaphores => (number::SEMCTL, [id, 0, IPC_RMID, 0, 0, 0]),
        Ipc::Queue => (number::MSGCTL, [id, IPC_RMID, 0, 0, 0, 0]),
    };
    // SAFETY: IPC_RMID reads and writes no memory of ours.
    checked(unsafe { syscall(call, arguments) }).map(drop)
}
