//! Our turn at etcd: the host's lease, the proof that the host is ours, and writes under that proof.
//!
//! Every write compares the revision of the owner key that this session put. A write of an earlier
//! session that was on its way all the while, of ours or of another agent's, compares with a
//! revision that is no more, and changes nothing: so a late registration never wins against what was
//! written since, and a deregistered instance does not come back by it.
//!
//! A session watches its owner key, so that it knows at once when its lease is gone, when another
//! session has taken over, and when its member is.
//!
//! A session that is in doubt (a deadline, a broken connection) is thrown away; the next one puts
//! the owner key anew, and only then reads what is there.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, Event, EventType, PutOptions, Txn, TxnOp, TxnOpResponse, WatchStream,
};
use tokio::time::Instant;

use super::connection::{Connection, Lease};
use super::error::EtcdError;
use super::keys::{self, Keys, Owner};
use crate::chain::chain;
use crate::config;
use crate::discovery::RegistrationRecord;
use crate::instance::InstanceName;

/// Operations in one transaction, etcd's own limit (`--max-txn-ops`).
pub(super) const TXN_OPERATIONS: usize = 128;

/// One change of one key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operation {
    Put(Arc<RegistrationRecord>),
    Delete(InstanceName),
}

/// What is true of the keys that were found when a session began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// They live as long as this session's lease.
    OnOurLease,
    /// They are on a former lease and go with it: all have to be put again.
    OnAFormerLease,
}

/// A session that has begun.
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) records: Vec<RegistrationRecord>,
    pub(super) found: Found,
    /// The lease's time to live.
    pub(super) ttl: Duration,
    /// When etcd acknowledged grant or renewal.
    pub(super) renewed: Instant,
}

/// A session: who holds it may write.
pub(super) struct Session {
    connection: Connection,
    keys: Keys,
    lease: i64,
    /// Revision of the owner key.
    revision: i64,
    /// Of the owner key, from then on.
    watch: WatchStream,
}

/// A lease to go on with.
struct Held {
    lease: i64,
    ttl: Duration,
    found: Found,
    /// Keys on the lease that was found.
    names: Vec<InstanceName>,
    renewed: Instant,
}

