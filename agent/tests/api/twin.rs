//! An in-memory host: targets, sequence numbers, idempotent task ids and trails, without containers.
//!
//! Its clock stands still, so that what it says can be compared byte for byte. Apps whose name says
//! so behave badly: `slow` never ends, `broken` fails, `halfway` ends partial, `defect` panics.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nodeagent::api::v1::*;
use nodeagent::api::{
    Client, Deletion, ExecInput, ExecOutput, ExecSession, Feed, Host, Limits, Log, LogRequest,
    Received, Server, TaskFilter,
};
use nodeagent::metrics::{Facts, Metrics, Page, render};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// What the core would have seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    pub app: String,
    /// Of a restart.
    pub instance: Option<String>,
    pub verb: Verb,
    pub request: TaskRequest,
    pub received: Received,
    pub wait: Duration,
}

#[derive(Default)]
struct State {
    accepted: bool,
    apps: BTreeMap<String, (String, Pool)>,
    tasks: Vec<(Submitted, Task)>,
    submitted: Vec<Submitted>,
    answered: Vec<(String, Duration)>,
    finished: u32,
    alarms: Vec<Alarm>,
    images: Vec<ImageDocument>,
}

/// The in-memory host.
pub struct Twin {
    state: Mutex<State>,
    changed: Notify,
    pub feed: Arc<Feed>,
    /// Told when a command's session is gone.
    pub left: Arc<Notify>,
    /// Lets submissions of `slow` end.
    pub release: CancellationToken,
}

pub fn at(second: u32) -> Timestamp {
    format!("2026-11-22T13:31:{second:02}.042Z")
        .parse()
        .unwrap()
}

fn problem(code: ProblemCode, detail: &str) -> Problem {
    Problem::new(code, detail)
}

impl Twin {
    pub fn with_apps(names: &[&str]) -> Arc<Self> {
        let twin = Self {
            state: Mutex::default(),
            changed: Notify::new(),
            feed: Arc::new(Feed::new(0xfeed)),
            left: Arc::default(),
            release: CancellationToken::new(),
        };
        for name in names {
            twin.state
                .lock()
                .unwrap()
                .apps
                .insert((*name).to_owned(), new_app(name, ""));
        }
        Arc::new(twin)
    }

    pub fn submitted(&self) -> Vec<Submitted> {
        self.state.lock().unwrap().submitted.clone()
    }

    pub fn answered(&self) -> Vec<(String, Duration)> {
        self.state.lock().unwrap().answered.clone()
    }

    pub fn finished(&self) -> u32 {
        self.state.lock().unwrap().finished
    }

    pub fn set_alarm(&self, app: &str, alarm: &str) {
        self.state
            .lock()
            .unwrap()
            .apps
            .get_mut(app)
            .unwrap()
            .1
            .alarm = Some(alarm.to_owned());
    }

    pub fn raise(&self, alarm: Alarm) {
        self.state.lock().unwrap().alarms.push(alarm);
    }

