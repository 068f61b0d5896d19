//! The async face of the slots: two threads that work, callers that wait.
//!
//! Slots are made and observed by one thread, in order, and removed by another, because a removal
//! waits for grace periods of the kernel (20 ms and more) and a start must not wait behind it.
//! Removals that queue up while one is under way are done together. Calls for one instance never
//! overlap, whichever thread they go to. What was handed to a thread takes place, even if its caller
//! has gone.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::{Mutex as Turn, OwnedMutexGuard, oneshot};

use super::bridge::Bridges;
use super::error::NetworkError;
use super::link::LinkShape;
use super::netfilter::{Firewall, Masquerade, Table};
use super::netns;
use super::ports::{self, HostPort};
use super::slot::{ObservedSlot, Slot, Slots};
use crate::config;
use crate::instance::InstanceName;

/// How long a caller waits for a slot operation, queueing included.
const SLOT_DEADLINE: Duration = Duration::from_secs(30);

/// The network of this host. Dropping it ends its threads after the work that is queued.
pub struct Network {
    makers: mpsc::Sender<Make>,
    removers: mpsc::Sender<Removal>,
    turns: Mutex<HashMap<InstanceName, Arc<Turn<()>>>>,
}

/// An instance's turn, held until the operation has ended, even if nobody waits for it.
type MyTurn = OwnedMutexGuard<()>;

type Answer<T> = oneshot::Sender<Result<T, NetworkError>>;

enum Make {
    Slot {
        instance: InstanceName,
        grant: SlotGrant,
        turn: MyTurn,
        answer: Answer<Slot>,
    },
    Ports {
        all: Vec<(InstanceName, Ipv4Addr, Vec<HostPort>)>,
        answer: Answer<()>,
    },
    List {
        answer: Answer<Vec<ObservedSlot>>,
    },
}

struct Removal {
    instance: InstanceName,
    address: Option<Ipv4Addr>,
    turn: MyTurn,
    answer: Answer<()>,
}

/// What a slot is made with.
#[derive(Debug, Clone)]
pub struct SlotGrant {
    /// Its address.
    pub address: Ipv4Addr,
    /// The ports of the host that lead there.
    pub host_ports: Vec<HostPort>,
}

impl Network {
    /// The network whose namespaces live in `netns_dir`, which is made when its parent exists. The
    /// calling thread's network namespace is the host's.
    ///
    /// # Errors
    /// [`NetworkError::Netns`] when the directory can neither be made nor used, or no thread can be
    /// started; [`NetworkError::Kernel`] without a routing socket; [`NetworkError::Connected`] when
    /// slots are there from before `network.mode` was changed.
    pub fn new(settings: &config::Network, netns_dir: PathBuf) -> Result<Self, NetworkError> {
        let shape = LinkShape {
            group: settings.link_group,
            mtu: settings.mtu,
            gateway: settings.gateway,
            connects: settings.mode,
            bridge_ports: settings.bridge_ports,
        };
        let bridges = Arc::new(Bridges::default());
        netns::prepare_directory(&netns_dir)?;
        let (makers, to_make) = mpsc::channel();
        let (removers, to_remove) = mpsc::channel();
        let mut maker = Slots::open(&netns_dir, shape, bridges.clone())?;
        let remover = Slots::open(&netns_dir, shape, bridges)?;
        maker.begin()?;
        let firewall = Arc::new(Mutex::new(Firewall::new(Table {
            name: settings.table.clone(),
            owner: maker.owner(),
            pools: settings.pools.clone(),
            except: settings.masquerade_except.clone(),
            masquerade: match settings.masquerade {
                true => Masquerade::Yes,
                false => Masquerade::No,
            },
        })));
        let filter = firewall.clone();
        start("network-make", &netns_dir, move || {
            make(maker, &filter, &to_make)
        })?;
        start("network-remove", &netns_dir, move || {
            remove(remover, &firewall, &to_remove)
        })?;
        Ok(Self {
            makers,
            removers,
            turns: Mutex::default(),
        })
    }

    /// The slot of `instance` as granted: made, mended, or left alone when it is right. Its host
    /// ports lead there when this returns.
    ///
    /// # Errors
    /// [`NetworkError`]; a slot that could not be made leaves nothing behind, one that was there
    /// before is left as far as it was mended.
    pub async fn ensure_slot(
        &self,
        instance: &InstanceName,
        grant: SlotGrant,
    ) -> Result<Slot, NetworkError> {
        within("making a slot", async {
            let turn = self.turn(instance).await;
            let (answer, answered) = oneshot::channel();
            let job = Make::Slot {
                instance: instance.clone(),
                grant,
                turn,
                answer,
            };
            self.makers
                .send(job)
                .map_err(|_| NetworkError::WorkerEnded)?;
            answered.await.unwrap_or(Err(NetworkError::WorkerEnded))
        })
        .await
    }

    /// The host ports of all instances that have any, and nothing else of ours in the packet filter
    /// but the masquerade: what a starting agent makes true before anything else.
    ///
    /// # Errors
    /// [`NetworkError`]; the packet filter is as it was.
    pub async fn restore_ports(
        &self,
        all: Vec<(InstanceName, Ipv4Addr, Vec<HostPort>)>,
    ) -> Result<(), NetworkError> {
        within("restoring the host ports", async {
            let (answer, answered) = oneshot::channel();
            self.makers
                .send(Make::Ports { all, answer })
                .map_err(|_| NetworkError::WorkerEnded)?;
            answered.await.unwrap_or(Err(NetworkError::WorkerEnded))
        })
        .await
    }

