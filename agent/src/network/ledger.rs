//! Which instance holds which address: the host's address ledger.
//!
//! Owns the leases and nothing else. Promises (invariant 3): two instances never hold one address,
//! and a freed address goes to no other instance before its quarantine has passed. An instance that
//! comes back gets the address it had, even within its own quarantine.
//!
//! Deliberately without I/O and without a clock: times are milliseconds of steady time
//! (`pool::Now`) given by the caller, so
//! that a lease can be decided inside the INTENT transaction and read back after a restart. The
//! journal keeps the rows of [`Ledger::leases`] **by address**: an instance has at most one lease,
//! and loses a released one only when its address is granted to another instance, which overwrites
//! that very row.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use chrono::DateTime;

use super::ports::{HostPort, PortRefused, Ports};
use crate::app::{App, NetworkMode};
use crate::config::{self, AddressRange};
use crate::instance::InstanceName;

/// One address and whose it is or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who holds the address, or held it last.
    pub instance: InstanceName,
    /// The address.
    pub address: Ipv4Addr,
    /// Whether it is held.
    pub state: LeaseState,
}

/// Whether an address is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// The instance holds it.
    Held,
    /// The instance gave it back; it is remembered for its return.
    Released {
        /// When it was given back, in milliseconds of steady time; the quarantine counts from here.
        at_ms: u64,
    },
}

/// What an instance was granted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// Its address; `None` in the host's network.
    pub address: Option<Ipv4Addr>,
    /// Its ports of the host.
    pub host_ports: Vec<HostPort>,
}

/// Why an instance was granted nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantRefused {
    /// No address.
    #[error(transparent)]
    Address(#[from] Exhausted),
    /// No host port.
    #[error(transparent)]
    Port(#[from] PortRefused),
}

/// No address can be granted now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no free address among {addresses}: {held} held, {quarantined} in quarantine{}", until(*.free_at_ms))]
pub struct Exhausted {
    /// How many addresses the pools have.
    pub addresses: u64,
    /// How many of them are held.
    pub held: u64,
    /// How many of them were released too recently.
    pub quarantined: u64,
    /// When the first quarantine ends, in milliseconds of steady time; `None` when nothing is in quarantine.
    pub free_at_ms: Option<u64>,
}

/// Two rows of the journal contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// One address, two instances.
    #[error("address {address} is leased to both {first} and {second}")]
    Address {
        /// The address.
        address: Ipv4Addr,
        /// Whose lease was read first.
        first: InstanceName,
        /// Whose lease contradicts it.
        second: InstanceName,
    },
    /// One instance, two addresses.
    #[error("{instance} has a lease on both {first} and {second}")]
    Instance {
        /// The instance.
        instance: InstanceName,
        /// The address that was read first.
        first: Ipv4Addr,
        /// The address that contradicts it.
        second: Ipv4Addr,
    },
}

/// All leases of this host.
#[derive(Debug, Clone)]
pub struct Ledger {
    ranges: Vec<Usable>,
    quarantine_ms: u64,
    leases: BTreeMap<Ipv4Addr, (InstanceName, LeaseState)>,
    addresses: HashMap<InstanceName, Ipv4Addr>,
    /// Released leases, the longest released first.
    released: BTreeSet<(u64, Ipv4Addr)>,
    held: usize,
    ports: Ports,
    /// Everything before this position of `ranges` has a lease; leases never go, they change hands.
    never_used_from: (usize, u32),
}

/// First and last address, both usable.
#[derive(Debug, Clone, Copy)]
struct Usable {
    first: u32,
    last: u32,
}

impl Ledger {
    /// An empty ledger over `settings.pools`. Of a range of prefix <= 30 the first and the last address are
    /// not used (network and broadcast, by which other tools would misread them; a /32 route itself
    /// needs neither); the gateway is never granted. Overlapping pools count once.
    pub fn new(settings: &config::Network) -> Self {
        let ranges = usable(&settings.pools, settings.gateway.to_bits());
        let quarantine_ms = u64::try_from(settings.quarantine.as_millis()).unwrap_or(u64::MAX);
        let never_used_from = (0, ranges.first().map_or(0, |range| range.first));
        Self {
            ranges,
            ports: Ports::new(settings.host_ports.clone(), quarantine_ms),
            quarantine_ms,
            leases: BTreeMap::new(),
            addresses: HashMap::new(),
            released: BTreeSet::new(),
            held: 0,
            never_used_from,
        }
    }

