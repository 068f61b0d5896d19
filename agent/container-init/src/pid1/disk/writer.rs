//! The writer: the thread that waits for disks. Sleeps until a process writes or ends.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use container_init::plan::MAX_PROCESSES;

use super::capture::{Buffers, Captured, STREAMS};
use super::ring::RingFile;
use crate::pid1::sys::{self, Fd, Poll, Work};

/// What PID 1 tells the writer, beside the records of the ring.
pub struct Orders {
    /// Bit n: process n of the plan has ended.
    ended: AtomicU32,
    /// All that is there is to be written, and that said.
    drain: AtomicBool,
}

impl Orders {
    pub const fn new() -> Self {
        Self {
            ended: AtomicU32::new(0),
            drain: AtomicBool::new(false),
        }
    }
}

/// PID 1's way to the writer: neither ever waits for the other, but PID 1 at its end.
pub struct Bell {
    orders: &'static Orders,
    wake: Fd,
    drained: Fd,
}

impl Bell {
    pub fn new(orders: &'static Orders) -> sys::Result<Self> {
        Ok(Self {
            orders,
            wake: sys::event()?,
            drained: sys::event()?,
        })
    }

    /// There is something new in the ring.
    pub fn recorded(&self) {
        sys::ring(&self.wake);
    }

    /// A process has ended: a line that it began is finished.
    pub fn ended(&self, process: usize) {
        self.orders.ended.fetch_or(1 << process, Ordering::Release);
        sys::ring(&self.wake);
    }

    /// Waits until everything is written, at most so long; whether it is.
    pub fn drain(&self, patience_ms: u64) -> bool {
        self.orders.drain.store(true, Ordering::Release);
        sys::ring(&self.wake);
        let deadline = sys::now() + patience_ms;
        let mut drained = [Poll::readable(&self.drained)];
        while !drained.iter().any(Poll::happened) {
            match deadline.saturating_sub(sys::now()) {
                0 => return false,
                left => sys::wait(&mut drained, Some(left)),
            }
        }
        true
    }
}

/// All that the thread owns.
pub struct Writer {
    captured: [Option<Captured>; MAX_PROCESSES],
    ring: Option<&'static RingFile>,
    buffers: &'static mut Buffers,
    bell: &'static Bell,
}

impl Writer {
    pub fn new(
        ring: Option<&'static RingFile>,
        buffers: &'static mut Buffers,
        bell: &'static Bell,
    ) -> Self {
        Self {
            captured: [const { None }; MAX_PROCESSES],
            ring,
            buffers,
            bell,
        }
    }

    /// Process `index` of the plan.
    pub fn capture(&mut self, index: usize, captured: Captured) {
        if let Some(room) = self.captured.get_mut(index) {
            *room = Some(captured);
        }
    }

    /// Nobody's output.
    pub fn capture_nothing(&mut self) {
        self.captured = [const { None }; MAX_PROCESSES];
    }

    /// Obeys PID 1. The ring comes before the logs: it is short.
    fn obey(&mut self) {
        sys::read(&self.bell.wake, &mut [0; 8]).ok();
        let ended = self.bell.orders.ended.swap(0, Ordering::Acquire);
        let drain = self.bell.orders.drain.load(Ordering::Acquire);
        if let Some(ring) = self.ring {
            ring.write();
        }
        let Buffers { shared, kept } = &mut *self.buffers;
        for (process, (captured, kept)) in self.captured.iter_mut().zip(kept).enumerate() {
            if let Some(captured) = captured
                && (drain || ended & (1 << process) != 0)
            {
                captured.finish(shared, kept);
            }
        }
        if drain {
            sys::ring(&self.bell.drained);
        }
    }
}

impl Work for Writer {
    fn work(&mut self) -> ! {
        for captured in self.captured.iter_mut().flatten() {
            captured.open();
        }
        let mut polls = [Poll::default(); 1 + STREAMS * MAX_PROCESSES];
        loop {
            let pipes = self.captured.iter().flat_map(|captured| {
                let none = [const { None }; STREAMS];
                captured.as_ref().map_or(none, Captured::pipes)
            });
            for (poll, pipe) in polls
                .iter_mut()
                .zip([Some(&self.bell.wake)].into_iter().chain(pipes))
            {
                *poll = pipe.map_or(Poll::default(), Poll::readable);
            }
            sys::wait(&mut polls, None);
            let [woken, streams @ ..] = &polls;
            let Buffers { shared, kept } = &mut *self.buffers;
            let streams = streams.chunks_exact(STREAMS);
            for ((captured, kept), streams) in self.captured.iter_mut().zip(kept).zip(streams) {
                for (stream, poll) in streams.iter().enumerate() {
                    if let (Some(captured), true) = (captured.as_mut(), poll.happened()) {
                        captured.copy(stream, shared, kept);
                    }
                }
            }
            if woken.happened() {
                self.obey();
            }
        }
    }
}