    /// Waits until `claim` holds, at most 5 s.
    pub async fn until(&self, what: &str, claim: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if claim(self) {
                    return;
                }
                changed.await;
            }
        };
        assert!(
            tokio::time::timeout(Duration::from_secs(5), wait)
                .await
                .is_ok(),
            "never came true: {what}"
        );
    }

    fn take_up(&self, submitted: &Submitted) -> Result<Task, Problem> {
        let mut state = self.state.lock().unwrap();
        state.submitted.push(submitted.clone());
        let id = submitted.request.task_id.clone().unwrap();
        let Some((_, pool)) = state.apps.get(&submitted.app).cloned() else {
            return Err(Problem::not_found("app", &submitted.app));
        };
        if let Some((earlier, task)) = state.tasks.iter().find(|(_, task)| task.task_id == id) {
            // Whether the caller vouches for its id is no part of what it asks.
            let asked = |submitted: &Submitted| TaskRequest {
                new_epoch: None,
                ..submitted.request.clone()
            };
            let same = (&earlier.app, earlier.verb, asked(earlier))
                == (&submitted.app, submitted.verb, asked(submitted));
            if !same {
                let asked = format!("{} {} --to {}", earlier.verb, earlier.app, task.to);
                return Err(
                    problem(ProblemCode::TaskConflict, &format!("{id} was: {asked}"))
                        .about(format!("/v1/tasks/{id}")),
                );
            }
            let current = Some(current(&pool));
            return Ok(Task {
                replayed: true,
                current,
                ..task.clone()
            });
        }
        if submitted
            .request
            .expect_seq
            .is_some_and(|seq| seq != pool.target_seq)
        {
            let detail = format!(
                "expected {}, the target has {}",
                submitted.request.expect_seq.unwrap(),
                pool.target_seq
            );
            return Err(problem(ProblemCode::SeqMismatch, &detail).with_current(current(&pool)));
        }
        let pool = &mut state.apps.get_mut(&submitted.app).unwrap().1;
        let to = submitted.request.to.unwrap_or(0);
        let target = match submitted.verb {
            Verb::Activate => pool.target.max(to),
            Verb::Deactivate => pool.target.min(to),
            Verb::Scale => to,
            Verb::Roll | Verb::Restart => pool.target,
        };
        if target != pool.target {
            pool.target_seq += 1;
        }
        pool.target = target;
        let mut task = task_of(submitted, pool);
        match submitted.app.as_str() {
            "slow" => {
                (task.state, task.finished_at) = (TaskState::Running, None);
                task.instances
                    .iter_mut()
                    .for_each(|i| i.state = InstanceState::Starting);
            }
            "broken" => fail(&mut task, 0, TaskState::Failed),
            "halfway" => fail(&mut task, 1, TaskState::Partial),
            "superseded" => task.state = TaskState::Superseded,
            _ => pool.active = target,
        }
        task.active = pool.active;
        state.tasks.push((submitted.clone(), task.clone()));
        Ok(task)
    }
}

fn fail(task: &mut Task, from: usize, state: TaskState) {
    task.state = state;
    task.detail = Some("3 starts in a row failed, the pool waits before the next".to_owned());
    for instance in &mut task.instances[from..] {
        instance.state = InstanceState::Failed;
        instance.address = None;
        instance.error = Some(InstanceError {
            code: "readiness_timeout".to_owned(),
            detail: "not ready within 30 s; it said \u{1b}[31mno route\u{1b}[0m".to_owned(),
        });
    }
}

fn current(pool: &Pool) -> Current {
    Current {
        target: pool.target,
        target_seq: pool.target_seq,
        active: pool.active,
        starting: pool.starting,
        armed: pool.armed,
        draining: pool.draining,
        failed: pool.failed,
    }
}

fn task_of(submitted: &Submitted, pool: &Pool) -> Task {
    let changed = pool.active.min(pool.target)..pool.active.max(pool.target);
    let instance = |ordinal: u32| TaskInstance {
        name: format!("{}-{ordinal}", submitted.app),
        state: if pool.target > pool.active {
            InstanceState::Active
        } else {
            InstanceState::Stopped
        },
        from: if pool.target > pool.active {
            StartedFrom::Armed
        } else {
            StartedFrom::None
        },
        generation: 4,
        address: Some(format!("10.88.0.{}", ordinal + 2)),
        port: Some(8080),
        error: None,
    };
    Task {
        task_id: submitted.request.task_id.clone().unwrap(),
        app: submitted.app.clone(),
        verb: submitted.verb,
        to: submitted.request.to.unwrap_or(pool.target),
        step: (submitted.verb == Verb::Roll).then_some(1),
        revision: (submitted.verb == Verb::Roll).then(|| pool.revision.clone()),
        instance: submitted.instance.clone(),
        process: submitted.request.process.clone(),
        state: TaskState::Done,
        target: pool.target,
        target_seq: pool.target_seq,
        replayed: false,
        instances: match &submitted.instance {
            Some(name) => vec![TaskInstance {
                name: name.clone(),
                state: InstanceState::Active,
                from: StartedFrom::None,
                generation: 5,
                address: Some("10.88.0.2".to_owned()),
                port: Some(8080),
                error: None,
            }],
            None => changed.map(instance).collect(),
        },
        active: pool.active,
        created_at: at(55),
        finished_at: Some(at(56)),
        elapsed_ms: 12.4,
        detail: None,
        current: None,
    }
}