    /// Takes over what the journal or the observed host says. Leases outside the pools (the
    /// configuration changed) are kept while held, and not granted again.
    ///
    /// # Errors
    /// [`Conflict`] when two leases contradict each other; those before it are taken over.
    pub fn restore(&mut self, leases: impl IntoIterator<Item = Lease>) -> Result<(), Conflict> {
        for lease in leases {
            if let Some((first, _)) = self.leases.get(&lease.address)
                && *first != lease.instance
            {
                return Err(Conflict::Address {
                    address: lease.address,
                    first: first.clone(),
                    second: lease.instance,
                });
            }
            if let Some(first) = self.addresses.get(&lease.instance)
                && *first != lease.address
            {
                return Err(Conflict::Instance {
                    instance: lease.instance,
                    first: *first,
                    second: lease.address,
                });
            }
            self.forget(lease.address);
            self.record(lease);
        }
        Ok(())
    }

    /// All that an instance of `app` needs, or nothing of it.
    ///
    /// # Errors
    /// [`GrantRefused`]: what there is none of.
    pub fn grant_all(
        &mut self,
        instance: &InstanceName,
        app: &App,
        now_ms: u64,
    ) -> Result<Grant, GrantRefused> {
        if app.network == NetworkMode::Host {
            return Ok(Grant::default());
        }
        let host_ports = self.ports.grant(instance, app, now_ms)?;
        match self.grant(instance, now_ms) {
            Ok(address) => Ok(Grant {
                address: Some(address),
                host_ports,
            }),
            Err(exhausted) => {
                self.ports.release(instance, now_ms);
                Err(exhausted.into())
            }
        }
    }

    /// Ends everything that `instance` was granted; the quarantines begin.
    pub fn release_all(&mut self, instance: &InstanceName, now_ms: u64) {
        self.ports.release(instance, now_ms);
        self.release(instance, now_ms);
    }

    /// A process of the host has a port that `instance` was granted: it is not granted again for a
    /// while.
    pub fn avoid_ports(&mut self, instance: &InstanceName, now_ms: u64) {
        self.ports.avoid(instance, now_ms);
    }

    /// Takes over host ports from the journal; `released_ms` when they were given back.
    pub fn restore_ports(
        &mut self,
        instance: &InstanceName,
        ports: Vec<HostPort>,
        released_ms: Option<u64>,
    ) {
        self.ports.restore(instance, ports, released_ms);
    }

    /// The address of `instance`: the one it holds, else the one it last had, else a never used one,
    /// else the one that is released the longest and past its quarantine.
    ///
    /// # Errors
    /// [`Exhausted`] when every address is held or in quarantine.
    pub fn grant(&mut self, instance: &InstanceName, now_ms: u64) -> Result<Ipv4Addr, Exhausted> {
        let address = match self.last_address(instance) {
            Some(address) => address,
            None => self
                .never_used()
                .or_else(|| self.reusable(now_ms))
                .ok_or_else(|| self.exhausted(now_ms))?,
        };
        self.forget(address);
        self.record(Lease {
            instance: instance.clone(),
            address,
            state: LeaseState::Held,
        });
        Ok(address)
    }

    /// Ends the lease of `instance` and begins the quarantine of its address, which is returned.
    /// `None`, and no effect, when it holds none.
    pub fn release(&mut self, instance: &InstanceName, now_ms: u64) -> Option<Ipv4Addr> {
        let address = self.held_by(instance)?;
        self.forget(address);
        self.record(Lease {
            instance: instance.clone(),
            address,
            state: LeaseState::Released { at_ms: now_ms },
        });
        Some(address)
    }

    /// The address that `instance` holds now.
    pub fn held_by(&self, instance: &InstanceName) -> Option<Ipv4Addr> {
        let address = self.addresses.get(instance)?;
        let (_, state) = self.leases.get(address)?;
        (*state == LeaseState::Held).then_some(*address)
    }

    /// The lease of `instance`, held or released: the row that the journal keeps.
    pub fn lease(&self, instance: &InstanceName) -> Option<Lease> {
        let address = *self.addresses.get(instance)?;
        let (instance, state) = self.leases.get(&address)?;
        Some(Lease {
            instance: instance.clone(),
            address,
            state: *state,
        })
    }

