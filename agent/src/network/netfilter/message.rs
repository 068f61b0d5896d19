//! Messages of the nfnetlink family: header, `nfgenmsg`, attributes (linux/netfilter/nfnetlink.h).
//!
//! Numbers are big-endian there, unlike those of rtnetlink. Builds and reads; `socket` sends.

use std::net::Ipv4Addr;

use rtnetlink::packet_core::NlasIterator;

/// `NFPROTO_INET` and `NFPROTO_IPV4` of linux/netfilter.h.
pub(super) const INET: u8 = 1;
pub(super) const IPV4: u8 = 2;

/// `NLA_F_NESTED` of linux/netlink.h.
const NESTED: u16 = 1 << 15;

/// Attributes in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// One with these bytes.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// One with a text, which ends in a NUL there.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// One with a number.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// One with attributes of its own.
    pub(super) fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        // An attribute of ours is far below 64 KiB: lists are cut (see `table`).
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// What it is for.
    pub(super) what: &'static str,
    /// Subsystem in the high byte, operation in the low one.
    pub(super) kind: u16,
    /// Beyond REQUEST and ACK.
    pub(super) flags: u16,
    /// Address family.
    pub(super) family: u8,
    /// `res_id` of `nfgenmsg`: the subsystem, of the ends of a batch.
    pub(super) resource: u16,
    /// The rest.
    pub(super) attributes: Attributes,
}

impl Message {
    /// Appends it to a datagram.
    pub(super) fn append(&self, datagram: &mut Vec<u8>, sequence: u32, flags: u16) {
        let length = u32::try_from(20 + self.attributes.0.len()).unwrap_or(u32::MAX);
        datagram.extend(length.to_ne_bytes());
        datagram.extend(self.kind.to_ne_bytes());
        datagram.extend((self.flags | flags).to_ne_bytes());
        datagram.extend(sequence.to_ne_bytes());
        datagram.extend([0; 4]); // the kernel knows our port
        datagram.extend([self.family, 0]);
        datagram.extend(self.resource.to_be_bytes());
        datagram.extend(&self.attributes.0);
    }
}

/// An object of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    /// Address family.
    pub(super) family: u8,
    attributes: Vec<u8>,
}

impl Object {
    /// From what follows the netlink header.
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        let (header, attributes) = payload.split_at_checked(4)?;
        Some(Self {
            family: header[0],
            attributes: attributes.to_vec(),
        })
    }

    /// Value of an attribute.
    pub(super) fn get(&self, kind: u16) -> Option<&[u8]> {
        find(&self.attributes, kind)
    }

    /// Text of an attribute.
    pub(super) fn text(&self, kind: u16) -> Option<&str> {
        text(self.get(kind)?)
    }
}

/// Value of the attribute `kind` among `attributes`.
pub(super) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut all = each(attributes).into_iter();
    all.find_map(|(found, value)| (found == kind).then_some(value))
}

/// Kinds and values of `attributes`, in order.
pub(super) fn each(attributes: &[u8]) -> Vec<(u16, &[u8])> {
    // The iterator lends its items only for a step: the place is computed from what it saw.
    let (mut rest, mut all) = (attributes, Vec::new());
    while let Some(Ok(attribute)) = NlasIterator::new(rest).next() {
        let length = usize::from(attribute.length());
        all.extend(rest.get(4..length).map(|value| (attribute.kind(), value)));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// A text, which may end in NULs.
pub(super) fn text(value: &[u8]) -> Option<&str> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok()
}

/// An IPv4 address in an attribute.
pub(super) fn address(value: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = value.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_found_again_at_its_depth() {
        let inner = Attributes::new().text(1, "odd").number(2, 7);
        let message = Message {
            what: "test",
            kind: 0,
            flags: 0,
            family: INET,
            resource: 0,
            attributes: Attributes::new().bytes(9, &[1]).nested(3, inner),
        };
        let mut datagram = Vec::new();
        message.append(&mut datagram, 1, 0);
        assert_eq!(datagram.len() % 4, 0);
        let object = Object::read(&datagram[16..]).unwrap();
        assert_eq!(object.family, INET);
        assert_eq!(object.get(9), Some(&[1][..]));
        let inner = object.get(3).unwrap();
        assert_eq!(find(inner, 2), Some(&7_u32.to_be_bytes()[..]));
        assert_eq!(find(inner, 1), Some(&b"odd\0"[..]));
        assert_eq!(find(inner, 4), None);
    }
}
