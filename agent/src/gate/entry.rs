//! One expected container: its status, the init that dialled, and the session with it.
//!
//! A new connection of the same init replaces the older one; what an older session still reads is
//! dropped. The lock is held for memory operations and one system call at most, never over an
//! await.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use container_init::protocol::{LookKind, LookOutcome, Report, Request, VERSION};
use tokio::sync::{mpsc, oneshot, watch};

use super::error::GateError;
use super::look::{LOOK_FRAME, Looks};
use super::peer::{Peer, TurnedAway};
use super::processes::{Questions, Supervised};
use super::session::Session;
use super::status::{Notice, NoticeKind, Status};
use crate::instance::ContainerId;

/// A container that may dial.
pub(super) struct Entry {
    container: ContainerId,
    status: watch::Sender<Status>,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    /// Who dialled last. Kept after the connection ended: while it lives there is no other init.
    init: Option<Peer>,
    session: Option<Arc<Session>>,
    /// An init that spoke an older version was asked for a newer one.
    asked_for_newer: bool,
    /// Number of the newest event that was taken in.
    seen: u64,
    looks: Looks,
    questions: Questions,
    forgotten: bool,
}

/// What became of a report.
pub(super) enum Taken {
    /// It is in the status, and its notice handed over.
    Yes,
    /// A newer session has replaced this one, or the pools are gone: stop reading.
    Superseded,
}

impl Entry {
    pub(super) fn new(container: ContainerId) -> Self {
        Self {
            container,
            status: watch::Sender::new(Status::default()),
            link: Mutex::default(),
        }
    }

    pub(super) fn container(&self) -> &ContainerId {
        &self.container
    }

    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Writes a command of the agent's; its refusal, if any, will be the status' only one.
    pub(super) fn command(&self, frame: &[u8]) -> Result<(), GateError> {
        let Some(session) = self.link().session.clone() else {
            return Err(GateError::NotConnected {
                container: self.container.clone(),
            });
        };
        self.status
            .send_if_modified(|status| status.refused.take().is_some());
        session.send(frame).map_err(|e| e.of(&self.container))
    }

    /// Asks for a look; how it ended comes through the channel, which closes with the connection.
    pub(super) fn look(
        &self,
        kind: LookKind,
        timeout: Duration,
    ) -> Result<oneshot::Receiver<LookOutcome>, GateError> {
        let container = || self.container.clone();
        let mut link = self.link();
        let Some(session) = link.session.clone() else {
            return Err(GateError::NotConnected {
                container: container(),
            });
        };
        if link.looks.are_unknown() {
            return Err(GateError::LooksUnknown {
                container: container(),
            });
        }
        let (request, outcome) = link.looks.begin(kind, timeout);
        let mut frame = [0; LOOK_FRAME];
        let length = request
            .encode(&mut frame)
            .map_err(|source| GateError::TooLarge {
                kind: request.kind(),
                source,
            })?;
        let frame = frame.get(..length).unwrap_or_default();
        session.send(frame).map_err(|e| e.of(&self.container))?;
        Ok(outcome)
    }

    /// Asks for the processes; the answer comes through the channel, which closes with the
    /// connection.
    pub(super) fn ask_processes(
        &self,
        request: &Request<'_>,
    ) -> Result<oneshot::Receiver<Vec<Supervised>>, GateError> {
        let mut link = self.link();
        let Some(session) = link.session.clone() else {
            return Err(GateError::NotConnected {
                container: self.container.clone(),
            });
        };
        let told = link
            .questions
            .begin(&self.container, self.status.borrow().version)?;
        if let Err(unsent) = session.ask(request) {
            link.questions.withdraw();
            return Err(unsent.of(&self.container));
        }
        Ok(told)
    }

    /// Whether the connection of an init that says this version ends, so that the init says whether
    /// it knows a newer one: once. An init falls back when an agent hangs up before it was heard,
    /// as a killed one does; one that knows no newer comes again with the same.
    pub(super) fn asks_for_newer(&self, version: u16) -> bool {
        version < VERSION && !std::mem::replace(&mut self.link().asked_for_newer, true)
    }

