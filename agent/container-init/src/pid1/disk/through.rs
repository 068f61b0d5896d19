//! What processes write, passed on to our own streams as they wrote it.

use super::super::sys::{self, Errno};

/// PIPE_BUF: as much as a pipe takes in one piece.
const AT_ONCE: usize = 4096;

/// One of our own streams, 1 or 2.
pub struct Through {
    stream: i32,
    is_read: bool,
}

impl Through {
    pub fn new(stream: i32) -> Self {
        Self {
            stream,
            is_read: true,
        }
    }

    /// Passes on as much as is taken without waiting, whole lines where it can. The rest is in the
    /// log only. Nothing more when nobody reads any more.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while self.is_read && !bytes.is_empty() {
            let most = bytes.get(..bytes.len().min(AT_ONCE)).unwrap_or_default();
            let lines = most.iter().rposition(|byte| *byte == b'\n');
            let length = lines.map_or(most.len(), |at| at + 1);
            match sys::offer(self.stream, bytes.get(..length).unwrap_or_default()) {
                Ok(taken) => bytes = bytes.get(taken..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE) => self.is_read = false,
                Err(_) => return,
            }
        }
    }
}