    /// Removes the slot of `instance`: its host ports, the veth with its route and neighbour, the
    /// mount, the file, and what the kernel remembers of connections of `address`. Halves and nothing
    /// are fine.
    ///
    /// # Errors
    /// [`NetworkError`]; what is left is shown by [`Network::slots`].
    pub async fn remove_slot(
        &self,
        instance: &InstanceName,
        address: Option<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        within("removing a slot", async {
            let turn = self.turn(instance).await;
            self.removed(instance, address, turn).await
        })
        .await
    }

    async fn removed(
        &self,
        instance: &InstanceName,
        address: Option<Ipv4Addr>,
        turn: MyTurn,
    ) -> Result<(), NetworkError> {
        let (answer, answered) = oneshot::channel();
        let job = Removal {
            instance: instance.clone(),
            address,
            turn,
            answer,
        };
        self.removers
            .send(job)
            .map_err(|_| NetworkError::WorkerEnded)?;
        answered.await.unwrap_or(Err(NetworkError::WorkerEnded))
    }

    /// The same for a slot that was found, if `stray` still says so in the instance's turn: nobody
    /// makes it anew meanwhile. Says whether it was removed.
    ///
    /// # Errors
    /// [`NetworkError`]; what is left is shown by [`Network::slots`].
    pub async fn remove_stray(
        &self,
        slot: &ObservedSlot,
        stray: impl FnOnce() -> bool,
    ) -> Result<bool, NetworkError> {
        within("removing a stray slot", async {
            let turn = self.turn(&slot.instance).await;
            if !stray() {
                return Ok(false);
            }
            self.removed(&slot.instance, slot.address(), turn).await?;
            Ok(true)
        })
        .await
    }

    /// What the host shows of this agent's slots, halves included, ordered by instance. Files in the
    /// directory that are no instance's name, and links of others, are not ours and not listed.
    ///
    /// # Errors
    /// [`NetworkError`] when the directory or the kernel's lists cannot be read.
    pub async fn slots(&self) -> Result<Vec<ObservedSlot>, NetworkError> {
        within("listing the slots", async {
            let (answer, answered) = oneshot::channel();
            self.makers
                .send(Make::List { answer })
                .map_err(|_| NetworkError::WorkerEnded)?;
            answered.await.unwrap_or(Err(NetworkError::WorkerEnded))
        })
        .await
    }

    async fn turn(&self, instance: &InstanceName) -> MyTurn {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(instance.clone()).or_default())
        };
        turn.lock_owned().await
    }
}

async fn within<T>(
    operation: &'static str,
    work: impl Future<Output = Result<T, NetworkError>>,
) -> Result<T, NetworkError> {
    let late = NetworkError::Deadline {
        operation,
        after: SLOT_DEADLINE,
    };
    tokio::time::timeout(SLOT_DEADLINE, work)
        .await
        .unwrap_or(Err(late))
}

fn start(
    name: &str,
    netns_dir: &Path,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), NetworkError> {
    let started: io::Result<_> = thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(drop).map_err(|source| NetworkError::Netns {
        operation: "start a worker thread for",
        path: netns_dir.to_owned(),
        source,
    })
}

fn make(mut slots: Slots, firewall: &Mutex<Firewall>, jobs: &mpsc::Receiver<Make>) {
    for job in jobs {
        match job {
            Make::Slot {
                instance,
                grant,
                turn,
                answer,
            } => {
                let made = make_slot(&mut slots, firewall, &instance, &grant);
                drop(turn);
                answer_to(answer, made);
            }
            Make::Ports { all, answer } => answer_to(answer, lock(firewall).restore(all)),
            Make::List { answer } => answer_to(answer, slots.observe()),
        }
    }
}

/// The ports last: they lead to what is there.
fn make_slot(
    slots: &mut Slots,
    firewall: &Mutex<Firewall>,
    instance: &InstanceName,
    grant: &SlotGrant,
) -> Result<Slot, NetworkError> {
    for port in &grant.host_ports {
        ports::probe(port).map_err(|source| NetworkError::HostPortTaken {
            port: *port,
            source,
        })?;
    }
    let slot = slots.ensure(instance, grant.address)?;
    lock(firewall).publish(instance, grant.address, &grant.host_ports)?;
    Ok(slot)
}

fn remove(mut slots: Slots, firewall: &Mutex<Firewall>, jobs: &mpsc::Receiver<Removal>) {
    while let Ok(first) = jobs.recv() {
        let batch: Vec<Removal> = std::iter::once(first).chain(jobs.try_iter()).collect();
        let instances: Vec<_> = batch.iter().map(|job| job.instance.clone()).collect();
        // Nothing is led to what is about to go.
        let withdrawn: Vec<_> = instances
            .iter()
            .map(|instance| lock(firewall).withdraw(instance))
            .collect();
        let removed = slots.remove_all(&instances);
        let freed: BTreeSet<Ipv4Addr> = batch.iter().filter_map(|job| job.address).collect();
        if let Err(error) = lock(firewall).forget_addresses(freed) {
            // An address is quarantined for longer than most entries live.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "connections of freed addresses are still tracked");
        }
        for ((job, withdrawn), removed) in batch.into_iter().zip(withdrawn).zip(removed) {
            drop(job.turn);
            answer_to(job.answer, withdrawn.and(removed));
        }
    }
}

fn lock(firewall: &Mutex<Firewall>) -> MutexGuard<'_, Firewall> {
    firewall.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers. An error that nobody waits for any more is said here.
fn answer_to<T>(answer: Answer<T>, result: Result<T, NetworkError>) {
    if let Err(Err(error)) = answer.send(result) {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%error, cause, "a slot operation failed after its caller had gone");
    }
}
