//! The agent's side of the gate, for one container: a socket, reports, a start.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use container_init::protocol::{
    EnvList, EventKind, MAX_FRAME, Report, Request, Restart, Start, first_frame,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;

/// Longer than a container of this machine takes for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection of a container-init.
#[derive(Debug)]
pub struct Gate {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Gate {
    /// The socket that a container-init dials.
    pub fn listen(path: &Path) -> Result<UnixListener> {
        UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))
    }

    /// Waits for it to dial.
    pub fn accept(listener: &UnixListener) -> Result<Self> {
        let limit = Timespec::try_from(PATIENCE).context("the wait is too long")?;
        let mut polls = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        let ready = poll(&mut polls, Some(&limit)).context("poll the gate")?;
        ensure!(
            ready == 1,
            "container-init did not dial within {PATIENCE:?}"
        );
        let (stream, _) = listener.accept().context("accept at the gate")?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .context("limit reads at the gate")?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    /// Pid of the container-init, outside.
    pub fn pid(&self) -> Result<u32> {
        let peer = socket_peercred(&self.stream).context("ask who dialled")?;
        Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Reads reports until `look` finds what it wants; events are acknowledged.
    pub fn wait_for<R>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&Report<'_>) -> Option<R>,
    ) -> Result<R> {
        loop {
            if let Some(found) = self.next(&mut look)? {
                return Ok(found);
            }
            self.receive()
                .with_context(|| format!("wait for {what} at the gate"))?;
        }
    }

    /// Looks at what has come, without waiting; events are acknowledged.
    pub fn heard(&mut self, mut look: impl FnMut(&Report<'_>)) -> Result<()> {
        let now = Timespec::default();
        while poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&now))? == 1 {
            self.receive()?;
        }
        self.next(|report| {
            look(report);
            None::<()>
        })
        .map(drop)
    }

    /// Takes what was received, up to a report in which `look` finds something.
    fn next<R>(&mut self, mut look: impl FnMut(&Report<'_>) -> Option<R>) -> Result<Option<R>> {
        let mut last_seq = None;
        let mut found = None;
        while found.is_none()
            && let Some(frame) = first_frame(&self.received)
                .map_err(|fault| anyhow!("a bad frame of container-init: {fault:?}"))?
        {
            let report = Report::decode(frame.body)
                .map_err(|fault| anyhow!("a bad report of container-init: {fault:?}"))?;
            found = look(&report);
            if let Report::Event(event) = report {
                last_seq = Some(event.seq);
            }
            let length = frame.length;
            self.received.drain(..length);
        }
        if let Some(seq) = last_seq {
            self.ask(Request::Ack { seq })?;
        }
        Ok(found)
    }

    fn receive(&mut self) -> Result<()> {
        let mut chunk = [0; 4096];
        let length = self.stream.read(&mut chunk).context("read")?;
        ensure!(length > 0, "container-init hung up");
        self.received.extend_from_slice(&chunk[..length]);
        Ok(())
    }

    /// Waits until every agent passed its gate and the app is held.
    pub fn armed(&mut self) -> Result<()> {
        self.wait_for("armed", |report| {
            matches!(report, Report::Event(event) if event.kind == EventKind::Armed).then_some(())
        })
    }

    /// Lets the app go.
    pub fn let_go(&mut self, generation: u64) -> Result<()> {
        self.ask(Request::Start(start(generation)))
    }

    /// Lets the app go, and waits until it was executed.
    pub fn start(&mut self, generation: u64) -> Result<()> {
        self.let_go(generation)?;
        self.started(generation)
    }

    /// Has the app ended and started again in place, and waits until it was executed.
    pub fn restart(&mut self, generation: u64) -> Result<()> {
        self.ask(Request::Restart(Restart {
            process: "app",
            budget_ms: PATIENCE.as_millis() as u32,
            start: start(generation),
        }))?;
        self.started(generation)
    }

    fn started(&mut self, wanted: u64) -> Result<()> {
        self.wait_for("the app's start", |report| {
            let Report::Event(event) = report else {
                return None;
            };
            match event.kind {
                EventKind::AppStarted { generation, .. } => (generation == wanted).then_some(()),
                _ => None,
            }
        })
    }

    /// Sends a request.
    pub fn ask(&mut self, request: Request<'_>) -> Result<()> {
        let mut frame = vec![0; MAX_FRAME];
        let length = request
            .encode(&mut frame)
            .map_err(|_| anyhow!("the request is too long"))?;
        self.stream
            .write_all(&frame[..length])
            .context("write to the gate")
    }
}

fn start(generation: u64) -> Start<'static> {
    Start {
        generation,
        task_id: "",
        traceparent: "",
        env: EnvList::new(&[]),
    }
}
