//! A blocking NETLINK_ROUTE socket: requests out in one datagram, answers in.
//!
//! rtnetlink's own connection is a future bound to a runtime; a namespace's socket must be opened
//! by a thread inside that namespace and used from there, and a slot is ten requests that the kernel
//! can take in three datagrams. So the messages are rtnetlink's and the socket is driven here, from
//! the network's own threads. A socket keeps the namespace that it was opened in.
//!
//! Deliberately knows nothing of links or addresses; see `link`.

use std::io;
use std::time::Duration;

use rtnetlink::packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// How long the kernel may take to answer one datagram. It answers at once, except while somebody
/// holds the rtnl lock (module loading, thousands of links being deleted).
const NETLINK_DEADLINE: Duration = Duration::from_secs(10);

/// One datagram of answers: the kernel fills at most 32 KiB of a dump at a time.
const RECEIVE_BYTES: usize = 64 * 1024;

/// Requests of one datagram. Their acknowledgements wait in the socket's receive buffer until the
/// last request is done; the default buffer overflows (ENOBUFS) from some 250 on.
const DATAGRAM_REQUESTS: usize = 64;

/// A dump that changed under the reader is read again this many times.
const DUMP_ATTEMPTS: u32 = 5;

/// Types of linux/netlink.h: an error or acknowledgement; the end of a list.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Header of the request that an error message repeats before its attributes (netlink(7)).
const REPEATED_HEADER: usize = 16;

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h: the kernel's sentence about an error.
const EXTENDED_ACK_TEXT: u16 = 1;