fn new_app(name: &str, manifest: &str) -> (String, Pool) {
    let pool = Pool {
        app: name.to_owned(),
        revision: "3f2a91c0d4e5b6a79881".to_owned(),
        labels: [("set".to_owned(), "a".to_owned())].into(),
        target: 0,
        target_seq: 7,
        active: 0,
        starting: 0,
        armed: 2,
        arming: 0,
        draining: 0,
        failed: 0,
        warm: WarmTargets { armed: 2 },
        alarm: None,
        instances: Vec::new(),
    };
    (manifest.to_owned(), pool)
}

fn image(reference: &str, pinned: bool) -> ImageDocument {
    let layer = |digest: &str, from: &str, sender: Option<&str>, fetched_bytes| LayerReceipt {
        digest: format!("sha256:{}", digest.repeat(64)),
        bytes: 300_000_000,
        from: from.to_owned(),
        sender: sender.map(str::to_owned),
        fetched_bytes,
        fetch_seconds: 0.8,
        unpack_seconds: 2.25,
    };
    ImageDocument {
        reference: reference.to_owned(),
        digest: format!("sha256:{}", "c".repeat(64)),
        state: ImageState::Ready,
        pinned,
        in_use: false,
        stable: false,
        bytes: 600_000_000,
        layers: 2,
        ready_at: at(10),
        used_at: at(10),
        receipt: Some(ImageReceipt {
            seconds: 3.5,
            fetched_bytes: 300_000_000,
            layers: vec![
                layer("d", "unpacked", None, 0),
                layer("e", "registry", Some("r.lan"), 300_000_000),
            ],
        }),
    }
}

fn instances_of(pool: &Pool) -> Vec<Instance> {
    let instance = |ordinal: u32| {
        let active = ordinal < pool.active;
        Instance {
            name: format!("{}-{ordinal}", pool.app),
            state: if active {
                InstanceState::Active
            } else {
                InstanceState::Armed
            },
            generation: 4,
            create_generation: Some(3),
            revision: pool.revision.clone(),
            address: Some(format!("10.88.0.{}", ordinal + 2)),
            host_ports: Vec::new(),
            task_id: active.then(|| "peak-7".to_owned()),
            since: at(10),
            error: None,
        }
    };
    (0..pool.active + pool.armed).map(instance).collect()
}

impl Host for Twin {
    async fn submit(
        &self,
        name: &str,
        verb: Verb,
        request: TaskRequest,
        received: Received,
        wait: Duration,
    ) -> Result<Task, Problem> {
        assert_ne!(name, "defect", "the twin panics for this app");
        let (app, instance) = match verb {
            Verb::Restart => (name.rsplit_once('-').unwrap().0, Some(name.to_owned())),
            _ => (name, None),
        };
        let submitted = Submitted {
            app: app.to_owned(),
            instance,
            verb,
            request,
            received,
            wait,
        };
        let task = self.take_up(&submitted);
        self.changed.notify_waiters();
        if matches!(&task, Ok(task) if task.state == TaskState::Running) {
            // The wait's end, or the release: whichever comes first.
            tokio::time::timeout(wait, self.release.cancelled())
                .await
                .ok();
        }
        self.state.lock().unwrap().finished += 1;
        self.changed.notify_waiters();
        task
    }

    fn answered(&self, task_id: &str, after: Duration) {
        self.state
            .lock()
            .unwrap()
            .answered
            .push((task_id.to_owned(), after));
        self.changed.notify_waiters();
    }

    async fn task(&self, id: &str) -> Result<Task, Problem> {
        let state = self.state.lock().unwrap();
        let found = state.tasks.iter().find(|(_, task)| task.task_id == id);
        found
            .map(|(_, task)| task.clone())
            .ok_or_else(|| Problem::not_found("task", id))
    }