    /// Makes `session` the one of this container.
    pub(super) fn attach(&self, peer: Peer, session: Arc<Session>) -> Result<(), TurnedAway> {
        let mut link = self.link();
        if link.forgotten {
            return Err(TurnedAway::Unexpected(self.container.clone()));
        }
        if link
            .init
            .as_ref()
            .is_some_and(|known| known.pid != peer.pid && known.is_alive())
        {
            return Err(TurnedAway::Second(self.container.clone()));
        }
        link.init = Some(peer);
        link.looks = Looks::default();
        link.questions = Questions::default();
        if let Some(older) = link.session.replace(session) {
            older.close();
            self.status
                .send_if_modified(|status| std::mem::take(&mut status.connected));
        }
        Ok(())
    }

    /// Takes in a report of `session`: status first, then the notice, and the ack is the caller's.
    pub(super) fn take(
        &self,
        session: &Arc<Session>,
        report: &Report<'_>,
        notices: &mpsc::UnboundedSender<Notice>,
    ) -> Taken {
        let mut link = self.link();
        if !is_current(&link, session) {
            return Taken::Superseded;
        }
        if let Report::Hello(hello) = report
            && link.seen != 0
            && hello.first_unacked_seq > link.seen + 1
        {
            let lost = hello.first_unacked_seq - link.seen - 1;
            tracing::warn!(container = %self.container, lost, "container-init dropped events while it was not connected");
        }
        if let Report::Event(event) = report {
            if event.seq <= link.seen {
                return Taken::Yes;
            }
            link.seen = event.seq;
        }
        match report {
            Report::Processes(said) => {
                link.questions.answered(said);
                return Taken::Yes;
            }
            Report::Looked(looked) => {
                link.looks.answered(looked);
                return Taken::Yes;
            }
            Report::Refused { request, code } if link.looks.take_refusal(*request, *code) => {
                return Taken::Yes;
            }
            _ => {}
        }
        let mut news = None;
        self.status
            .send_modify(|status| news = status.apply(report));
        if let Some(NoticeKind::Exited(exit)) = &news
            && !exit.is_app()
        {
            // Whether that was the end for good: init stops everything then. A connection that does
            // not take the question brings no answer either.
            session.say(&Request::Status).ok();
        }
        if news.is_none_or(|kind| self.notify(kind, notices)) {
            Taken::Yes
        } else {
            Taken::Superseded
        }
    }

    /// The connection of `session` ended.
    pub(super) fn detach(&self, session: &Arc<Session>, notices: &mpsc::UnboundedSender<Notice>) {
        let mut link = self.link();
        if !is_current(&link, session) {
            return;
        }
        link.session = None;
        link.looks = Looks::default();
        link.questions = Questions::default();
        let was_connected = self
            .status
            .send_if_modified(|status| std::mem::take(&mut status.connected));
        if was_connected && !link.forgotten {
            self.notify(NoticeKind::Disconnected, notices);
        }
    }

    /// The pidfd of the init that dialled last; `None` before the first, or without a descriptor.
    pub(super) fn init_pidfd(&self) -> Option<OwnedFd> {
        self.link().init.as_ref()?.pidfd()
    }

    /// The process of the init is gone, and with it everything in its pid namespace.
    pub(super) fn init_ended(&self, notices: &mpsc::UnboundedSender<Notice>) {
        let link = self.link();
        if link.session.is_some() || link.forgotten {
            return;
        }
        let is_news = self.status.send_if_modified(|status| {
            status.app_pid = None;
            status.ready = false;
            !std::mem::replace(&mut status.stopped, true)
        });
        if is_news {
            self.notify(NoticeKind::Stopped, notices);
        }
    }

    /// The container was forgotten.
    pub(super) fn close(&self) {
        let mut link = self.link();
        link.forgotten = true;
        link.looks = Looks::default();
        link.questions = Questions::default();
        if let Some(session) = link.session.take() {
            session.close();
        }
    }

    fn notify(&self, kind: NoticeKind, notices: &mpsc::UnboundedSender<Notice>) -> bool {
        let container = self.container.clone();
        notices.send(Notice { container, kind }).is_ok()
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_current(link: &Link, session: &Arc<Session>) -> bool {
    link.session
        .as_ref()
        .is_some_and(|current| Arc::ptr_eq(current, session))
}