/// What the kernel or the socket said.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be made.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The request could not be sent.
    #[error("cannot send to the kernel's netlink socket")]
    Send(#[source] io::Error),
    /// No answer came.
    #[error("no answer on the netlink socket within {} s", NETLINK_DEADLINE.as_secs())]
    Receive(#[source] io::Error),
    /// The answer could not be parsed.
    #[error("the kernel's answer cannot be read")]
    Unreadable(#[source] DecodeError),
    /// The kernel refused.
    #[error("the kernel refused{}", said(.detail))]
    Refused {
        /// Its sentence, when it gave one.
        detail: Option<String>,
        /// Its error number.
        #[source]
        source: io::Error,
    },
    /// A list changed each time that it was read.
    #[error("the kernel's list changed {DUMP_ATTEMPTS} times while it was read")]
    Unsteady,
}

impl NetlinkError {
    /// The kernel's error number, when it refused.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }
}

/// One request: what it is for, the message, and its flags beyond REQUEST and ACK.
pub(super) struct Request {
    pub(super) what: &'static str,
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
}

/// A request of a batch that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) what: &'static str,
    pub(super) error: NetlinkError,
}

/// A socket in the namespace of the thread that opened it.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: open(NETLINK_ROUTE)?,
            sequence: 0,
        })
    }

    /// Sends all requests, as few datagrams as possible, and waits for every acknowledgement. The
    /// kernel goes on after a request that it refused; the first refusal is the error.
    pub(super) fn apply(&mut self, requests: Vec<Request>) -> Result<(), Failed> {
        let mut requests = requests.into_iter();
        let mut outcome = Ok(());
        loop {
            let datagram: Vec<Request> = requests.by_ref().take(DATAGRAM_REQUESTS).collect();
            if datagram.is_empty() {
                return outcome;
            }
            match self.apply_datagram(datagram) {
                Err(failed) if failed.error.errno().is_none() => return Err(failed),
                answered => outcome = outcome.and(answered),
            }
        }
    }

    fn apply_datagram(&mut self, requests: Vec<Request>) -> Result<(), Failed> {
        let names: Vec<_> = requests.iter().map(|request| request.what).collect();
        let at_once = |error| Failed {
            what: names.first().copied().unwrap_or("nothing"),
            error,
        };
        let first = self.sequence + 1;
        let mut datagram = Vec::with_capacity(2048);
        for request in requests {
            self.append(&mut datagram, request.message, NLM_F_ACK | request.flags);
        }
        send(&self.socket, &datagram).map_err(at_once)?;
        let mut outcomes: Vec<Option<Result<(), NetlinkError>>> =
            names.iter().map(|_| None).collect();
        while outcomes.iter().any(Option::is_none) {
            self.receive(|sequence, payload| {
                let slot = sequence
                    .checked_sub(first)
                    .and_then(|n| outcomes.get_mut(n as usize));
                if let (Some(slot), NetlinkPayload::Error(answer)) = (slot, payload) {
                    *slot = Some(outcome(&answer));
                }
            })
            .map_err(at_once)?;
        }
        let refused = outcomes
            .into_iter()
            .zip(names)
            .find_map(|(outcome, what)| match outcome {
                Some(Err(error)) => Some(Failed { what, error }),
                _ => None,
            });
        refused.map_or(Ok(()), Err)
    }

    /// Asks for one object. `None` when the kernel answers with an acknowledgement only.
    pub(super) fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        let mut datagram = Vec::with_capacity(256);
        self.append(&mut datagram, message, NLM_F_ACK);
        send(&self.socket, &datagram)?;
        let wanted = self.sequence;
        let mut found = None;
        let mut end = None;
        while end.is_none() {
            self.receive(|sequence, payload| match payload {
                _ if sequence != wanted => {}
                NetlinkPayload::InnerMessage(message) => found = Some(message),
                NetlinkPayload::Error(answer) => end = Some(outcome(&answer)),
                _ => {}
            })?;
        }
        end.unwrap_or(Ok(())).map(|()| found)
    }

    /// Lists objects of one kind.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(list) = self.dump_once(message.clone())? {
                return Ok(list);
            }
        }
        Err(NetlinkError::Unsteady)
    }

    fn dump_once(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        /// `NLM_F_DUMP_INTR` of linux/netlink.h: the list changed between two of its parts.
        const INTERRUPTED: u16 = 0x10;
        let mut datagram = Vec::with_capacity(256);
        self.append(&mut datagram, message, NLM_F_DUMP);
        send(&self.socket, &datagram)?;
        let wanted = self.sequence;
        let mut list = Vec::new();
        let mut steady = true;
        let mut end = None;
        while end.is_none() {
            self.receive_with_flags(|sequence, flags, payload| {
                if sequence != wanted {
                    return;
                }
                steady &= flags & INTERRUPTED == 0;
                match payload {
                    NetlinkPayload::InnerMessage(message) => list.push(message),
                    NetlinkPayload::Done(_) => end = Some(Ok(())),
                    NetlinkPayload::Error(answer) => end = Some(outcome(&answer)),
                    _ => {}
                }
            })?;
        }
        end.unwrap_or(Ok(()))?;
        Ok(steady.then_some(list))
    }

    fn append(&mut self, datagram: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = datagram.len();
        // Each message of a datagram begins on four bytes (NLMSG_ALIGN).
        let length = message.buffer_len().next_multiple_of(4);
        datagram.resize(start + length, 0);
        message.serialize(&mut datagram[start..]);
    }

    fn receive(
        &self,
        mut take: impl FnMut(u32, NetlinkPayload<RouteNetlinkMessage>),
    ) -> Result<(), NetlinkError> {
        self.receive_with_flags(|sequence, _, payload| take(sequence, payload))
    }

    fn receive_with_flags(
        &self,
        mut take: impl FnMut(u32, u16, NetlinkPayload<RouteNetlinkMessage>),
    ) -> Result<(), NetlinkError> {
        let datagram = receive_datagram(&self.socket)?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(NetlinkError::Unreadable)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            take(
                message.header.sequence_number,
                message.header.flags,
                message.payload,
            );
        }
        Ok(())
    }
}

/// A socket of this protocol in the calling thread's network namespace.
pub(super) fn open(protocol: isize) -> Result<Socket, NetlinkError> {
    let prepare = || -> io::Result<Socket> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(NETLINK_DEADLINE))?;
        Ok(socket)
    };
    prepare().map_err(NetlinkError::Open)
}

/// Sends one datagram.
pub(super) fn send(socket: &Socket, datagram: &[u8]) -> Result<(), NetlinkError> {
    retry_interrupted(|| socket.send(datagram, 0)).map_err(NetlinkError::Send)?;
    Ok(())
}

