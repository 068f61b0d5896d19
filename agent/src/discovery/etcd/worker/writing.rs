//! The writes of a session: many callers in one transaction, each with its own answer.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{Worker, Write, leaves, say};
use crate::chain::chain;
use crate::discovery::etcd::agree::{amends, difference};
use crate::discovery::etcd::error::{EtcdError, Meaning};
use crate::discovery::etcd::session::{Operation, TXN_OPERATIONS};
use crate::discovery::{DiscoveryError, Outcome, Table};
use crate::instance::InstanceName;

impl Worker {
    /// Writes what is not on our lease as it should be.
    pub(super) async fn put_right(&mut self, attached: &BTreeSet<InstanceName>) {
        let mut table = self.table.clone();
        for (name, generation) in &self.leaving {
            table.deregister(name, *generation);
        }
        let operations = amends(&table, attached);
        if operations.is_empty() {
            return;
        }
        let count = operations.len();
        tracing::warn!(
            count,
            "keys in etcd are not as they should be; they are put right"
        );
        match self.apply(&operations).await {
            Ok(()) => {
                self.table = table;
                self.leaving.clear();
            }
            Err(error) if error.meaning() == Meaning::Refused => {
                tracing::warn!(error = chain(&error), "etcd refused a write");
            }
            Err(error) => self.lost(&error),
        }
    }

    /// Writes in transactions of etcd's size.
    async fn apply(&mut self, operations: &[Operation]) -> Result<(), EtcdError> {
        for (index, some) in operations.chunks(TXN_OPERATIONS).enumerate() {
            let Some(session) = &mut self.session else {
                return Err(self.present_error());
            };
            if let Err(error) = session.write(some).await {
                if index > 0 {
                    // A part is written: the next session finds out which.
                    self.session = None;
                    self.next_attempt = Instant::now();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes what waits, many callers in one transaction.
    pub(super) async fn serve(&mut self) {
        let mut group: Vec<Write> = Vec::new();
        let mut changes = 0;
        while let Some(next) = self.waiting.pop_front() {
            changes += next.changes.len();
            if !group.is_empty() && changes > TXN_OPERATIONS {
                self.waiting.push_front(next);
                break;
            }
            if !next.answer.is_closed() || next.changes.iter().all(leaves) {
                group.push(next);
            }
        }
        match self.write(&group).await {
            Ok((table, outcomes)) => {
                self.table = table;
                let registered = self.table.records().count();
                self.note(|health| health.registered = Some(registered));
                for (write, outcomes) in group.into_iter().zip(outcomes) {
                    say(write.answer, Ok(outcomes));
                }
            }
            Err(error) if error.meaning() == Meaning::Refused => self.refused(group, &error).await,
            Err(error) => {
                for write in group.into_iter().rev() {
                    self.waiting.push_front(write);
                }
                self.lost(&error);
            }
        }
    }

    async fn write(&mut self, group: &[Write]) -> Result<(Table, Vec<Vec<Outcome>>), EtcdError> {
        let mut table = self.table.clone();
        let mut touched = BTreeSet::new();
        let mut outcomes = Vec::with_capacity(group.len());
        for write in group {
            let of_one = write.changes.iter().map(|change| {
                touched.insert(change.instance().clone());
                change.clone().apply(&mut table)
            });
            outcomes.push(of_one.collect());
        }
        let operations = difference(&self.table, &table, &touched);
        self.apply(&operations).await?;
        Ok((table, outcomes))
    }

    /// Etcd will not have this transaction: each caller gets one of its own, so that one record that
    /// etcd does not take stands in nobody else's way.
    async fn refused(&mut self, group: Vec<Write>, error: &EtcdError) {
        let alone = group.len() == 1;
        for write in group {
            let answered = match alone {
                true => Err(error.clone()),
                false => match self.write(std::slice::from_ref(&write)).await {
                    Ok((table, outcomes)) => {
                        self.table = table;
                        Ok(outcomes.into_iter().flatten().collect())
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = &answered {
                self.note_leaving(&write.changes);
                if error.meaning() == Meaning::Broken {
                    self.lost(error);
                } else {
                    tracing::warn!(error = chain(error), "etcd refused a write");
                }
            }
            say(write.answer, answered.map_err(DiscoveryError::from));
        }
    }
}
