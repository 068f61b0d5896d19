//! What rules of nf_tables are made of: expressions that load, compare, look up and translate
//! (linux/netfilter/nf_tables.h; `nft --debug=netlink` prints the same words).

use super::message::{Attributes, IPV4};

/// `NFT_REG_1`: 16 bytes, of which the following are the second and third four.
pub(super) const FIRST: u32 = 1;
/// `NFT_REG32_01`.
pub(super) const SECOND: u32 = 9;
/// `NFT_REG32_02`.
pub(super) const THIRD: u32 = 10;

/// `NFT_META_NFPROTO`, `NFT_META_L4PROTO`.
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_CMP_EQ`, `NFT_CMP_NEQ`.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`, and `RTN_LOCAL` of linux/rtnetlink.h.
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 1 << 1;
const LOCAL: u32 = 2;
/// `NFT_CT_STATUS`, and `IPS_DST_NAT` of linux/netfilter/nf_conntrack_common.h.
const CT_STATUS: u32 = 2;
const TRANSLATED: u32 = 1 << 5;
/// `NFT_NAT_DNAT`.
const DESTINATION_NAT: u32 = 1;
/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`, `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of
/// linux/netfilter/nf_nat.h.
const ADDRESS_AND_PORT: u32 = 3;
const RANDOM_PORT: u32 = 1 << 4;

/// Whether a member of a set is meant, or what is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member {
    Yes,
    No,
}

/// Expressions of one rule, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Rule(Attributes);

impl Rule {
    /// A rule for IPv4 packets.
    pub(super) fn ipv4() -> Self {
        let family = Attributes::new().number(1, FIRST).number(2, META_FAMILY);
        Self::default().then("meta", family).compare(EQUAL, &[IPV4])
    }

    /// Its expressions, for `NFTA_RULE_EXPRESSIONS`.
    pub(super) fn expressions(self) -> Attributes {
        self.0
    }

    /// Sent to an address of this host.
    pub(super) fn sent_to_this_host(self) -> Self {
        let lookup = Attributes::new()
            .number(1, FIRST)
            .number(2, FIB_ADDRESS_TYPE)
            .number(3, FIB_DESTINATION);
        self.then("fib", lookup)
            .compare(EQUAL, &LOCAL.to_ne_bytes())
    }

    /// Not sent to 127.0.0.0/8.
    pub(super) fn not_to_loopback(self) -> Self {
        self.load(NETWORK_HEADER, 16, 1, FIRST)
            .compare(NOT_EQUAL, &[127])
    }

    /// Of a connection whose destination was translated.
    pub(super) fn translated(self) -> Self {
        let status = Attributes::new().number(1, FIRST).number(2, CT_STATUS);
        let data = |value: u32| Attributes::new().bytes(1, &value.to_ne_bytes());
        let mask = Attributes::new()
            .number(1, FIRST)
            .number(2, FIRST)
            .number(3, 4)
            .nested(4, data(TRANSLATED))
            .nested(5, data(0));
        self.then("ct", status)
            .then("bitwise", mask)
            .compare(NOT_EQUAL, &[0; 4])
    }

    /// Loads the source address.
    pub(super) fn source(self, register: u32) -> Self {
        self.load(NETWORK_HEADER, 12, 4, register)
    }

    /// Loads the destination address.
    pub(super) fn destination(self, register: u32) -> Self {
        self.load(NETWORK_HEADER, 16, 4, register)
    }

    /// Loads the number of the transport protocol.
    pub(super) fn protocol(self, register: u32) -> Self {
        let protocol = Attributes::new()
            .number(1, register)
            .number(2, META_PROTOCOL);
        self.then("meta", protocol)
    }

    /// Loads the destination port.
    pub(super) fn port(self, register: u32) -> Self {
        self.load(TRANSPORT_HEADER, 2, 2, register)
    }

    /// What is in the first register is a member of `set`, or none.
    pub(super) fn in_set(self, set: &str, member: Member) -> Self {
        let lookup = Attributes::new().text(1, set).number(2, FIRST);
        self.then(
            "lookup",
            match member {
                Member::Yes => lookup,
                // NFT_LOOKUP_F_INV
                Member::No => lookup.number(5, 1),
            },
        )
    }

    /// Looks up what is in the registers from the first on; the rule ends without an entry.
    pub(super) fn look_up(self, map: &str) -> Self {
        let lookup = Attributes::new()
            .text(1, map)
            .number(2, FIRST)
            .number(3, FIRST);
        self.then("lookup", lookup)
    }

    /// Sends it to the address in the first register and the port in the second.
    pub(super) fn translate_destination(self) -> Self {
        let nat = Attributes::new()
            .number(1, DESTINATION_NAT)
            .number(2, IPV4.into())
            .number(3, FIRST)
            .number(4, FIRST)
            .number(5, SECOND)
            .number(6, SECOND)
            .number(7, ADDRESS_AND_PORT);
        self.then("nat", nat)
    }

    /// Makes it come from this host. Ports are random: two connections that begin at once would
    /// take the same one otherwise, and one of them would be dropped.
    pub(super) fn masquerade(self) -> Self {
        self.then("masq", Attributes::new().number(1, RANDOM_PORT))
    }

    fn load(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        let payload = Attributes::new()
            .number(1, register)
            .number(2, base)
            .number(3, offset)
            .number(4, length);
        self.then("payload", payload)
    }

    fn compare(self, how: u32, value: &[u8]) -> Self {
        let compare = Attributes::new()
            .number(1, FIRST)
            .number(2, how)
            .nested(3, Attributes::new().bytes(1, value));
        self.then("cmp", compare)
    }

    fn then(self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nested(2, data);
        // NFTA_LIST_ELEM
        Self(self.0.nested(1, expression))
    }
}