    async fn trail(&self, id: &str) -> Result<Trail, Problem> {
        let task = self.task(id).await?;
        let us = |ms: f64| (ms * 1000.0).round() / 1000.0;
        let step = |instance: Option<&str>, name: &str, start_ms, duration_ms| Step {
            instance: instance.map(str::to_owned),
            name: name.to_owned(),
            attempt: 1,
            start_ms: us(start_ms),
            duration_ms: us(duration_ms),
            outcome: StepOutcome::Ok,
            error: None,
        };
        let mut steps = vec![step(None, "intent", 0.1, 0.3)];
        for (n, instance) in task.instances.iter().enumerate() {
            let (name, late) = (Some(instance.name.as_str()), n as f64 * 0.05);
            steps.push(step(name, "start", 0.4 + late, 0.9 + late));
            steps.push(step(name, "ready", 1.3 + 2.0 * late, 8.0));
            steps.push(step(name, "register", 9.3 + 2.0 * late, 1.2));
        }
        if let Some(error) = task.instances.iter().find_map(|i| i.error.clone()) {
            let last = steps.last_mut().unwrap();
            (last.attempt, last.outcome, last.error) = (2, StepOutcome::Failed, Some(error.detail));
        }
        steps.push(step(None, "outcome", 11.8, 0.4));
        steps.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms));
        Ok(Trail {
            task_id: task.task_id,
            app: task.app,
            verb: task.verb,
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
            state: task.state,
            started_at: at(55),
            answer_ms: task.finished_at.map(|_| 12.4),
            steps,
        })
    }

    async fn tasks(&self, filter: TaskFilter) -> Result<TaskList, Problem> {
        let state = self.state.lock().unwrap();
        let asked = |task: &&Task| {
            filter.app.as_ref().is_none_or(|app| *app == task.app)
                && (filter.states.is_empty() || filter.states.contains(&task.state))
        };
        let tasks = state.tasks.iter().rev().map(|(_, task)| task);
        let tasks = tasks.filter(asked).take(filter.limit as usize);
        let tasks = tasks.map(TaskSummary::from).collect();
        Ok(TaskList { tasks })
    }

    async fn status(&self) -> Result<Status, Problem> {
        let state = self.state.lock().unwrap();
        let pool = |(_, pool): &(String, Pool)| Pool {
            instances: instances_of(pool),
            ..pool.clone()
        };
        Ok(Status {
            host: HostStatus {
                id: "h1".to_owned(),
                fleet: "default".to_owned(),
                version: "0.1.0".to_owned(),
                boot_id: "5b0d6d8e-0000-4000-8000-000000000001".to_owned(),
                epoch: 1,
                ready: true,
                started_at: at(0),
                containerd: ContainerdStatus {
                    reachable: Reachability::Yes,
                    version: Some("1.6.20".to_owned()),
                },
                discovery: vec![file_backend(), etcd_backend()],
            },
            pools: state.apps.values().map(pool).collect(),
            alarms: state.alarms.clone(),
        })
    }

    async fn images(&self) -> Result<ImageList, Problem> {
        let images = self.state.lock().unwrap().images.clone();
        Ok(ImageList {
            images,
            pulls: Vec::new(),
            verification: None,
        })
    }

    async fn pull_image(&self, request: ImageRequest) -> Result<ImageDocument, Problem> {
        if request.reference.ends_with(":missing") {
            let detail = "registry r.lan has no manifest missing in repository web";
            return Err(Problem::new(ProblemCode::ImageRefused, detail));
        }
        let image = image(&request.reference, request.pin);
        self.state.lock().unwrap().images.push(image.clone());
        Ok(image)
    }

    async fn pin_image(&self, reference: &str, pinned: bool) -> Result<ImageDocument, Problem> {
        let mut state = self.state.lock().unwrap();
        let mut images = state.images.iter_mut();
        let image = images.find(|image| image.reference == reference);
        let image = image.ok_or_else(|| Problem::not_found("image", reference))?;
        image.pinned = pinned;
        Ok(image.clone())
    }

    async fn verify_images(&self, _: VerifyRequest) -> Result<VerifyResult, Problem> {
        Ok(VerifyResult {
            right: 4,
            bytes: 600_000_000,
            absent: 1,
            damaged: vec![DamagedBlob {
                digest: format!("sha256:{}", "a".repeat(64)),
                got: format!("sha256:{}", "b".repeat(64)),
                images: vec!["r.lan/web:1".to_owned()],
            }],
            unpacked: UnpackedResult {
                right: 2,
                not_compared: vec![
                    not_compared(WhyNotCompared::BlobAbsent, None),
                    not_compared(WhyNotCompared::Failed, Some("no space left on device")),
                ],
                damaged: vec![
                    damaged_layer("c", DamagedState::UnpackedAnew),
                    DamagedLayer {
                        more: true,
                        used_by: vec!["web-1.g3".to_owned()],
                        ..damaged_layer("d", DamagedState::Used)
                    },
                    DamagedLayer {
                        error: Some("layer sha256:ee is not in the store".to_owned()),
                        ..damaged_layer("e", DamagedState::Gone)
                    },
                    DamagedLayer {
                        error: Some("containerd did not answer".to_owned()),
                        ..damaged_layer("f", DamagedState::Kept)
                    },
                ],
            },
        })
    }

    async fn evict_images(&self, request: EvictRequest) -> Result<EvictResult, Problem> {
        Ok(EvictResult {
            dry_run: request.dry_run,
            evicted: vec![EvictedImage {
                reference: "r.lan/old:1".to_owned(),
                freed_bytes: 1 << 30,
            }],
            kept: vec![KeptImage {
                reference: "r.lan/web:1".to_owned(),
                why: "inUse".to_owned(),
            }],
            freed_bytes: 1 << 30,
            short_bytes: request.bytes.unwrap_or(0).saturating_sub(1 << 30),
        })
    }

    async fn stable_images(&self) -> Result<StableList, Problem> {
        Ok(StableList {
            apps: vec![app_images()],
            listed: vec![ListedImage {
                image: "r.lan/base:1".to_owned(),
                reference: Some(format!("r.lan/base:1@sha256:{}", "c".repeat(64))),
                ready: true,
                error: None,
                drift: None,
            }],
            unreadable: None,
        })
    }

    async fn set_stable_image(&self, request: StableRequest) -> Result<AppImages, Problem> {
        if request.app != "web" {
            return Err(Problem::not_found("app", &request.app));
        }
        Ok(app_images())
    }

    async fn import_images(&self, request: ImportRequest) -> Result<ImportResult, Problem> {
        if request.path.ends_with("broken.tar") {
            let detail = "index.json is missing, which the layout names";
            return Err(Problem::new(ProblemCode::ImageRefused, detail));
        }
        let name = request.reference.unwrap_or("r.lan/web:1".to_owned());
        Ok(ImportResult {
            images: vec![image(&name, request.pin)],
        })
    }

    async fn export_images(&self, request: ExportRequest) -> Result<ExportResult, Problem> {
        Ok(ExportResult {
            references: request.references,
            path: request.path,
            bytes: 600_000_000,
        })
    }

    async fn journal(&self) -> Result<JournalDocument, Problem> {
        let lost = !self.state.lock().unwrap().accepted;
        Ok(JournalDocument {
            epoch: 2,
            state: if lost {
                JournalState::Lost
            } else {
                JournalState::Sound
            },
            reason: lost.then(|| "journal.db is missing".to_owned()),
            set_aside: None,
            since: lost.then(|| at(7)),
        })
    }

    async fn accept_journal(&self) -> Result<JournalDocument, Problem> {
        self.state.lock().unwrap().accepted = true;
        self.journal().await
    }

    async fn metrics(&self) -> Page {
        render(&Metrics::default(), &Facts::default())
    }

    fn feed(&self) -> Arc<Feed> {
        Arc::clone(&self.feed)
    }

    async fn log(&self, instance: &str, request: LogRequest) -> Result<Log, Problem> {
        if instance != "web-0" {
            return Err(Problem::not_found("instance", instance));
        }
        let (pieces, receiver) = mpsc::channel(4);
        let said = format!("{} says \u{1b}[31mred\u{1b}[0m\n", request.process);
        pieces.try_send(Ok(said.into())).unwrap();
        if request.follow {
            // Goes on until the reader leaves.
            tokio::spawn(async move { pieces.closed().await });
        }
        Ok(Log {
            container: "web-0.g1".to_owned(),
            pieces: receiver,
        })
    }

    /// `web-0` has all there is, `web-1` is frozen, and the init of `web-2` is too old.
    async fn processes(&self, instance: &str) -> Result<ProcessList, Problem> {
        match instance {
            "web-0" => Ok(process_list()),
            "web-1" => {
                let list = process_list();
                let unnamed = |process: Process| Process {
                    name: process.name.filter(|_| process.pid == Some(1)),
                    pss_bytes: None,
                    ..process
                };
                Ok(ProcessList {
                    instance: instance.to_owned(),
                    frozen: true,
                    supervised: Vec::new(),
                    processes: list.processes.into_iter().map(unnamed).collect(),
                    memory: list.memory.map(|memory| InstanceMemory {
                        peak_bytes: None,
                        limit_bytes: None,
                        oom_kills: 0,
                        ..memory
                    }),
                    omitted: 3,
                    ..list
                })
            }
            "web-2" => {
                let detail = "the init of container web-2.g1 cannot tell its processes: it was made by an older nodeagent; a roll makes it anew";
                Err(Problem::new(ProblemCode::Unavailable, detail))
            }
            _ => Err(Problem::not_found("instance", instance)),
        }
    }

    /// `cat` says what it hears and the sizes of its terminal as complaints, and ends with its
    /// input; `exit N` ends with that code, `vanish` without one; anything else is not there.
    async fn exec(
        &self,
        instance: &str,
        request: ExecRequest,
        caller: &str,
    ) -> Result<ExecSession, Problem> {
        if instance != "web-0" {
            return Err(Problem::not_found("instance", instance));
        }
        assert!(caller.starts_with("user id 0 "), "{caller}");
        let (input, mut told) = mpsc::channel(1);
        let (says, output) = mpsc::channel(1);
        let command: Vec<&str> = request.command.iter().map(String::as_str).collect();
        let last = match command[..] {
            ["cat"] => None,
            ["exit", code] => Some(ExecOutput::Exit(code.parse().unwrap())),
            ["vanish"] => Some(ExecOutput::Failed("containerd has gone".to_owned())),
            _ => {
                let detail = format!("{:?} is not found; nothing was executed", command[0]);
                return Err(Problem::new(ProblemCode::InvalidRequest, detail));
            }
        };
        let (left, terminal) = (Arc::clone(&self.left), request.terminal);
        tokio::spawn(async move {
            if let Some(last) = last {
                let hello = format!("{terminal:?} {}\n", request.stdin);
                says.send(ExecOutput::Stderr(hello.into())).await.ok();
                says.send(last).await.ok();
                return;
            }
            loop {
                let piece = tokio::select! {
                    piece = told.recv() => piece,
                    () = says.closed() => None,
                };
                let said = match piece {
                    Some(ExecInput::Data(data)) => ExecOutput::Stdout(data),
                    Some(ExecInput::Resize(size)) => {
                        ExecOutput::Stderr(format!("{}x{}", size.columns, size.rows).into())
                    }
                    Some(ExecInput::End) => ExecOutput::Exit(0),
                    None => break,
                };
                let ended = matches!(said, ExecOutput::Exit(_));
                if says.send(said).await.is_err() || ended {
                    break;
                }
            }
            left.notify_one();
        });
        Ok(ExecSession { input, output })
    }

    fn ready(&self) -> Result<(), Problem> {
        match self.state.lock().unwrap().apps.contains_key("unready") {
            true => Err(problem(
                ProblemCode::Unavailable,
                "the journal is being read",
            )),
            false => Ok(()),
        }
    }

    async fn apply(&self, manifest: &str) -> Result<ApplyResult, Problem> {
        let Some(name) = manifest
            .lines()
            .find_map(|line| line.trim().strip_prefix("name: "))
        else {
            let finding = Finding::missing("metadata.name", "required: the app's name");
            return Err(problem(
                ProblemCode::InvalidManifest,
                "refused: metadata.name; nothing was changed",
            )
            .with_findings([finding]));
        };
        let mut state = self.state.lock().unwrap();
        let outcome = match state.apps.get(name) {
            None => ApplyOutcome::Created,
            Some((old, _)) if old == manifest => ApplyOutcome::Unchanged,
            Some(_) => ApplyOutcome::Changed,
        };
        let (_, pool) = new_app(name, manifest);
        let revision = pool.revision.clone();
        state
            .apps
            .insert(name.to_owned(), (manifest.to_owned(), pool));
        let detail = Some("2 instances are being armed".to_owned());
        Ok(ApplyResult {
            name: name.to_owned(),
            outcome,
            revision,
            detail,
        })
    }

    async fn apps(&self) -> Result<AppList, Problem> {
        let state = self.state.lock().unwrap();
        let summary = |(_, pool): &(String, Pool)| AppSummary {
            name: pool.app.clone(),
            revision: pool.revision.clone(),
            image: "127.0.0.1:5000/web:1".to_owned(),
            image_digest: Some(format!("sha256:{}", "ab".repeat(32))),
            applied_at: at(1),
            warm: pool.warm,
        };
        Ok(AppList {
            apps: state.apps.values().map(summary).collect(),
        })
    }

    async fn app(&self, name: &str) -> Result<AppDocument, Problem> {
        let state = self.state.lock().unwrap();
        let (manifest, pool) = state
            .apps
            .get(name)
            .ok_or_else(|| Problem::not_found("app", name))?;
        Ok(AppDocument {
            name: pool.app.clone(),
            revision: pool.revision.clone(),
            image: "127.0.0.1:5000/web:1".to_owned(),
            image_digest: None,
            applied_at: at(1),
            warm: pool.warm,
            manifest: manifest.clone(),
        })
    }

    async fn delete_app(&self, name: &str, deletion: Deletion) -> Result<ApplyResult, Problem> {
        let mut state = self.state.lock().unwrap();
        let (_, pool) = state
            .apps
            .get(name)
            .ok_or_else(|| Problem::not_found("app", name))?;
        if pool.active > 0 && deletion == Deletion::WhenUnused {
            let detail = format!(
                "{} instances of {name} are active; deactivate it first, or use force",
                pool.active
            );
            return Err(problem(ProblemCode::AppInUse, &detail).with_current(current(pool)));
        }
        let revision = pool.revision.clone();
        state.apps.remove(name);
        Ok(ApplyResult {
            name: name.to_owned(),
            outcome: ApplyOutcome::Deleted,
            revision,
            detail: None,
        })
    }
}

