//! Whose chains drop what is forwarded from and to instances: looked at, never changed.
//!
//! A packet has to pass every base chain of the forward hook, so an accept of ours could not overrule
//! another's drop. What can be told without being the kernel: the policy, rules that drop whatever
//! comes, and rules that accept our link group on either side, as the mend of `nodeagent check` adds
//! them. Rules with other conditions are taken for ones that do not concern us, and chains that are
//! jumped to are not followed; nor is iptables-legacy, of which only the presence is told.

use std::fmt;
use std::fs;

use super::message::{Attributes, INET, IPV4, Message, Object, each, find, text};
use super::socket::Netfilter;
use crate::network::error::NetworkError;
use crate::network::netlink::NetlinkError;

/// `NFT_MSG_GETCHAIN` and `NFT_MSG_GETRULE` of linux/netfilter/nf_tables.h.
const GET_CHAIN: u16 = 10 << 8 | 4;
const GET_RULE: u16 = 10 << 8 | 7;
/// `NF_INET_FORWARD`, `NF_DROP`, `NF_ACCEPT` of linux/netfilter.h.
const FORWARD: u32 = 2;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `NFT_META_IIFGROUP` and `NFT_META_OIFGROUP`; `NFT_CMP_EQ`.
const FROM_GROUP: u32 = 21;
const TO_GROUP: u32 = 22;
const EQUAL: u32 = 0;
/// `XT_DEVGROUP_MATCH_SRC` and `XT_DEVGROUP_MATCH_DST` of linux/netfilter/xt_devgroup.h.
const MATCH_SOURCE: u32 = 1;
const MATCH_DESTINATION: u32 = 4;
/// Names of the tables of iptables-legacy that are in use in this network namespace.
const LEGACY: &str = "/proc/thread-self/net/ip_tables_names";

/// What stands in the way of forwarded packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Chains that drop them, as far as can be told.
    pub drops: Vec<Dropping>,
    /// Whether iptables-legacy has a filter table, which was not looked into.
    pub legacy: bool,
}

/// A base chain of the forward hook that does not let our link group through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dropping {
    /// `inet` or `ip`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// By what.
    pub by: DropsBy,
}

/// How a chain drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropsBy {
    /// Its policy.
    Policy,
    /// A rule without conditions.
    Rule,
}

impl fmt::Display for Dropping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            DropsBy::Policy => "has the policy drop",
            DropsBy::Rule => "drops or rejects whatever comes to a rule of it",
        };
        let Self {
            family,
            table,
            chain,
            ..
        } = self;
        write!(f, "chain {chain} of table {family} {table} {by}")
    }
}

/// Looks at the packet filter of the calling thread's network namespace, for packets from and to
/// links of `group`. A kernel without nf_tables drops nothing there.
///
/// # Errors
/// [`NetworkError::Kernel`] when the chains or rules cannot be read.
pub fn survey(group: u32) -> Result<Survey, NetworkError> {
    let unread = |source| NetworkError::Kernel {
        operation: "read the packet filter",
        object: "chains of the forward hook".to_owned(),
        source,
    };
    let legacy = fs::read_to_string(LEGACY).unwrap_or_default();
    let mut found = Survey {
        drops: Vec::new(),
        legacy: legacy.lines().any(|name| name == "filter"),
    };
    let mut socket = Netfilter::open().map_err(unread)?;
    let chains = match chains(&mut socket) {
        Err(error) if error.errno() == Some(rustix::io::Errno::INVAL) => return Ok(found),
        chains => chains.map_err(unread)?,
    };
    for (family, mut chain, policy) in chains {
        let rules = rules(&mut socket, family, &chain, group).map_err(unread)?;
        if let Some(by) = drops(policy, &rules) {
            chain.by = by;
            found.drops.push(chain);
        }
    }
    found.drops.sort();
    Ok(found)
}

/// What a chain does with what no rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Accept,
    Drop,
}

/// What a rule does for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    AcceptFrom,
    AcceptTo,
    DropAll,
    Other,
}

/// Both directions have to be accepted before anything drops whatever comes.
fn drops(policy: Policy, rules: &[Does]) -> Option<DropsBy> {
    let (mut from, mut to) = (false, false);
    for rule in rules {
        match rule {
            Does::AcceptFrom => from = true,
            Does::AcceptTo => to = true,
            Does::DropAll => return Some(DropsBy::Rule),
            Does::Other => {}
        }
        if from && to {
            return None;
        }
    }
    (policy == Policy::Drop).then_some(DropsBy::Policy)
}

fn chains(socket: &mut Netfilter) -> Result<Vec<(u8, Dropping, Policy)>, NetlinkError> {
    let mut chains = Vec::new();
    let list = message("list the chains", GET_CHAIN, 0, Attributes::new());
    socket.list(&list, |chain| chains.extend(forward_chain(&chain)))?;
    Ok(chains)
}