    /// All leases by address, the released ones included.
    pub fn leases(&self) -> impl Iterator<Item = Lease> + '_ {
        self.leases
            .iter()
            .map(|(address, (instance, state))| Lease {
                instance: instance.clone(),
                address: *address,
                state: *state,
            })
    }

    /// How many addresses are held.
    pub fn in_use(&self) -> usize {
        self.held
    }

    /// How many addresses the pools have.
    pub fn size(&self) -> u64 {
        self.ranges
            .iter()
            .map(|range| u64::from(range.last - range.first) + 1)
            .sum()
    }

    fn last_address(&self, instance: &InstanceName) -> Option<Ipv4Addr> {
        let address = *self.addresses.get(instance)?;
        (self.contains(address) || self.held_by(instance).is_some()).then_some(address)
    }

    fn never_used(&mut self) -> Option<Ipv4Addr> {
        let (mut index, mut next) = self.never_used_from;
        while let Some(range) = self.ranges.get(index) {
            let candidate = Ipv4Addr::from_bits(next);
            if !self.leases.contains_key(&candidate) {
                self.never_used_from = (index, next);
                return Some(candidate);
            }
            if next < range.last {
                next += 1;
            } else {
                index += 1;
                next = self.ranges.get(index).map_or(0, |range| range.first);
            }
        }
        self.never_used_from = (index, next);
        None
    }

    fn reusable(&self, now_ms: u64) -> Option<Ipv4Addr> {
        self.released
            .iter()
            .take_while(|(at_ms, _)| self.quarantine_end(*at_ms) <= now_ms)
            .map(|(_, address)| *address)
            .find(|address| self.contains(*address))
    }

    fn quarantine_end(&self, at_ms: u64) -> u64 {
        at_ms.saturating_add(self.quarantine_ms)
    }

    fn exhausted(&self, now_ms: u64) -> Exhausted {
        let quarantine: Vec<u64> = self
            .released
            .iter()
            .filter(|(_, address)| self.contains(*address))
            .map(|(at_ms, _)| self.quarantine_end(*at_ms))
            .filter(|end_ms| *end_ms > now_ms)
            .collect();
        let held_in_pools = self
            .leases
            .iter()
            .filter(|(address, (_, state))| *state == LeaseState::Held && self.contains(**address))
            .count();
        Exhausted {
            addresses: self.size(),
            held: held_in_pools as u64,
            quarantined: quarantine.len() as u64,
            free_at_ms: quarantine.first().copied(),
        }
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        let bits = address.to_bits();
        self.ranges
            .iter()
            .any(|range| (range.first..=range.last).contains(&bits))
    }

    fn record(&mut self, lease: Lease) {
        // An instance whose released address lies outside the pools moves to a new one.
        if let Some(old) = self.addresses.get(&lease.instance)
            && *old != lease.address
        {
            self.forget(*old);
        }
        match lease.state {
            LeaseState::Held => self.held += 1,
            LeaseState::Released { at_ms } => {
                self.released.insert((at_ms, lease.address));
            }
        }
        self.addresses.insert(lease.instance.clone(), lease.address);
        self.leases
            .insert(lease.address, (lease.instance, lease.state));
    }

    fn forget(&mut self, address: Ipv4Addr) {
        let Some((instance, state)) = self.leases.remove(&address) else {
            return;
        };
        self.addresses.remove(&instance);
        match state {
            LeaseState::Held => self.held -= 1,
            LeaseState::Released { at_ms } => {
                self.released.remove(&(at_ms, address));
            }
        }
    }
}