/// A twin served on a socket of its own; both end with it.
pub struct Served {
    pub twin: Arc<Twin>,
    pub socket: PathBuf,
    pub stop: CancellationToken,
    pub serving: Option<tokio::task::JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Served {
    /// Must run inside a tokio runtime.
    pub fn start(apps: &[&str], limits: Limits) -> Self {
        Self::open_to(apps, limits, &nodeagent::config::Api::default())
    }

    /// With roles for others than root.
    pub fn open_to(apps: &[&str], limits: Limits, api: &nodeagent::config::Api) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let twin = Twin::with_apps(apps);
        let stop = CancellationToken::new();
        let server = Server::bind(&socket, limits).unwrap();
        let server = server.open_to(&socket, api).unwrap();
        let serving = tokio::spawn(server.serve(Arc::clone(&twin), stop.clone()));
        Self {
            twin,
            socket,
            stop,
            serving: Some(serving),
            _directory: directory,
        }
    }

    pub fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    pub fn path(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.twin.release.cancel();
        self.stop.cancel();
    }
}

fn file_backend() -> DiscoveryStatus {
    DiscoveryStatus {
        name: "file".to_owned(),
        required: true,
        state: DiscoveryState::Serving,
        since: None,
        error: None,
        failures: 0,
        endpoint: None,
        registered: None,
        lease: None,
    }
}