fn forward_chain(chain: &Object) -> Option<(u8, Dropping, Policy)> {
    let family = match chain.family {
        INET => "inet",
        IPV4 => "ip",
        _ => return None,
    };
    let hook = number(find(chain.get(4)?, 1)?)?;
    let policy = match number(chain.get(5)?)? {
        DROP => Policy::Drop,
        _ => Policy::Accept,
    };
    let dropping = Dropping {
        family,
        table: chain.text(1)?.to_owned(),
        chain: chain.text(3)?.to_owned(),
        by: DropsBy::Policy,
    };
    (hook == FORWARD).then_some((chain.family, dropping, policy))
}

fn rules(
    socket: &mut Netfilter,
    family: u8,
    chain: &Dropping,
    group: u32,
) -> Result<Vec<Does>, NetlinkError> {
    let of = Attributes::new()
        .text(1, &chain.table)
        .text(2, &chain.chain);
    let mut rules = Vec::new();
    socket.list(&message("list the rules", GET_RULE, family, of), |rule| {
        // A kernel that does not filter lists them all.
        let here = rule.text(1) == Some(&chain.table) && rule.text(2) == Some(&chain.chain);
        if here && rule.family == family {
            rules.push(rule.get(4).map_or(Does::Other, |e| does(e, group)));
        }
    })?;
    Ok(rules)
}

fn does(expressions: &[u8], group: u32) -> Does {
    let expressions: Vec<(&str, &[u8])> = each(expressions)
        .into_iter()
        .filter_map(|(_, one)| Some((text(find(one, 1)?)?, find(one, 2).unwrap_or_default())))
        // They decide nothing.
        .filter(|(name, _)| !matches!(*name, "counter" | "log"))
        .collect();
    match expressions[..] {
        [("reject", _)] => Does::DropAll,
        [("target", target)] if find(target, 1).and_then(text) == Some("REJECT") => Does::DropAll,
        [("immediate", verdict)] if verdict_of(verdict) == Some(DROP) => Does::DropAll,
        [("meta", meta), ("cmp", compared), ("immediate", verdict)]
            if verdict_of(verdict) == Some(ACCEPT) && is_group(compared, group) =>
        {
            match find(meta, 2).and_then(number) {
                Some(FROM_GROUP) => Does::AcceptFrom,
                Some(TO_GROUP) => Does::AcceptTo,
                _ => Does::Other,
            }
        }
        [("match", matched), ("immediate", verdict)]
            if verdict_of(verdict) == Some(ACCEPT)
                && find(matched, 1).and_then(text) == Some("devgroup") =>
        {
            find(matched, 3).map_or(Does::Other, |info| device_group(info, group))
        }
        _ => Does::Other,
    }
}

fn verdict_of(immediate: &[u8]) -> Option<u32> {
    number(find(find(find(immediate, 2)?, 2)?, 1)?)
}

fn is_group(compare: &[u8], group: u32) -> bool {
    find(compare, 2).and_then(number) == Some(EQUAL)
        && find(compare, 3).and_then(|data| find(data, 1)) == Some(&group.to_ne_bytes())
}

/// `struct xt_devgroup_info`: flags, then group and mask of either side.
fn device_group(info: &[u8], group: u32) -> Does {
    let word = |n: usize| {
        let bytes = info.get(4 * n..4 * n + 4)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let is = |n| (word(n), word(n + 1)) == (Some(group), Some(u32::MAX));
    match word(0) {
        Some(MATCH_SOURCE) if is(1) => Does::AcceptFrom,
        Some(MATCH_DESTINATION) if is(3) => Does::AcceptTo,
        _ => Does::Other,
    }
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}

fn message(what: &'static str, kind: u16, family: u8, attributes: Attributes) -> Message {
    Message {
        what,
        kind,
        flags: 0,
        family,
        resource: 0,
        attributes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_lets_us_through_when_both_sides_are_accepted_before_anything_drops() {
        use Does::{AcceptFrom, AcceptTo, DropAll, Other};
        assert_eq!(drops(Policy::Accept, &[Other]), None);
        assert_eq!(drops(Policy::Drop, &[Other]), Some(DropsBy::Policy));
        let half = [AcceptFrom, Other];
        assert_eq!(drops(Policy::Drop, &half), Some(DropsBy::Policy));
        assert_eq!(drops(Policy::Drop, &[AcceptTo, AcceptFrom]), None);
        let late = [AcceptTo, DropAll, AcceptFrom];
        assert_eq!(drops(Policy::Accept, &late), Some(DropsBy::Rule));
        assert_eq!(
            drops(Policy::Accept, &[AcceptFrom, AcceptTo, DropAll]),
            None
        );
    }
}
