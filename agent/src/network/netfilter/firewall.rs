//! The table in the kernel, kept as it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use rustix::io::Errno;

use super::conntrack::{self, Forget};
use super::message::{INET, Message, Object};
use super::socket::Netfilter;
use super::table::{Forward, Masquerade, Table, owner_of};
use crate::app::Protocol;
use crate::instance::InstanceName;
use crate::network::error::NetworkError;
use crate::network::netlink::{Failed, NetlinkError};
use crate::network::ports::HostPort;

/// `NFTA_TABLE_NAME`, `NFTA_TABLE_USERDATA`, and the family of our table.
const NAME: u16 = 1;
const USER_DATA: u16 = 6;

/// Host ports by instance, and the table that carries them.
pub(in crate::network) struct Firewall {
    /// Opened when it is needed first: a kernel without nf_tables runs instances all the same.
    socket: Option<Netfilter>,
    table: Table,
    forwards: BTreeMap<InstanceName, Vec<Forward>>,
}

impl Firewall {
    /// Knows nothing and has changed nothing. "The host" is the network namespace of the threads
    /// that use it.
    pub(in crate::network) fn new(table: Table) -> Self {
        Self {
            socket: None,
            table,
            forwards: BTreeMap::new(),
        }
    }

    /// The host ports of all instances that have any, and nothing else: in one transaction.
    pub(in crate::network) fn restore(
        &mut self,
        all: Vec<(InstanceName, Ipv4Addr, Vec<HostPort>)>,
    ) -> Result<(), NetworkError> {
        let forwards = all
            .into_iter()
            .map(|(instance, address, ports)| (instance, forwards(address, &ports)));
        self.forwards = forwards.filter(|(_, f)| !f.is_empty()).collect();
        self.replace()
    }

    /// Lets packets to `ports` of this host through to the instance. Repeated, it changes nothing.
    pub(in crate::network) fn publish(
        &mut self,
        instance: &InstanceName,
        address: Ipv4Addr,
        ports: &[HostPort],
    ) -> Result<(), NetworkError> {
        let wanted = forwards(address, ports);
        if wanted.is_empty() {
            return self.withdraw(instance);
        }
        let before = self.forwards.insert(instance.clone(), wanted.clone());
        let mut changes = Vec::new();
        if let Some(before) = before.filter(|before| *before != wanted) {
            changes.extend(self.table.withdraw(&before));
        }
        changes.extend(self.table.forward(&wanted));
        match self.commit(&changes) {
            // The table is not there, or not as it was left.
            Err(failed)
                if matches!(
                    failed.error.errno(),
                    Some(Errno::NOENT | Errno::EXIST | Errno::BUSY)
                ) =>
            {
                self.replace()?;
            }
            other => other.map_err(|failed| self.refused(failed))?,
        }
        let udp = ports.iter().filter(|port| port.protocol == Protocol::Udp);
        self.forget(&Forget {
            udp_ports: udp.map(|port| port.port).collect(),
            ..Forget::default()
        })
    }

    /// Takes the host ports of an instance away. None is fine.
    pub(in crate::network) fn withdraw(
        &mut self,
        instance: &InstanceName,
    ) -> Result<(), NetworkError> {
        let Some(before) = self.forwards.remove(instance) else {
            return Ok(());
        };
        match self.commit(&self.table.withdraw(&before)) {
            Err(failed) if failed.error.errno() == Some(Errno::NOENT) => self.replace(),
            other => other.map_err(|failed| {
                self.forwards.insert(instance.clone(), before);
                self.refused(failed)
            }),
        }
    }

    /// Ends what the kernel remembers of connections from and to freed addresses.
    pub(in crate::network) fn forget_addresses(
        &mut self,
        addresses: BTreeSet<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        self.forget(&Forget {
            addresses,
            ..Forget::default()
        })
    }

    fn forget(&mut self, what: &Forget) -> Result<(), NetworkError> {
        // Who never came to the packet filter translated nothing.
        let Some(socket) = &mut self.socket else {
            return Ok(());
        };
        match conntrack::forget(socket, what) {
            Ok(count) => {
                tracing::debug!(count, "connections forgotten");
                Ok(())
            }
            // A kernel without connection tracking remembers nothing (EINVAL: no such subsystem).
            Err(error) if error.errno() == Some(Errno::INVAL) => Ok(()),
            Err(source) => Err(NetworkError::Kernel {
                operation: "forget the connections of a freed address",
                object: self.table.name.clone(),
                source,
            }),
        }
    }

    fn replace(&mut self) -> Result<(), NetworkError> {
        let mut tables = self.tables()?;
        let owner = tables.remove(&self.table.name);
        if let Some(owner) = owner.as_ref().filter(|owner| **owner != self.table.owner) {
            return Err(NetworkError::TableTaken {
                table: self.table.name.clone(),
                holder: owner.clone(),
            });
        }
        let needed = self.table.masquerade == Masquerade::Yes || !self.forwards.is_empty();
        let mut changes = match (needed, owner) {
            (true, _) => {
                let all: Vec<Forward> = self.forwards.values().flatten().copied().collect();
                self.table.replace(&all)
            }
            (false, Some(_)) => self.table.remove(),
            (false, None) => Vec::new(),
        };
        // Ours from before `network.table` was changed.
        let former = tables.into_iter().filter(|(_, o)| *o == self.table.owner);
        for (name, _) in former {
            tracing::warn!(table = name, "removing our table of a former name");
            let former = Table {
                name,
                ..self.table.clone()
            };
            changes.extend(former.remove());
        }
        self.commit(&changes).map_err(|failed| self.refused(failed))
    }

    /// The tables of our family by name, each with its comment; empty without one.
    fn tables(&mut self) -> Result<BTreeMap<String, String>, NetworkError> {
        let mut tables = BTreeMap::new();
        let read = |table: Object| {
            if table.family == INET
                && let Some(name) = table.text(NAME)
            {
                let comment = table.get(USER_DATA).and_then(owner_of);
                tables.insert(name.to_owned(), comment.unwrap_or_default().to_owned());
            }
        };
        let listed = self.socket().and_then(|socket| {
            socket.list(&Table::list(), read).map_err(|error| Failed {
                what: "list the tables",
                error,
            })
        });
        listed.map_err(|failed| self.refused(failed))?;
        Ok(tables)
    }

    fn commit(&mut self, changes: &[Message]) -> Result<(), Failed> {
        self.socket()?.commit(changes)
    }

    fn socket(&mut self) -> Result<&mut Netfilter, Failed> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            none => {
                let opened = Netfilter::open().map_err(|error| Failed {
                    what: "open the packet filter's socket",
                    error,
                })?;
                Ok(none.insert(opened))
            }
        }
    }

    fn refused(&self, failed: Failed) -> NetworkError {
        self.kernel(failed.what, failed.error)
    }

    fn kernel(&self, operation: &'static str, source: NetlinkError) -> NetworkError {
        NetworkError::Kernel {
            operation,
            object: format!("table inet {}", self.table.name),
            source,
        }
    }
}

fn forwards(instance: Ipv4Addr, ports: &[HostPort]) -> Vec<Forward> {
    let forward = |port: &HostPort| Forward {
        port: *port,
        instance,
    };
    ports.iter().map(forward).collect()
}