fn receive_datagram(socket: &Socket) -> Result<Vec<u8>, NetlinkError> {
    let mut datagram = Vec::with_capacity(RECEIVE_BYTES);
    retry_interrupted(|| socket.recv(&mut datagram, 0)).map_err(NetlinkError::Receive)?;
    Ok(datagram)
}

/// A message that is not of the routing family.
pub(super) enum Received<'a> {
    /// One object of a list.
    Object { sequence: u32, payload: &'a [u8] },
    /// An acknowledgement, a refusal, or the end of a list.
    Answer {
        sequence: u32,
        outcome: Result<(), NetlinkError>,
    },
}

/// Receives one datagram and hands over its messages, which need not be of the routing family.
pub(super) fn receive(
    socket: &Socket,
    mut take: impl FnMut(Received<'_>),
) -> Result<(), NetlinkError> {
    /// Netlink header, and the error number behind it (netlink(7)).
    const HEADER: usize = 16;
    const NUMBER: usize = 4;
    let datagram = receive_datagram(socket)?;
    let mut rest = datagram.as_slice();
    while let Some(header) = rest.first_chunk::<HEADER>() {
        let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let length = u32::from_ne_bytes(word(0)) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes(word(8));
        let Some(payload) = rest.get(HEADER..length) else {
            break;
        };
        match kind {
            // The end of a list carries a number as well: 0, or why it ends here.
            NLMSG_ERROR | NLMSG_DONE => {
                let number = payload.first_chunk::<NUMBER>();
                let outcome = match number.map_or(0, |number| i32::from_ne_bytes(*number)) {
                    0.. => Ok(()),
                    code => Err(NetlinkError::Refused {
                        detail: extended_text(payload.get(NUMBER..).unwrap_or_default()),
                        source: io::Error::from_raw_os_error(code.saturating_neg()),
                    }),
                };
                take(Received::Answer { sequence, outcome });
            }
            _ => take(Received::Object { sequence, payload }),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn outcome(answer: &ErrorMessage) -> Result<(), NetlinkError> {
    match answer.code {
        None => Ok(()),
        Some(_) => Err(NetlinkError::Refused {
            detail: extended_text(&answer.header),
            source: answer.to_io(),
        }),
    }
}

fn extended_text(payload: &[u8]) -> Option<String> {
    NlasIterator::new(payload.get(REPEATED_HEADER..)?)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == EXTENDED_ACK_TEXT)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value())
                .trim_end_matches('\0')
                .to_owned()
        })
}

fn said(detail: &Option<String>) -> String {
    detail
        .as_ref()
        .map(|text| format!(" ({text})"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::thread;

    use crate::network::link;

    /// In a namespace of its own; needs root.
    fn in_own_namespace(test: impl FnOnce(Netlink) + Send + 'static) {
        thread::spawn(|| {
            crate::sys::unshare_network().expect("this test needs root");
            test(Netlink::open().unwrap());
        })
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    #[test]
    fn a_thousand_requests_at_once_are_all_answered() {
        in_own_namespace(|mut netlink| {
            let requests = (0..1000).map(|_| link::move_to_group(1, 7));
            netlink.apply(requests.collect()).unwrap();
        });
    }

    #[test]
    fn the_first_refusal_is_told_and_the_requests_after_it_are_made() {
        in_own_namespace(|mut netlink| {
            let requests = vec![link::delete_link(4711), link::move_to_group(1, 7)];
            let failed = netlink.apply(requests).unwrap_err();
            assert_eq!(failed.what, "delete the link");
            assert_eq!(failed.error.errno(), Some(Errno::NODEV));
            let lo = link::links(netlink.get(link::get_link("lo")).unwrap());
            assert_eq!(lo[0].group, 7);
        });
    }

    #[test]
    fn the_kernels_own_sentence_is_part_of_the_refusal() {
        in_own_namespace(|mut netlink| {
            let route = link::add_host_route(1, std::net::Ipv4Addr::new(10, 0, 0, 1));
            // lo is down in a new namespace.
            let failed = netlink.apply(vec![route]).unwrap_err();
            let NetlinkError::Refused { detail, .. } = &failed.error else {
                panic!("{failed:?}")
            };
            assert!(detail.is_some(), "{failed:?}");
            assert!(failed.error.to_string().starts_with("the kernel refused ("));
        });
    }
}