/// Ranges of usable addresses: sorted, without overlap, without the gateway.
fn usable(pools: &[AddressRange], gateway: u32) -> Vec<Usable> {
    let mut whole: Vec<Usable> = pools.iter().filter_map(usable_of).collect();
    whole.sort_by_key(|range| range.first);
    let mut merged: Vec<Usable> = Vec::new();
    for range in whole {
        match merged.last_mut() {
            Some(previous) if range.first <= previous.last => {
                previous.last = previous.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
        .into_iter()
        .flat_map(|range| without(range, gateway))
        .collect()
}

fn usable_of(pool: &AddressRange) -> Option<Usable> {
    let hosts = u32::MAX.checked_shr(u32::from(pool.prefix)).unwrap_or(0);
    let base = pool.base.to_bits() & !hosts;
    let (first, last) = match pool.prefix {
        0..=30 => (base + 1, base + hosts - 1),
        _ => (base, base + hosts),
    };
    (first <= last).then_some(Usable { first, last })
}

fn without(range: Usable, address: u32) -> impl Iterator<Item = Usable> {
    let parts = if (range.first..=range.last).contains(&address) {
        [
            address.checked_sub(1).map(|last| Usable {
                first: range.first,
                last,
            }),
            address.checked_add(1).map(|first| Usable {
                first,
                last: range.last,
            }),
        ]
    } else {
        [Some(range), None]
    };
    parts
        .into_iter()
        .flatten()
        .filter(|part| part.first <= part.last)
}

fn until(free_at_ms: Option<u64>) -> String {
    free_at_ms
        .and_then(|at| DateTime::from_timestamp_millis(i64::try_from(at).ok()?))
        .map(|at| format!(", the first until {}", at.format("%Y-%m-%dT%H:%M:%SZ")))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use proptest::prelude::*;

    fn range(text: &str) -> AddressRange {
        let (base, prefix) = text.split_once('/').unwrap();
        AddressRange {
            base: base.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
        }
    }

    fn ledger(pools: &[&str]) -> Ledger {
        let pools: Vec<_> = pools.iter().map(|pool| range(pool)).collect();
        let quarantine = Duration::from_secs(120);
        Ledger::new(&settings(pools, Ipv4Addr::new(169, 254, 1, 1), quarantine))
    }

    fn settings(
        pools: Vec<AddressRange>,
        gateway: Ipv4Addr,
        quarantine: Duration,
    ) -> config::Network {
        config::Network {
            pools,
            gateway,
            quarantine,
            ..config::defaults("test").network
        }
    }

    fn web(ordinal: u32) -> InstanceName {
        InstanceName::new("web".parse().unwrap(), ordinal)
    }

    #[test]
    fn base_and_last_address_of_a_range_are_not_granted_but_a_single_address_is() {
        assert_eq!(ledger(&["10.0.0.0/29"]).size(), 6);
        assert_eq!(ledger(&["10.0.0.0/30"]).size(), 2);
        assert_eq!(ledger(&["10.0.0.0/31"]).size(), 2);
        assert_eq!(ledger(&["10.0.0.7/32"]).size(), 1);
        let mut two = ledger(&["10.0.0.0/30", "10.0.0.7/32"]);
        let granted: Vec<_> = (0..3)
            .map(|n| two.grant(&web(n), 0).unwrap().to_string())
            .collect();
        assert_eq!(granted, ["10.0.0.1", "10.0.0.2", "10.0.0.7"]);
    }

    #[test]
    fn pools_that_overlap_and_the_gateway_are_not_granted_twice_or_at_all() {
        let pools = vec![range("10.0.0.0/29"), range("10.0.0.0/28")];
        let gateway = Ipv4Addr::new(10, 0, 0, 3);
        let mut ledger = Ledger::new(&settings(pools, gateway, Duration::ZERO));
        assert_eq!(ledger.size(), 13);
        let granted: BTreeSet<_> = (0..13).map(|n| ledger.grant(&web(n), 0).unwrap()).collect();
        assert_eq!(granted.len(), 13);
        assert!(!granted.contains(&Ipv4Addr::new(10, 0, 0, 3)));
    }

    #[test]
    fn an_instance_that_comes_back_gets_its_address_within_its_own_quarantine() {
        let mut ledger = ledger(&["10.0.0.0/24"]);
        let first = ledger.grant(&web(0), 0).unwrap();
        assert_eq!(ledger.grant(&web(0), 1), Ok(first));
        assert_eq!(ledger.release(&web(0), 10), Some(first));
        assert_eq!(ledger.release(&web(0), 11), None);
        assert_ne!(ledger.grant(&web(1), 12).unwrap(), first);
        assert_eq!(ledger.grant(&web(0), 13), Ok(first));
        assert_eq!(ledger.in_use(), 2);
    }

    #[test]
    fn never_used_addresses_go_first_then_the_longest_released_past_quarantine() {
        let mut ledger = ledger(&["10.0.0.0/30"]);
        let first = ledger.grant(&web(0), 0).unwrap();
        ledger.release(&web(0), 0);
        let second = ledger.grant(&web(1), 500_000).unwrap();
        assert_ne!(first, second);
        assert_eq!(ledger.grant(&web(2), 500_000), Ok(first));
        assert_eq!(ledger.lease(&web(0)), None, "its address changed hands");
    }

    #[test]
    fn exhaustion_says_how_many_are_held_and_until_when_the_rest_is_in_quarantine() {
        let mut ledger = ledger(&["10.0.0.0/29"]);
        for n in 0..6 {
            ledger.grant(&web(n), 0).unwrap();
        }
        let none_released = ledger.grant(&web(9), 0).unwrap_err();
        assert_eq!(
            none_released.to_string(),
            "no free address among 6: 6 held, 0 in quarantine"
        );
        ledger.release(&web(1), 60_000);
        ledger.release(&web(0), 30_000);
        let refused = ledger.grant(&web(9), 90_000).unwrap_err();
        assert_eq!(
            refused,
            Exhausted {
                addresses: 6,
                held: 4,
                quarantined: 2,
                free_at_ms: Some(150_000)
            }
        );
        assert_eq!(
            refused.to_string(),
            "no free address among 6: 4 held, 2 in quarantine, the first until 1970-01-01T00:02:30Z"
        );
        assert!(ledger.grant(&web(9), 149_999).is_err());
        assert_eq!(
            ledger.grant(&web(9), 150_000).unwrap().to_string(),
            "10.0.0.1"
        );
    }

    #[test]
    fn a_pool_without_addresses_is_exhausted_at_once() {
        let refused = ledger(&[]).grant(&web(0), 0).unwrap_err();
        assert_eq!(refused.addresses, 0);
    }

    #[test]
    fn contradicting_journal_rows_are_named() {
        let held = |n, address: &str| Lease {
            instance: web(n),
            address: address.parse().unwrap(),
            state: LeaseState::Held,
        };
        let mut one = ledger(&["10.0.0.0/24"]);
        let refused = one
            .restore([held(0, "10.0.0.1"), held(1, "10.0.0.1")])
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "address 10.0.0.1 is leased to both web-0 and web-1"
        );
        let refused = one.restore([held(0, "10.0.0.2")]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "web-0 has a lease on both 10.0.0.1 and 10.0.0.2"
        );
        assert_eq!(one.restore([held(0, "10.0.0.1")]), Ok(()));
        assert_eq!(one.in_use(), 1);
    }

    #[test]
    fn an_address_outside_changed_pools_is_kept_while_held_and_not_granted_again() {
        let mut ledger = ledger(&["10.0.0.0/24"]);
        let outside: Ipv4Addr = "172.16.0.9".parse().unwrap();
        ledger
            .restore([Lease {
                instance: web(0),
                address: outside,
                state: LeaseState::Held,
            }])
            .unwrap();
        assert_eq!(ledger.grant(&web(0), 0), Ok(outside));
        ledger.release(&web(0), 0);
        assert_eq!(ledger.grant(&web(0), 1).unwrap().to_string(), "10.0.0.1");
        assert_eq!(ledger.leases().count(), 1);
        assert_eq!(ledger.in_use(), 1);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Grant(u32),
        Release(u32),
        Wait(u64),
        Restart,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            4 => (0u32..12).prop_map(Event::Grant),
            3 => (0u32..12).prop_map(Event::Release),
            2 => (0u64..100_000).prop_map(Event::Wait),
            1 => Just(Event::Restart),
        ];
        prop::collection::vec(event, 1..120)
    }

    proptest! {
        #[test]
        fn two_instances_never_hold_one_address_and_quarantine_holds(events in events()) {
            const QUARANTINE_MS: u64 = 120_000;
            let mut ledger = ledger(&["10.0.0.0/29", "10.9.0.1/32"]);
            let mut held: HashMap<InstanceName, Ipv4Addr> = HashMap::new();
            let mut released: HashMap<Ipv4Addr, (InstanceName, u64)> = HashMap::new();
            let mut now = 1_000u64;
            for event in events {
                match event {
                    Event::Wait(ms) => now += ms,
                    Event::Restart => {
                        let rows: Vec<_> = ledger.leases().collect();
                        ledger = self::ledger(&["10.0.0.0/29", "10.9.0.1/32"]);
                        ledger.restore(rows).unwrap();
                    }
                    Event::Release(n) => {
                        let freed = ledger.release(&web(n), now);
                        prop_assert_eq!(freed, held.remove(&web(n)));
                        if let Some(address) = freed {
                            released.insert(address, (web(n), now));
                        }
                    }
                    Event::Grant(n) => match ledger.grant(&web(n), now) {
                        Ok(address) => {
                            let holder = held.iter().find(|(_, a)| **a == address);
                            prop_assert!(holder.is_none_or(|(who, _)| *who == web(n)));
                            if let Some((who, at)) = released.remove(&address) {
                                prop_assert!(who == web(n) || at + QUARANTINE_MS <= now);
                            }
                            held.insert(web(n), address);
                        }
                        Err(refused) => {
                            let waiting = released.values().filter(|(_, at)| at + QUARANTINE_MS > now);
                            prop_assert_eq!(refused.quarantined, waiting.clone().count() as u64);
                            prop_assert_eq!(refused.held, held.len() as u64);
                            prop_assert_eq!(refused.held + refused.quarantined, refused.addresses);
                            prop_assert_eq!(
                                refused.free_at_ms,
                                waiting.map(|(_, at)| at + QUARANTINE_MS).min()
                            );
                        }
                    },
                }
                prop_assert_eq!(ledger.in_use(), held.len());
            }
        }
    }
}
