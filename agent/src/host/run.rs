//! The daemon: `nodeagent run`.
//!
//! `READY=1` is said when the journal is loaded and the API answers; observation goes on behind it.
//! SIGTERM and SIGINT end the agent; containers and registrations stay.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nodeagent_systemd::{Service, ServiceError, State};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::adopt;
use super::answers;
use super::backends;
use super::epoch::Epoch;
use super::etc;
use super::exec;
use super::executor::Executor;
use super::logging;
use super::node::{Identity, Node, Pools};
use super::place::{self, PlaceError};
use super::route;
use super::sentence;
use super::shutdown::Departure;
use super::sockets::{self, Sockets, SocketsError};
use super::upkeep;
use super::watch as events;
use super::watchdog;
use crate::alarm::Alarms;
use crate::api::Feed;
use crate::app::{HostTerms, NetworkMode};
use crate::chain::chain;
use crate::check::kernel;
use crate::config::{Requirement, Settings};
use crate::discovery::{
    Backends, Discovery, DiscoveryError, EtcdDiscovery, FileDiscovery, Metered,
};
use crate::gate::{Directories, DirectoryError, Gate, GateError};
use crate::images::{Images, OpenError};
use crate::instance::spec::HostFacts;
use crate::journal::{Journal, JournalError};
use crate::metrics::Metrics;
use crate::network::{self, Forwards, Ledger, Network, NetworkError};
use crate::pool::{Effects, Shared, begin_steady_time, read_clocks};
use crate::runtime::{Containerd, RuntimeError};
use crate::sys;
use crate::task::Index;

/// Creations at a time that activations may cause: more only queue in the kernel and in runc.
const CREATIONS: usize = 8;

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Files that containers can reach could not be opened safely.
    #[error(
        "openat2(2) is refused to the agent, which opens files of containers by it: a kernel older than 5.6, or a sandbox (RestrictSUIDSGID= or SystemCallFilter= of the unit)"
    )]
    Openat2(#[source] std::io::Error),
    /// The runtime directory.
    #[error("runtime directory {} cannot be made", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The directories of the instances, or container-init.
    #[error(transparent)]
    Instances(#[from] DirectoryError),
    /// What the service manager gave.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The sockets of API and gate.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// The cgroup of the containers.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The host was to shut down, and did not.
    #[error(
        "the host was to shut down and did not: registrations were withdrawn; starting again puts them back"
    )]
    StillUp,
    /// The gate.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A discovery backend.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// The settings of containerd.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Our own store of images.
    #[error(transparent)]
    Images(#[from] OpenError),
    /// Signals.
    #[error("signals cannot be handled")]
    Signals(#[source] std::io::Error),
}

impl RunError {
    /// Whether starting again with the same configuration and units ends the same way.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Sockets(SocketsError::Unfit { .. })
                | Self::Journal(JournalError::Newer { .. })
                | Self::Network(NetworkError::Connected { .. })
                | Self::Openat2(_)
        )
    }
}

/// `nodeagent run`, as a process: logs to stderr, a
/// runtime, [`run_with`] what the service manager gave.
///
/// # Errors
/// [`RunError`].
pub fn daemon(settings: Settings) -> anyhow::Result<()> {
    logging::start();
    // Before the first thread, as it changes the environment.
    let service = Service::from_environment().map_err(RunError::Service)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(run_with(settings, service, |executor| executor))?)
}