fn etcd_backend() -> DiscoveryStatus {
    DiscoveryStatus {
        name: "etcd".to_owned(),
        required: false,
        state: DiscoveryState::Away,
        since: Some(at(0)),
        error: Some(
            "etcd at http://10.0.0.1:2379 did not renew the lease within 5000 ms".to_owned(),
        ),
        failures: 3,
        endpoint: Some("http://10.0.0.1:2379".to_owned()),
        registered: Some(2),
        lease: Some(LeaseStatus {
            id: "694d77aa9e38260f".to_owned(),
            ttl_seconds: 60,
            renewed_at: at(0),
            renewals: 7,
            lost: 1,
        }),
    }
}

/// Two agents, one of which pauses, and an app with a child and a grandchild.
fn process_list() -> ProcessList {
    let process = |pid: u32, parent: u32, name: Option<&str>, command: &str| Process {
        pid: Some(pid),
        host_pid: 4000 + pid,
        parent_host_pid: (parent != 0).then_some(4000 + parent),
        name: name.map(str::to_owned),
        program: command.split(' ').next().unwrap().to_owned(),
        command: command.to_owned(),
        state: ProcessState::Sleeping,
        threads: 1,
        cpu_ms: u64::from(pid) * 130,
        cpu_percent: 0.4,
        age_ms: 3_600_000,
        rss_bytes: 3 << 20,
        pss_bytes: Some(1_200_000),
    };
    let supervised = |name: &str, state, pid| SupervisedProcess {
        name: name.to_owned(),
        state,
        pid,
        restarts: 0,
        since_ms: Some(3_600_000),
        last_exit: None,
    };
    ProcessList {
        instance: "web-0".to_owned(),
        container: "web-0.g1".to_owned(),
        state: InstanceState::Active,
        frozen: false,
        memory: Some(InstanceMemory {
            current_bytes: 45 << 20,
            peak_bytes: Some(80 << 20),
            limit_bytes: Some(512 << 20),
            oom_kills: 2,
        }),
        supervised: vec![
            supervised("cache", SupervisedState::Ready, Some(7)),
            SupervisedProcess {
                restarts: 3,
                last_exit: Some(ProcessExit::Signal(11)),
                ..supervised("shipper", SupervisedState::BackingOff, None)
            },
            supervised("app", SupervisedState::Ready, Some(9)),
        ],
        processes: vec![
            process(1, 0, Some("container-init"), "/.nodeagent/bin/init"),
            process(7, 1, Some("cache"), "cache --size 64"),
            process(
                9,
                1,
                Some("app"),
                "shop --listen 0.0.0.0:8080 --workers 4 --quiet",
            ),
            process(12, 9, None, "worker"),
            process(13, 12, None, "sh -c \u{1b}[2J"),
            process(20, 1, None, "orphan"),
            Process {
                pid: None,
                state: ProcessState::Running,
                ..process(30, 0, None, "runc init")
            },
        ],
        omitted: 0,
    }
}

