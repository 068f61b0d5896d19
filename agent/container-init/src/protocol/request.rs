//! What the agent asks of init. Commands are idempotent by generation.

use core::fmt;

use super::{Look, MAX_ENV_OVERLAY, MAX_FRAME_BODY};
use crate::wire::{Malformed, Reader, TooLarge, Writer};

/// A command to init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Let the app go. The same generation again changes nothing and is answered by a status.
    Start(Start<'a>),
    /// The app runs already and now belongs to this generation; answered by a status.
    Adopt(Adopt<'a>),
    /// Stop the app, then the agents in reverse; what is left is killed when the budget ends.
    /// A second stop may shorten the budget, never lengthen it.
    Stop {
        /// Milliseconds for everything together; 0 kills at once.
        budget_ms: u32,
    },
    /// End one process of the plan with everything that belongs to it, and start it again in this
    /// container. The same generation again changes nothing; answered by a status, and then by
    /// events. When it cannot be done inside the budget the container ends.
    Restart(Restart<'a>),
    /// Send a signal to the app.
    Signal {
        /// Signal number, 1..=64.
        signal: u8,
    },
    /// Asks for a status.
    Status,
    /// Every event up to and including `seq` is safe with the agent and may be forgotten.
    Ack {
        /// Sequence number of the newest event that was stored.
        seq: u64,
    },
    /// Look at the running app; always answered by a [`super::Looked`]. A look of the same kind that
    /// is under way is ended, and not answered.
    Look(Look),
    /// Asks for what is known of every process; answered by [`super::Report::Processes`].
    Processes,
}

/// Body of [`Request::Restart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart<'a> {
    /// Name from the plan.
    pub process: &'a str,
    /// Milliseconds from the request until the process has to be executed again.
    pub budget_ms: u32,
    /// What a start would say. For an in-container agent only the generation counts, which has to
    /// be the present one.
    pub start: Start<'a>,
}

/// Body of [`Request::Start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start<'a> {
    /// Generation of this activation.
    pub generation: u64,
    /// `NODEAGENT_TASK_ID` of the app; left out of its environment when empty.
    pub task_id: &'a str,
    /// `TRACEPARENT` of the app; left out of its environment when empty.
    pub traceparent: &'a str,
    /// Added to the app's environment; a key that the plan has is replaced.
    pub env: EnvList<'a>,
}

/// Body of [`Request::Adopt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopt<'a> {
    /// Generation that the running app belongs to from now on.
    pub generation: u64,
    /// Task that adopts it.
    pub task_id: &'a str,
    /// Its trace context.
    pub traceparent: &'a str,
}

/// Kind of a request as it is written on the wire and named in a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestKind {
    /// [`Request::Start`]
    Start = 1,
    /// [`Request::Adopt`]
    Adopt = 2,
    /// [`Request::Stop`]
    Stop = 3,
    /// [`Request::Restart`]
    Restart = 4,
    /// [`Request::Signal`]
    Signal = 5,
    /// [`Request::Status`]
    Status = 6,
    /// [`Request::Ack`]
    Ack = 7,
    /// [`Request::Look`]
    Look = 8,
    /// [`Request::Processes`]
    Processes = 9,
}

impl RequestKind {
    /// The kind with this number.
    pub fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Start,
            2 => Self::Adopt,
            3 => Self::Stop,
            4 => Self::Restart,
            5 => Self::Signal,
            6 => Self::Status,
            7 => Self::Ack,
            8 => Self::Look,
            9 => Self::Processes,
            _ => return None,
        })
    }
}

impl<'a> Request<'a> {
    /// The kind of this request.
    pub fn kind(&self) -> RequestKind {
        match self {
            Self::Start(_) => RequestKind::Start,
            Self::Adopt(_) => RequestKind::Adopt,
            Self::Stop { .. } => RequestKind::Stop,
            Self::Restart(_) => RequestKind::Restart,
            Self::Signal { .. } => RequestKind::Signal,
            Self::Status => RequestKind::Status,
            Self::Ack { .. } => RequestKind::Ack,
            Self::Look(_) => RequestKind::Look,
            Self::Processes => RequestKind::Processes,
        }
    }