/// Runs the agent until SIGTERM or SIGINT, with effects of the caller's own around the executor.
///
/// # Errors
/// [`RunError`], before `READY=1`; containers are not touched by a start that fails.
pub async fn run_with<E: Effects>(
    mut settings: Settings,
    service: Service,
    wrap: impl FnOnce(Executor) -> E,
) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let notifier = Arc::new(service.notifier);
    let say = |states: &[State<'_>]| {
        if let Err(error) = notifier.notify(states) {
            tracing::warn!(%error, "systemd was not told");
        }
    };
    // A sandbox may refuse it with ENOSYS, whatever the kernel has: RestrictSUIDSGID= of a unit does.
    kernel::beneath().map_err(|errno| RunError::Openat2(errno.into()))?;
    let (journal, recovered) = Journal::open(&settings.paths.state, settings.tasks.keep_results)?;
    let journal = Arc::new(journal);
    let boot_id = sys::boot_id();
    let same_boot = recovered.boot_id.as_deref() == Some(boot_id.as_str());
    // Before the first look at a clock.
    begin_steady_time(recovered.clock_offset_ms.filter(|_| same_boot));
    let identity = Identity {
        boot_id: boot_id.clone(),
        started_ms: read_clocks().wall_ms,
    };
    let place = place::find(&settings.runtime).await?;
    let configured = std::mem::replace(&mut settings.runtime.cgroup_parent, place.parent);
    let settings = Arc::new(settings);
    std::fs::create_dir_all(&settings.paths.runtime).map_err(|source| RunError::Directory {
        path: settings.paths.runtime.clone(),
        source,
    })?;
    let Sockets {
        api: server,
        gate: socket,
    } = sockets::open(&settings, service.passed, &notifier)?;
    let (notices_to, notices) = mpsc::unbounded_channel();
    // Containers of a time before the scope, or after it, are where they were made.
    let parents = [settings.runtime.cgroup_parent.as_str(), &configured];
    let gate = Gate::open(socket, &parents, notices_to)?;
    for row in recovered
        .instances
        .iter()
        .filter(|row| row.released_ms.is_none())
    {
        gate.expect(&adopt::container_of(row));
    }
    let host_address = network::host_address(&settings.network)?;
    match network::forwarding(settings.network.forwarding)? {
        Forwards::Already => {}
        Forwards::SwitchedOn => {
            tracing::info!("IPv4 forwarding was off and is switched on (network.forwarding)")
        }
        Forwards::No => tracing::warn!(
            "IPv4 forwarding is off: instances reach this host only, and host ports are reached from this host only; set net.ipv4.ip_forward = 1, or network.forwarding = \"enable\""
        ),
    }
    match etc::resolver(NetworkMode::Routed, &settings) {
        Ok(resolver) if resolver.has_nameservers() => {}
        Ok(_) => tracing::warn!(
            file = %settings.network.resolv_conf.display(),
            "the host names no name server that instances reach: apps need dnsConfig, or network.resolv_conf another file"
        ),
        Err(error) => tracing::warn!(
            error = chain(&error),
            "instances cannot be told where to ask for names"
        ),
    }
    let metrics = Arc::new(Metrics::default());
    let runtime = Containerd::connect(
        &settings.containerd,
        &settings.runtime,
        place.shims.as_deref(),
    )
    .await?;
    let executor = Executor {
        host_address,
        journal: journal.clone(),
        images: Images::open(runtime.clone(), &settings.images)?,
        runtime,
        gate,
        directories: Arc::new(Directories::open(
            &settings.paths.state,
            &settings.runtime.container_init,
        )?),
        network: Arc::new(Network::new(
            &settings.network,
            settings.paths.runtime.join("netns"),
        )?),
        discovery: Arc::new(open_backends(&metrics, &settings, &recovered.agent_id)?),
        facts: HostFacts::detect(),
        settings: settings.clone(),
        predecessors: Arc::default(),
    };
    let terms = HostTerms {
        propagation_bound: executor.discovery.propagation_bound(),
        reachable: settings.network.reachable,
        host_address,
    };
    let shutdown = CancellationToken::new();
    let shared = Arc::new(Shared {
        effects: Arc::new(wrap(executor.clone())),
        ledger: Arc::new(Mutex::new(Ledger::new(&settings.network))),
        index: Arc::new(Index::default()),
        alarms: Arc::new(Alarms::default()),
        moved: watch::Sender::new(()),
        metrics: metrics.clone(),
        refill: Arc::new(Semaphore::new(settings.refill.concurrency)),
        creations: Arc::new(Semaphore::new(CREATIONS)),
        tracker: TaskTracker::new(),
        shutdown: shutdown.clone(),
    });
    backends::watch(&executor.discovery, &shared.alarms, &shutdown);
    let epoch = Arc::new(Epoch::new(recovered.epoch, recovered.floor, None));
    if let Some(loss) = recovered.loss.clone() {
        epoch.lose(loss, &shared.alarms);
    }
    let pools = Arc::new(Pools::default());
    let (observed_to, observed) = watch::channel(false);
    let feed = Arc::new(Feed::new(identity.started_ms));
    let node = Arc::new(Node {
        settings: settings.clone(),
        identity,
        journal: journal.clone(),
        executor: executor.clone(),
        epoch: epoch.clone(),
        pools: pools.clone(),
        shared: shared.clone(),
        terms,
        unverified: recovered
            .pools
            .iter()
            .map(|pool| answers::unverified(&recovered, pool))
            .collect(),
        observed,
        applying: tokio::sync::Mutex::default(),
        feed: feed.clone(),
        directories: executor.directories.clone(),
        gate: executor.gate.clone(),
        metrics,
    });
    // Who repeats the id of an interrupted task waits for its end, from the first request on.
    for task in &recovered.open_tasks {
        shared
            .index
            .resume(&task.app, &task.context.task_id, &task.hash);
    }
    let serving = tokio::spawn(server.serve(node.clone(), shutdown.clone()));
    if let Some(within) = service.watchdog {
        let journal = node.journal.clone();
        tokio::spawn(watchdog::run(
            within,
            notifier.clone(),
            journal,
            shutdown.clone(),
        ));
    }
    shared
        .tracker
        .spawn(events::run(node.clone(), feed, shutdown.clone()));
    let known = recovered
        .instances
        .iter()
        .filter(|row| row.released_ms.is_none())
        .count();
    say(&[
        State::Ready,
        State::Status(&format!("observing {known} instances")),
    ]);
    tracing::info!(instances = known, pools = recovered.pools.len(), socket = %settings.paths.api_socket.display(), "ready");
    let exits = executor.runtime.exits();
    let departure = Departure {
        notifier: notifier.clone(),
        discovery: executor.discovery.clone(),
        shutdown: shutdown.clone(),
        effects: shared.tracker.clone(),
    };
    let departure = async {
        if place::is_booted() {
            departure.wait().await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let adopting = async {
        adopt::adopt(
            &executor, &shared, &pools, &terms, &epoch, &boot_id, recovered,
        )
        .await;
        // What ended meanwhile waits in both channels; from now on it finds its pool.
        // A task of its own: what it wakes for is no turn of this future.
        let routing = tokio::spawn(route::run(
            pools.clone(),
            executor.directories.clone(),
            executor.predecessors.clone(),
            notices,
            exits,
            shutdown.clone(),
        ));
        observed_to.send_replace(true);
        if notifier.is_heard() {
            let node = node.clone();
            tokio::spawn(sentence::run(node, notifier.clone(), shutdown.clone()));
        }
        tokio::spawn(upkeep::run(node, shutdown.clone()));
        exec::end_leftovers(&executor);
        tracing::info!(instances = known, "observed");
        sys::give_memory_back();
        match routing.await {
            Err(error) => tracing::error!(%error, "the routing of exits ended by a panic"),
            // Everything rests: the host is being drained.
            Ok(()) => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        () = adopting => Ok(()),
        () = departure => return Err(RunError::StillUp),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        damaged = journal.damaged() => Err(RunError::Journal(damaged)),
    };
    say(&[
        State::Stopping,
        State::Status("stopping; containers and registrations stay"),
    ]);
    shutdown.cancel();
    if let Err(error) = serving.await {
        tracing::error!(%error, "the api ended by a panic");
    }
    tracing::info!("stopped; containers and registrations stay");
    ended
}

fn open_backends(
    metrics: &Metrics,
    settings: &Settings,
    agent_id: &str,
) -> Result<Backends, DiscoveryError> {
    let mut backends: Vec<(Arc<dyn Discovery>, Requirement)> = Vec::new();
    if let Some(file) = &settings.discovery.file {
        let opened = Arc::new(FileDiscovery::open(file)?);
        let counted = Metered::new(opened, metrics.backend("file"));
        backends.push((Arc::new(counted), file.requirement));
    }
    if let Some(etcd) = &settings.discovery.etcd {
        let instruments = metrics.backend("etcd");
        let opened = EtcdDiscovery::open(etcd, &settings.host, agent_id, Arc::clone(&instruments));
        let counted = Metered::new(Arc::new(opened), instruments);
        backends.push((Arc::new(counted), etcd.requirement));
    }
    Ok(Backends::new(backends))
}