fn app_images() -> AppImages {
    let reference = |hex: &str| format!("r.lan/web:1@sha256:{}", hex.repeat(64));
    AppImages {
        app: "web".to_owned(),
        image: "r.lan/web:1".to_owned(),
        applied: reference("b"),
        scale_out: reference("a"),
        stable: Some(StableImage {
            reference: reference("a"),
            revision: "0123456789ab".to_owned(),
            evidence: StableEvidence::Covered,
            instances: Some(6),
            task_id: Some("roll-7".to_owned()),
            since: Timestamp::from_unix_millis(1_790_000_000_000).unwrap(),
        }),
        drift: Some(Drift {
            digest: format!("sha256:{}", "d".repeat(64)),
            seen_at: Timestamp::from_unix_millis(1_790_000_100_000).unwrap(),
        }),
    }
}

fn not_compared(why: WhyNotCompared, error: Option<&str>) -> NotCompared {
    NotCompared {
        why,
        layers: 1,
        error: error.map(str::to_owned),
    }
}

fn damaged_layer(hex: &str, state: DamagedState) -> DamagedLayer {
    DamagedLayer {
        chain_id: format!("sha256:{}", "9".repeat(64)),
        layer: format!("sha256:{}", hex.repeat(64)),
        images: vec!["r.lan/web:1".to_owned(), "r.lan/api:2".to_owned()],
        differences: vec!["\"usr/bin/web\": other content".to_owned()],
        more: false,
        state,
        used_by: Vec::new(),
        error: None,
    }
}