    /// Writes the whole frame into `buf` and returns its length on the wire. A buffer of
    /// [`super::MAX_FRAME`] bytes is always large enough for what the protocol allows.
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, TooLarge> {
        let mut w = Writer::new(buf);
        let frame = w.open();
        w.u8(self.kind() as u8);
        match self {
            Self::Start(start) => start.encode(&mut w),
            Self::Adopt(adopt) => {
                w.u64(adopt.generation);
                w.text(adopt.task_id);
                w.text(adopt.traceparent);
            }
            Self::Stop { budget_ms } => w.u32(*budget_ms),
            Self::Restart(restart) => {
                w.text(restart.process);
                w.u32(restart.budget_ms);
                restart.start.encode(&mut w);
            }
            Self::Signal { signal } => w.u8(*signal),
            Self::Status | Self::Processes => {}
            Self::Ack { seq } => w.u64(*seq),
            Self::Look(look) => look.encode(&mut w),
        }
        w.close(frame);
        match w.finish() {
            Ok(length) if length <= MAX_FRAME_BODY + 4 => Ok(length),
            _ => Err(TooLarge),
        }
    }

    /// Reads kind and body as [`super::first_frame`] hands them out.
    pub fn decode(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(body);
        let kind = RequestKind::from_wire(r.u8("request kind"));
        let kind = r.known("request kind", kind, RequestKind::Status);
        let request = match kind {
            RequestKind::Start => Self::Start(Start::decode(&mut r)),
            RequestKind::Adopt => Self::Adopt(Adopt {
                generation: r.u64("generation"),
                task_id: environment_value(&mut r, "task id"),
                traceparent: environment_value(&mut r, "traceparent"),
            }),
            RequestKind::Stop => Self::Stop {
                budget_ms: r.u32("stop budget"),
            },
            RequestKind::Restart => Self::Restart(Restart {
                process: r.text("process name"),
                budget_ms: r.u32("restart budget"),
                start: Start::decode(&mut r),
            }),
            RequestKind::Signal => match r.u8("signal") {
                signal @ 1..=64 => Self::Signal { signal },
                _ => r.known("signal", None, Self::Status),
            },
            RequestKind::Status => Self::Status,
            RequestKind::Ack => Self::Ack {
                seq: r.u64("acked seq"),
            },
            RequestKind::Look => Self::Look(Look::decode(&mut r)),
            RequestKind::Processes => Self::Processes,
        };
        r.end("request")?;
        Ok(request)
    }
}

impl<'a> Start<'a> {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.generation);
        w.text(self.task_id);
        w.text(self.traceparent);
        self.env.encode(w);
    }

    fn decode(r: &mut Reader<'a>) -> Self {
        Self {
            generation: r.u64("generation"),
            task_id: environment_value(r, "task id"),
            traceparent: environment_value(r, "traceparent"),
            env: EnvList::decode(r),
        }
    }
}

/// Keys and values for the app's environment, built from a slice or borrowed from a frame.
#[derive(Clone, Copy)]
pub struct EnvList<'a>(Source<'a>);

#[derive(Clone, Copy)]
enum Source<'a> {
    Given(&'a [(&'a str, &'a str)]),
    /// Count, then pairs; checked when it was decoded.
    Encoded(u16, &'a [u8]),
}

impl<'a> EnvList<'a> {
    /// A list of these pairs.
    pub fn new(pairs: &'a [(&'a str, &'a str)]) -> Self {
        Self(Source::Given(pairs))
    }

    /// Key and value in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let (given, count, bytes) = match self.0 {
            Source::Given(pairs) => (pairs, 0, &[][..]),
            Source::Encoded(count, bytes) => (&[][..], count, bytes),
        };
        let mut r = Reader::new(bytes);
        given
            .iter()
            .copied()
            .chain((0..count).map(move |_| pair(&mut r)))
    }

    fn encode(&self, w: &mut Writer<'_>) {
        w.count(self.iter().count());
        for (key, value) in self.iter() {
            w.text(key);
            w.text(value);
        }
    }

    fn decode(r: &mut Reader<'a>) -> Self {
        let count = r.u16("env");
        if usize::from(count) > MAX_ENV_OVERLAY {
            r.invalid("env");
        }
        // The overlay is the last of a start, so that what is left is its bytes.
        let bytes = r.rest();
        let mut check = Reader::new(bytes);
        for _ in 0..count {
            if check.is_sound() {
                pair(&mut check);
            }
        }
        r.end_of(&check, "env");
        Self(Source::Encoded(count, bytes))
    }
}

