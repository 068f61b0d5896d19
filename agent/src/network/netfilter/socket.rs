//! A blocking NETLINK_NETFILTER socket: transactions of nf_tables in, lists out.
//!
//! As with the routing socket beside it, it keeps the namespace of the thread that opened it.

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use rtnetlink::sys::{Socket, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::set_socket_send_buffer_size_force;

use super::message::{Attributes, Message, Object};
use crate::network::netlink::{Failed, NetlinkError, Received, open, receive, send};

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h.
const NFTABLES: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END` of the same.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// A transaction is one datagram: room for some 50000 host ports.
const SEND_BYTES: usize = 4 << 20;

/// The socket.
pub(super) struct Netfilter {
    socket: Socket,
    sequence: u32,
}

impl Netfilter {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let socket = open(NETLINK_NETFILTER)?;
        set_socket_send_buffer_size_force(&socket, SEND_BYTES)
            .map_err(|error| NetlinkError::Open(error.into()))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Makes all changes, or none.
    pub(super) fn commit(&mut self, changes: &[Message]) -> Result<(), Failed> {
        let Some(last) = changes.last() else {
            return Ok(());
        };
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(4096);
        self.append(&mut datagram, &edge(BATCH_BEGIN), 0);
        for change in changes {
            // What is refused is answered in any case, and before the last one.
            let ack = if std::ptr::eq(change, last) {
                NLM_F_ACK
            } else {
                0
            };
            self.append(&mut datagram, change, ack);
        }
        let answered = self.sequence;
        self.append(&mut datagram, &edge(BATCH_END), 0);
        let what = |sequence: u32| {
            let position = sequence.wrapping_sub(first).checked_sub(1);
            let change = position.and_then(|n| changes.get(n as usize));
            change.map_or("change the packet filter", |change| change.what)
        };
        let failed = |what, error| Failed { what, error };
        send(&self.socket, &datagram).map_err(|error| failed(last.what, error))?;
        let mut refused = None;
        let mut over = false;
        while !over {
            receive(&self.socket, |received| {
                let Received::Answer { sequence, outcome } = received else {
                    return;
                };
                if sequence.wrapping_sub(first) > answered.wrapping_sub(first) {
                    return;
                }
                if let Err(error) = outcome {
                    refused.get_or_insert_with(|| failed(what(sequence), error));
                }
                // A refusal of the batch itself comes for its beginning, alone.
                over |= sequence == answered || sequence == first;
            })
            .map_err(|error| failed(last.what, error))?;
        }
        refused.map_or(Ok(()), Err)
    }

    /// One request outside of a transaction.
    pub(super) fn request(&mut self, request: &Message) -> Result<(), NetlinkError> {
        let mut datagram = Vec::with_capacity(256);
        self.append(&mut datagram, request, NLM_F_ACK);
        send(&self.socket, &datagram)?;
        let wanted = self.sequence;
        let mut end = None;
        while end.is_none() {
            receive(&self.socket, |received| match received {
                Received::Answer { sequence, outcome } if sequence == wanted => {
                    end = Some(outcome);
                }
                _ => {}
            })?;
        }
        end.unwrap_or(Ok(()))
    }

    /// Everything that the request asks for.
    pub(super) fn list(
        &mut self,
        request: &Message,
        mut take: impl FnMut(Object),
    ) -> Result<(), NetlinkError> {
        let mut datagram = Vec::with_capacity(256);
        self.append(&mut datagram, request, NLM_F_DUMP);
        send(&self.socket, &datagram)?;
        let wanted = self.sequence;
        let mut end = None;
        while end.is_none() {
            receive(&self.socket, |received| match received {
                Received::Object { sequence, payload } if sequence == wanted => {
                    if let Some(object) = Object::read(payload) {
                        take(object);
                    }
                }
                Received::Answer { sequence, outcome } if sequence == wanted => {
                    end = Some(outcome);
                }
                _ => {}
            })?;
        }
        end.unwrap_or(Ok(()))
    }

    fn append(&mut self, datagram: &mut Vec<u8>, message: &Message, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        message.append(datagram, self.sequence, NLM_F_REQUEST | flags);
    }
}

fn edge(kind: u16) -> Message {
    Message {
        what: "begin or end a transaction",
        kind,
        flags: 0,
        family: 0,
        resource: NFTABLES,
        attributes: Attributes::new(),
    }
}