impl Session {
    /// Connects to `endpoint`, takes up our lease or begins a new one, and takes the host.
    pub(super) async fn open(
        settings: &config::EtcdDiscovery,
        keys: &Keys,
        agent_id: &str,
        endpoint: &str,
    ) -> Result<Opened, EtcdError> {
        let mut connection = Connection::dial(settings, endpoint).await?;
        let owner = keys.owner();
        let (compare, former) = match connection.get(&owner).await? {
            None => (
                Compare::create_revision(owner.as_str(), CompareOp::Equal, 0),
                None,
            ),
            Some(present) => {
                let agent = serde_json::from_slice::<Owner>(present.value())
                    .map_or_else(|_| "of an unknown kind".to_owned(), |owner| owner.agent);
                if agent != agent_id {
                    return Err(EtcdError::Owned {
                        host_id: keys.host_id().to_owned(),
                        fleet: keys.fleet().to_owned(),
                        agent,
                        lease: present.lease(),
                    });
                }
                let revision = present.mod_revision();
                (
                    Compare::mod_revision(owner.as_str(), CompareOp::Equal, revision),
                    Some(present.lease()),
                )
            }
        };
        let held = hold(&mut connection, settings.ttl, keys, former).await?;
        let value = keys::encode_owner(&Owner::ours(agent_id))?;
        let put = TxnOp::put(
            owner.as_str(),
            value,
            Some(PutOptions::new().with_lease(held.lease)),
        );
        let taken = Txn::new().when([compare]).and_then([put]);
        let taken = connection.txn("take the host", taken).await?;
        let revision = taken.header().map(|header| header.revision());
        let Some(revision) = revision.filter(|_| taken.succeeded()) else {
            return Err(EtcdError::Overtaken);
        };
        let watch = connection.watch(&owner, revision + 1).await?;
        let mut session = Self {
            connection,
            keys: keys.clone(),
            lease: held.lease,
            revision,
            watch,
        };
        let records = session.read(&held.names).await?;
        Ok(Opened {
            session,
            records,
            found: held.found,
            ttl: held.ttl,
            renewed: held.renewed,
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        self.connection.endpoint()
    }

    pub(super) fn lease(&self) -> i64 {
        self.lease
    }

    /// Waits for what ends the session from outside. Nothing is lost when the wait is given up.
    pub(super) async fn over(&mut self) -> EtcdError {
        let ended = |said: &str| EtcdError::WatchEnded {
            endpoint: self.connection.endpoint().to_owned(),
            said: said.to_owned(),
        };
        loop {
            let answer = match self.watch.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return ended("the stream has ended"),
                Err(error) => return ended(&chain(&error)),
            };
            if answer.canceled() {
                return ended(answer.cancel_reason());
            }
            match answer.events().first().map(Event::event_type) {
                Some(EventType::Delete) => return EtcdError::HostKeyGone { lease: self.lease },
                Some(EventType::Put) => return EtcdError::Overtaken,
                // The watch was created.
                None => {}
            }
        }
    }

    fn guard(&self) -> Compare {
        Compare::mod_revision(self.keys.owner(), CompareOp::Equal, self.revision)
    }

    /// Writes at most [`TXN_OPERATIONS`] at once: all of them or none.
    pub(super) async fn write(&mut self, operations: &[Operation]) -> Result<(), EtcdError> {
        let mut ops = Vec::with_capacity(operations.len());
        for operation in operations {
            ops.push(match operation {
                Operation::Put(record) => TxnOp::put(
                    self.keys.instance(&record.instance),
                    keys::encode(record)?,
                    Some(PutOptions::new().with_lease(self.lease)),
                ),
                Operation::Delete(name) => TxnOp::delete(self.keys.instance(name), None),
            });
        }
        let txn = Txn::new().when([self.guard()]).and_then(ops);
        let written = self.connection.txn("write registrations", txn).await?;
        if written.succeeded() {
            Ok(())
        } else {
            Err(EtcdError::Overtaken)
        }
    }

    /// Renews the lease; returns the instances whose keys are on it.
    pub(super) async fn renew(&mut self) -> Result<Vec<InstanceName>, EtcdError> {
        self.connection.renew(self.lease).await?;
        let lease = self.connection.lease(self.lease).await?;
        let lease = lease.ok_or(EtcdError::LeaseGone { lease: self.lease })?;
        Ok(names(&self.keys, &lease))
    }

    async fn read(&mut self, names: &[InstanceName]) -> Result<Vec<RegistrationRecord>, EtcdError> {
        let mut records = Vec::with_capacity(names.len());
        for some in names.chunks(TXN_OPERATIONS) {
            let gets: Vec<TxnOp> = some
                .iter()
                .map(|name| TxnOp::get(self.keys.instance(name), None))
                .collect();
            let txn = Txn::new().when([self.guard()]).and_then(gets);
            let read = self.connection.txn("read registrations", txn).await?;
            if !read.succeeded() {
                return Err(EtcdError::Overtaken);
            }
            for answer in read.op_responses() {
                let TxnOpResponse::Get(mut got) = answer else {
                    continue;
                };
                for found in got.take_kvs() {
                    let name = found.key_str().ok().and_then(|key| self.keys.parse(key));
                    // What is not a registration of ours is overwritten by the next one.
                    records.extend(name.and_then(|name| keys::decode(&name, found.value())));
                }
            }
        }
        Ok(records)
    }
}

/// Our former lease when it lives and is as long as wanted, else a new one.
async fn hold(
    connection: &mut Connection,
    ttl: Duration,
    keys: &Keys,
    former: Option<i64>,
) -> Result<Held, EtcdError> {
    let mut kept = Vec::new();
    if let Some(lease) = former.filter(|lease| *lease != 0) {
        let renewed = connection.renew(lease).await;
        let at = Instant::now();
        match renewed {
            Ok(()) => {
                if let Some(present) = connection.lease(lease).await? {
                    kept = names(keys, &present);
                    if present.ttl == ttl {
                        return Ok(Held {
                            lease,
                            ttl,
                            found: Found::OnOurLease,
                            names: kept,
                            renewed: at,
                        });
                    }
                }
            }
            Err(EtcdError::LeaseGone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let (lease, ttl) = connection.grant(ttl).await?;
    Ok(Held {
        lease,
        ttl,
        found: Found::OnAFormerLease,
        names: kept,
        renewed: Instant::now(),
    })
}

fn names(keys: &Keys, lease: &Lease) -> Vec<InstanceName> {
    lease
        .keys
        .iter()
        .filter_map(|key| keys.parse(key))
        .collect()
}