/// Keys only: values may be secrets.
impl fmt::Debug for EnvList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(key, _)| key))
            .finish()
    }
}

impl PartialEq for EnvList<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for EnvList<'_> {}

fn pair<'a>(r: &mut Reader<'a>) -> (&'a str, &'a str) {
    let key = environment_value(r, "env key");
    if key.is_empty() || key.contains('=') {
        r.invalid("env key");
    }
    (key, environment_value(r, "env value"))
}

/// A NUL would end the string early in the kernel's eyes.
fn environment_value<'a>(r: &mut Reader<'a>, what: &'static str) -> &'a str {
    let text = r.text(what);
    if text.as_bytes().contains(&0) {
        r.invalid(what);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{LookKind, MAX_FRAME, first_frame};
    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    fn assert_survives(request: Request<'_>) {
        let mut buf = vec![0; MAX_FRAME];
        let length = request.encode(&mut buf).unwrap();
        let frame = first_frame(&buf[..length]).unwrap().unwrap();
        assert_eq!(frame.length, length);
        assert_eq!(Request::decode(frame.body), Ok(request));
    }

    proptest! {
        #[test]
        fn every_request_survives_the_wire(
            generation: u64, number: u32, signal in 1u8..=64, name in ".{0,63}",
            task_id in "[^\0]{0,40}", traceparent in "[ -~]{0,55}",
            env in proptest::collection::vec(("[^\0=]{1,20}", "[^\0]{0,80}"), 0..12),
        ) {
            let pairs: Vec<(&str, &str)> = env.iter().map(|(k, v): &(String, String)| (k.as_str(), v.as_str())).collect();
            let (task_id, traceparent) = (task_id.as_str(), traceparent.as_str());
            assert_survives(Request::Start(Start { generation, task_id, traceparent, env: EnvList::new(&pairs) }));
            assert_survives(Request::Adopt(Adopt { generation, task_id, traceparent }));
            assert_survives(Request::Stop { budget_ms: number });
            let start = Start { generation, task_id, traceparent, env: EnvList::new(&pairs) };
            assert_survives(Request::Restart(Restart { process: &name, budget_ms: number, start }));
            assert_survives(Request::Processes);
            assert_survives(Request::Signal { signal });
            assert_survives(Request::Status);
            assert_survives(Request::Ack { seq: generation });
            for kind in LookKind::ALL {
                assert_survives(Request::Look(Look { id: number, kind, timeout_ms: number.max(1) }));
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Request::Start(start)) = Request::decode(&bytes) {
                prop_assert!(start.env.iter().all(|(key, _)| !key.is_empty()));
            }
        }
    }

    #[test]
    fn a_request_that_is_not_what_it_says_is_named() {
        assert_eq!(
            Request::decode(&[]),
            Err(Malformed::Truncated("request kind"))
        );
        assert_eq!(
            Request::decode(&[99]),
            Err(Malformed::Invalid("request kind"))
        );
        assert_eq!(
            Request::decode(&[6, 0]),
            Err(Malformed::Trailing("request"))
        );
        assert_eq!(Request::decode(&[5, 65]), Err(Malformed::Invalid("signal")));
        assert_eq!(
            Request::decode(&[3, 1, 2]),
            Err(Malformed::Truncated("stop budget"))
        );
    }

    #[test]
    fn an_environment_that_execve_would_misread_is_refused() {
        for (pair, object) in [
            (("A=B", ""), "env key"),
            (("", "x"), "env key"),
            (("A", "x\0y"), "env value"),
        ] {
            let mut buf = [0; 128];
            let pairs = [pair];
            let start = Start {
                generation: 1,
                task_id: "t",
                traceparent: "",
                env: EnvList::new(&pairs),
            };
            let length = Request::Start(start).encode(&mut buf).unwrap();
            assert_eq!(
                Request::decode(&buf[4..length]),
                Err(Malformed::Invalid(object))
            );
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_is_not_written() {
        let value = "x".repeat(40_000);
        let pairs = [("A", value.as_str()), ("B", value.as_str())];
        let start = Start {
            generation: 1,
            task_id: "",
            traceparent: "",
            env: EnvList::new(&pairs),
        };
        assert_eq!(
            Request::Start(start).encode(&mut vec![0; 2 * MAX_FRAME]),
            Err(TooLarge)
        );
    }
}
