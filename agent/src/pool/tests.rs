//! The pool machine in a world that performs every effect, or does not, as the test says.

mod clocks;
mod probes;
mod rest;
mod restarts;
mod rolls;
mod stable;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::machine::Slot;
use super::*;
use crate::config::{self, AddressRange};
use crate::instance::machine::{COMPLETED, NOT_ALIVE, NOT_READY};
use crate::instance::{EffectKind, Failure, ImageConfig, Phase, Revision};
use crate::journal::Write;
use crate::network::Ledger;
use crate::task::{EndState, Outcome, Request, RollStep, TaskContext, TaskId, Verb};

fn revision(id: &str, armed: u32) -> Arc<Revision> {
    revision_with(id, armed, "")
}

/// `port`: more fields of its port.
fn revision_with(id: &str, armed: u32, port: &str) -> Arc<Revision> {
    revision_of(id, armed, port, "readiness: {none: {}}")
}

/// An app that is probed in service.
fn probed(id: &str, armed: u32) -> Arc<Revision> {
    probed_with(id, armed, "Always")
}

fn probed_with(id: &str, armed: u32, policy: &str) -> Arc<Revision> {
    let probe = "{tcpSocket: {port: http}, terminationGracePeriodSeconds: 1}";
    let fields = format!(
        "readiness: {{tcpSocket: {{port: http}}}}\n  liveness: {probe}\n  restartPolicy: {policy}"
    );
    revision_of(id, armed, "", &fields)
}

fn revision_of(id: &str, armed: u32, port: &str, fields: &str) -> Arc<Revision> {
    let manifest = format!(
        "apiVersion: nodeagent/v1\nkind: App\nmetadata: {{name: web}}\nspec:\n  image: 127.0.0.1:5000/web:1\n  \
         ports: [{{name: http, containerPort: 8080{port}}}]\n  {fields}\n  warm: {{armed: {armed}}}\n  \
         agents:\n  - {{name: proxy, command: [proxy]}}\n  - {{name: logs, command: [logs], essential: false}}\n"
    );
    Arc::new(Revision {
        id: id.to_owned(),
        app: crate::app::parse(&manifest).unwrap(),
        manifest,
        image: crate::runtime::Image {
            reference: "127.0.0.1:5000/web:1".into(),
            digest: "sha256:1".into(),
            config_digest: "sha256:2".into(),
            chain_id: "sha256:3".into(),
            config: ImageConfig::default(),
        },
    })
}

/// The same revision with image number `image`.
fn with_image(revision: &Revision, image: usize) -> Arc<Revision> {
    let mut revision = revision.clone();
    revision.image.digest = format!("sha256:{image}");
    revision.image.reference = format!("127.0.0.1:5000/web@sha256:{image}");
    Arc::new(revision)
}

struct World {
    pool: Pool,
    ledger: Ledger,
    now: Now,
    effects: Vec<Effect>,
    commits: Vec<(u64, Vec<Write>)>,
    /// Rows as the journal has them; `None` for one that is gone.
    journal: BTreeMap<u32, Option<crate::journal::InstanceRow>>,
    refuse_next: bool,
    durable: bool,
    answers: BTreeMap<TaskId, Outcome>,
    refusals: Vec<(TaskId, Refusal)>,
    deleted: Option<Result<(), Refusal>>,
    /// Effects performed, with the commit count at which they were asked for.
    performed: Vec<(u32, EffectKind)>,
    intents: usize,
    registered: BTreeSet<u32>,
    /// What the journal says is stable.
    stable: Option<crate::journal::StableRow>,
}

impl World {
    fn new(armed: u32, addresses: u8) -> Self {
        Self::of(revision("r1", armed), addresses)
    }

    fn of(revision: Arc<Revision>, addresses: u8) -> Self {
        let range = AddressRange {
            base: [10, 0, 0, 0].into(),
            prefix: 32 - addresses,
        };
        let limits = Limits {
            host_address: None,
            floor: 0,
            keep_everything: false,
            give_up_after: 3,
            activation_deadline: Duration::from_secs(60),
            refill: 2,
        };
        let mut world = Self {
            pool: Pool::new(revision, limits),
            ledger: Ledger::new(&config::Network {
                pools: vec![range],
                ..config::defaults("test").network
            }),
            now: Now {
                at: Instant::now(),
                wall_ms: 1_000_000,
                steady_ms: 1_000_000,
            },
            effects: Vec::new(),
            commits: Vec::new(),
            journal: BTreeMap::new(),
            refuse_next: false,
            durable: true,
            answers: BTreeMap::new(),
            refusals: Vec::new(),
            deleted: None,
            performed: Vec::new(),
            intents: 0,
            registered: BTreeSet::new(),
            stable: None,
        };
        world.event(Event::Tick);
        world
    }

    fn event(&mut self, event: Event) {
        let actions = self.pool.step(event, self.now, &mut self.ledger);
        for action in actions {
            match action {
                Action::Commit { id, writes, .. } => self.commits.push((id, writes)),
                Action::Perform(effect) => {
                    let of = |e: &Effect| (e.instance.ordinal, e.agent.clone());
                    self.effects.retain(|e| of(e) != of(&effect));
                    self.effects.push(effect);
                }
                Action::Answer(id, outcome) => {
                    assert!(
                        self.answers.insert(id, outcome).is_none(),
                        "a task is answered once"
                    );
                }
                Action::Refuse(id, refusal) => self.refusals.push((id, refusal)),
                Action::Deleted(result) => self.deleted = Some(result),
                Action::Opened(_) | Action::Unwritten(..) | Action::Revised(_) => {}
            }
        }
    }

    fn commit_one(&mut self) -> bool {
        if self.commits.is_empty() {
            return false;
        }
        let (id, writes) = self.commits.remove(0);
        self.intents += 1;
        let refused = std::mem::take(&mut self.refuse_next);
        if self.durable && !refused {
            for write in writes {
                match write {
                    Write::Instance(row) => {
                        self.journal.insert(row.instance.ordinal, Some(row));
                    }
                    Write::InstanceGone { instance, .. } => {
                        self.journal.insert(instance.ordinal, None);
                    }
                    Write::Stable(_, row) => self.stable = row,
                    _ => {}
                }
            }
            self.event(Event::Committed(id));
        } else {
            self.event(Event::CommitFailed(
                id,
                Failure::new("journal_full", "no room"),
            ));
        }
        true
    }

    fn perform_one(&mut self, index: usize, result: Result<(), Failure>) -> bool {
        // A watch goes on until a probe says something: `probe` ends it.
        let ending = |(_, effect): &(usize, &Effect)| effect.kind != EffectKind::Watch;
        let ends: Vec<usize> = self
            .effects
            .iter()
            .enumerate()
            .filter(ending)
            .map(|(at, _)| at)
            .collect();
        if ends.is_empty() {
            return false;
        }
        let effect = self.effects.remove(ends[index % ends.len()]);
        self.end(effect, result);
        true
    }

    /// Ends the watch of an instance in service, or its wait until it is ready again.
    fn probe(&mut self, ordinal: u32, failure: Failure) -> bool {
        let watching = |e: &Effect| {
            e.instance.ordinal == ordinal
                && matches!(e.kind, EffectKind::Watch | EffectKind::Recover)
        };
        let Some(at) = self.effects.iter().position(watching) else {
            return false;
        };
        let effect = self.effects.remove(at);
        // Who waits to be ready again does not fail for not being ready.
        if effect.kind == EffectKind::Watch || failure.code == NOT_ALIVE {
            self.end(effect, Err(failure));
        } else {
            self.effects.push(effect);
        }
        true
    }

    fn end(&mut self, effect: Effect, result: Result<(), Failure>) {
        let ordinal = effect.instance.ordinal;
        if result.is_ok() {
            self.performed.push((ordinal, effect.kind));
            match effect.kind {
                EffectKind::Register => {
                    self.registered.insert(ordinal);
                }
                EffectKind::Deregister => {
                    self.registered.remove(&ordinal);
                }
                EffectKind::Stop => assert!(
                    !self.registered.contains(&ordinal),
                    "stopped while registered"
                ),
                _ => {}
            }
        }
        self.event(Event::Effect {
            ordinal,
            id: effect.id,
            result,
        });
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.commit_one() && !self.perform_one(0, Ok(())) {
                return;
            }
        }
        panic!("the pool does not come to rest: {:?}", self.pool);
    }

    fn pass(&mut self, duration: Duration) {
        self.now.at += duration;
        let millis = u64::try_from(duration.as_millis()).unwrap();
        self.now.wall_ms += millis;
        self.now.steady_ms += millis;
        self.event(Event::Tick);
        if let Some(at) = self.pool.wake_at() {
            assert!(
                at > self.now.at,
                "a timer of the past wakes the driver for ever"
            );
        }
    }

    /// What the journal says is what is.
    fn journal_agrees(&self) -> bool {
        let live: BTreeMap<u32, (Phase, u64)> = self
            .pool
            .slots
            .iter()
            .map(|(o, s)| (*o, (s.instance.phase, s.instance.generation)))
            .collect();
        let written: BTreeMap<u32, (Phase, u64)> = self
            .journal
            .iter()
            .filter_map(|(o, row)| row.as_ref().map(|row| (*o, (row.phase, row.generation))))
            .collect();
        live == written
    }

    fn ask(&mut self, id: &str, verb: Verb, to: u32) -> TaskId {
        self.request(id, verb, to, None)
    }

    fn roll(&mut self, id: &str, step: RollStep) -> TaskId {
        self.request(id, Verb::Roll, 0, Some(step))
    }

    fn request(&mut self, id: &str, verb: Verb, to: u32, step: Option<RollStep>) -> TaskId {
        let request = self.a_request(id, verb, to, step);
        let task_id = request.context.task_id.clone();
        self.event(Event::Command(Command::Target(request)));
        task_id
    }

    fn a_request(&self, id: &str, verb: Verb, to: u32, step: Option<RollStep>) -> Request {
        Request {
            context: TaskContext {
                task_id: id.parse().unwrap(),
                traceparent: "00-1-1-01".into(),
            },
            hash: String::new(),
            image: Default::default(),
            verb,
            to,
            restart: None,
            step,
            expect_seq: None,
            force: false,
            deadline_seconds: None,
            created_ms: self.now.wall_ms,
            steady_ms: self.now.steady_ms,
            first_byte: self.now.at,
        }
    }

    fn phases(&self) -> Vec<Phase> {
        self.pool
            .slots
            .values()
            .map(|slot: &Slot| slot.instance.phase)
            .collect()
    }

    fn end_of(&self, id: &TaskId) -> EndState {
        self.answers[id].state
    }
}

#[test]
fn a_pool_fills_to_its_warm_target_and_rests() {
    let mut world = World::new(3, 8);
    world.settle();
    assert_eq!(world.phases(), [Phase::Armed; 3]);
    assert_eq!(world.pool.wake_at(), None, "a pool at rest has no timer");
}

#[test]
fn an_activation_takes_armed_instances_and_refill_waits_for_it() {
    let mut world = World::new(3, 8);
    world.settle();
    world.performed.clear();
    let id = world.ask("t1", Verb::Activate, 2);
    assert!(
        world.effects.is_empty(),
        "nothing happens before the intent is durable"
    );
    world.commit_one();
    let kinds: Vec<EffectKind> = world.effects.iter().map(|e| e.kind).collect();
    assert_eq!(
        kinds,
        [EffectKind::Start, EffectKind::Start],
        "and refill yields"
    );
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
    let outcome = &world.answers[&id];
    assert_eq!(outcome.active, 2);
    assert!(
        outcome
            .instances
            .iter()
            .all(|i| i.from.as_deref() == Some("armed") && i.state == "active")
    );
    assert_eq!(
        world
            .phases()
            .iter()
            .filter(|p| **p == Phase::Armed)
            .count(),
        3,
        "refilled"
    );
}

#[test]
fn an_undisturbed_armed_activation_has_two_durable_points() {
    let mut world = World::new(0, 8);
    world.ask("warm", Verb::Activate, 1);
    world.settle();
    world.intents = 0;
    world.ask("t1", Verb::Activate, 3);
    world.settle();
    assert_eq!(world.intents, 2);
}

#[test]
fn without_a_warm_pool_it_is_created_and_the_answer_says_so() {
    let mut world = World::new(0, 8);
    let id = world.ask("t1", Verb::Activate, 2);
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
    assert!(
        world.answers[&id]
            .instances
            .iter()
            .all(|i| i.from.as_deref() == Some("cached"))
    );
}

#[test]
fn deactivation_drains_before_it_stops_and_leaves_nothing() {
    let mut world = World::new(0, 8);
    world.ask("up", Verb::Activate, 2);
    world.settle();
    world.performed.clear();
    let id = world.ask("down", Verb::Deactivate, 0);
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
    assert!(world.phases().is_empty());
    let one: Vec<EffectKind> = world
        .performed
        .iter()
        .filter(|(o, _)| *o == 1)
        .map(|(_, k)| *k)
        .collect();
    use EffectKind::*;
    assert_eq!(one, [Deregister, Drain, Stop, Remove, Release]);
    assert_eq!(world.ledger.in_use(), 0);
}

#[test]
fn opposite_targets_supersede_and_the_last_one_wins() {
    let mut world = World::new(2, 8);
    world.settle();
    let up = world.ask("up", Verb::Activate, 2);
    world.commit_one();
    let down = world.ask("down", Verb::Deactivate, 0);
    world.settle();
    assert_eq!(world.end_of(&up), EndState::Superseded);
    assert_eq!(world.end_of(&down), EndState::Done);
    assert_eq!(world.pool.active(), 0);
}

#[test]
fn a_draining_instance_is_reinstated_with_a_new_generation() {
    let mut world = World::new(0, 8);
    world.ask("up", Verb::Activate, 1);
    world.settle();
    let before = world.pool.slots[&0].instance.generation;
    world.ask("down", Verb::Deactivate, 0);
    world.commit_one();
    world.perform_one(0, Ok(()));
    assert_eq!(world.phases(), [Phase::Draining]);
    let id = world.ask("again", Verb::Activate, 1);
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
    assert_eq!(world.pool.slots[&0].instance.generation, before + 1);
    assert!(world.registered.contains(&0));
    world.performed.clear();
    world.ask("down-again", Verb::Deactivate, 0);
    world.settle();
    assert_eq!(
        world.performed[0],
        (0, EffectKind::Deregister),
        "and it is deregistered again"
    );
}

#[test]
fn an_app_that_always_fails_ends_the_task_early_and_the_pool_goes_on_with_pauses() {
    let mut world = World::new(0, 8);
    let id = world.ask("t1", Verb::Activate, 1);
    for _ in 0..200 {
        if world.answers.contains_key(&id) {
            break;
        }
        if world.commit_one() {
            continue;
        }
        let failing = world.effects.first().map(|e| e.kind) == Some(EffectKind::Ready);
        let result = if failing {
            Err(Failure::new("exited", "exit code 3"))
        } else {
            Ok(())
        };
        if !world.perform_one(0, result) {
            world.pass(Duration::from_millis(100));
        }
    }
    assert_eq!(world.end_of(&id), EndState::Failed);
    let outcome = &world.answers[&id];
    assert_eq!(
        outcome.instances[0].error,
        Some(("exited".into(), "exit code 3".into()))
    );
    assert!(
        outcome
            .detail
            .as_ref()
            .is_some_and(|d| d.contains("0 of 1 active: exit code 3"))
    );
    assert!(world.pool.wake_at().is_some(), "it tries again");
    assert!(world.pool.alarm.is_some());
}

#[test]
fn an_active_instance_that_dies_is_replaced_from_the_warm_ones() {
    let mut world = World::new(1, 8);
    world.settle();
    world.ask("up", Verb::Activate, 1);
    world.settle();
    world.event(Event::Exited {
        ordinal: 0,
        create_generation: world.pool.slots[&0].instance.create_generation,
        failure: Failure::new("exited", "signal 9"),
    });
    world.settle();
    assert_eq!(world.pool.active(), 1);
    assert_eq!(world.registered.len(), 1);
    assert_eq!(
        world
            .phases()
            .iter()
            .filter(|p| **p == Phase::Armed)
            .count(),
        1
    );
}

#[test]
fn a_journal_that_refuses_leaves_the_pool_as_it_was() {
    let mut world = World::new(1, 8);
    world.settle();
    world.durable = false;
    let id = world.ask("t1", Verb::Activate, 3);
    world.commit_one();
    assert!(matches!(&world.refusals[..], [(refused, Refusal::Journal(_))] if *refused == id));
    assert_eq!(world.phases(), [Phase::Armed]);
    assert_eq!(
        (world.pool.target, world.pool.seq, world.ledger.in_use()),
        (0, 0, 1)
    );
}

#[test]
fn an_outcome_that_cannot_be_written_is_tried_again() {
    let mut world = World::new(1, 8);
    world.settle();
    let id = world.ask("t1", Verb::Activate, 1);
    world.commit_one();
    for _ in 0..3 {
        world.perform_one(0, Ok(()));
    }
    world.durable = false;
    while world.commit_one() {}
    assert!(!world.answers.contains_key(&id));
    world.durable = true;
    world.pass(Duration::from_secs(2));
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
}

#[test]
fn too_few_addresses_give_a_partial_answer_that_says_so() {
    let mut world = World::new(0, 2);
    let id = world.ask("t1", Verb::Activate, 9);
    for _ in 0..50 {
        world.settle();
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.end_of(&id), EndState::Partial);
    let outcome = &world.answers[&id];
    assert!(outcome.active > 0 && outcome.active < 9, "{outcome:?}");
    assert!(
        outcome
            .detail
            .as_ref()
            .is_some_and(|d| d.contains("address")),
        "{outcome:?}"
    );
}

#[test]
fn the_one_instance_with_a_fixed_host_port_is_all_that_can_be() {
    let mut world = World::of(revision_with("r1", 1, ", hostPort: 8080"), 8);
    world.settle();
    let up = world.ask("one", Verb::Activate, 1);
    world.settle();
    assert_eq!(world.end_of(&up), EndState::Done);
    assert_eq!(world.phases(), [Phase::Active], "no second one waits");
    assert_eq!(world.pool.snapshot().alarm, None);

    let more = world.ask("two", Verb::Activate, 2);
    world.settle();
    for _ in 0..70 {
        world.pass(Duration::from_secs(1));
        world.settle();
    }
    assert_eq!(world.end_of(&more), EndState::Failed);
    let outcome = &world.answers[&more];
    let detail = outcome.detail.as_deref().unwrap_or_default();
    assert!(
        detail.contains("host port tcp 8080 is held by web-0"),
        "{outcome:?}"
    );

    world.ask("none", Verb::Scale, 0);
    world.settle();
    world.pass(Duration::from_secs(1));
    world.settle();
    assert_eq!(world.phases(), [Phase::Armed], "the port is free again");
}

#[test]
fn an_automatic_port_that_a_process_has_is_not_granted_again() {
    let mut world = World::of(revision_with("r1", 1, ", hostPort: auto"), 8);
    let port = |world: &World| world.pool.snapshot().instances[0].host_ports[0].port;
    world.commit_one();
    assert_eq!(port(&world), 20000);
    let taken = Failure::new(HOST_PORT_TAKEN, "somebody has it");
    world.perform_one(0, Err(taken));
    world.settle();
    world.pass(Duration::from_secs(61));
    world.settle();
    assert_eq!(world.phases(), [Phase::Armed]);
    assert_eq!(port(&world), 20001);
}

#[test]
fn a_new_revision_replaces_warm_ones_and_leaves_active_ones() {
    let mut world = World::new(2, 8);
    world.settle();
    world.ask("up", Verb::Activate, 1);
    world.settle();
    world.event(Event::Command(Command::Revise(revision("r2", 2))));
    world.settle();
    for slot in world.pool.slots.values() {
        let expected = if slot.instance.phase == Phase::Active {
            "r1"
        } else {
            "r2"
        };
        assert_eq!(slot.instance.revision.id, expected);
    }
    assert_eq!(world.phases().len(), 3);
}

#[test]
fn an_app_in_use_is_not_deleted_and_a_free_one_leaves_nothing() {
    let mut world = World::new(2, 8);
    world.settle();
    world.ask("up", Verb::Activate, 1);
    world.settle();
    world.event(Event::Command(Command::Delete { force: false }));
    assert_eq!(
        world.deleted.take(),
        Some(Err(Refusal::InUse {
            target: 1,
            serving: 1
        }))
    );
    world.ask("down", Verb::Deactivate, 0);
    world.settle();
    world.event(Event::Command(Command::Delete { force: false }));
    world.settle();
    assert_eq!(world.deleted, Some(Ok(())));
    assert!(world.phases().is_empty());
    assert_eq!(world.ledger.in_use(), 0);
}

#[test]
fn a_deletion_that_is_asked_for_again_is_the_same_one_and_force_ends_its_drains() {
    let mut world = World::new(1, 8);
    world.settle();
    world.ask("up", Verb::Activate, 1);
    world.settle();
    world.ask("down", Verb::Deactivate, 0);
    world.commit_one();
    world.perform_one(0, Ok(()));
    assert!(world.phases().contains(&Phase::Draining));
    world.event(Event::Command(Command::Delete { force: false }));
    while world.commit_one() {}
    world.event(Event::Command(Command::Delete { force: false }));
    assert!(world.phases().contains(&Phase::Draining));
    world.event(Event::Command(Command::Delete { force: true }));
    while world.commit_one() {}
    assert!(!world.phases().contains(&Phase::Draining));
    assert_eq!(world.deleted, None, "neither refused nor done");
    world.settle();
    assert_eq!(world.deleted, Some(Ok(())));
}

#[test]
fn a_repeated_target_that_is_met_is_answered_at_once() {
    let mut world = World::new(0, 8);
    world.ask("one", Verb::Activate, 2);
    world.settle();
    world.performed.clear();
    let id = world.ask("two", Verb::Activate, 1);
    world.settle();
    assert_eq!((world.end_of(&id), world.pool.target), (EndState::Done, 2));
    assert!(world.performed.is_empty());
}

#[test]
fn a_pool_that_was_killed_goes_on_from_what_is_observed() {
    let mut world = World::new(2, 8);
    world.settle();
    let rows: Vec<crate::journal::InstanceRow> = [0, 1]
        .map(|ordinal| match world.pool.row(ordinal) {
            Write::Instance(mut row) if ordinal == 0 => {
                // The intent of an activation was durable, its start may have been sent.
                row.phase = Phase::Starting;
                row.serving = true;
                row.generation += 1;
                row
            }
            Write::Instance(row) => row,
            other => panic!("{other:?}"),
        })
        .into();
    let let_go = Observation::Connected {
        generation: rows[0].generation,
        armed: true,
        started: true,
        over: false,
    };
    for (observed, expected) in [
        (let_go, EffectKind::Ready),
        (
            Observation::Connected {
                generation: 1,
                armed: true,
                started: false,
                over: false,
            },
            EffectKind::Start,
        ),
    ] {
        let adopted = Adopted {
            stable: None,
            pool: crate::journal::PoolRow {
                app: world.pool.app.clone(),
                revision: "r1".into(),
                target: 1,
                seq: 1,
                deleting: false,
                applied_ms: 0,
            },
            revision: revision("r1", 2),
            revisions: BTreeMap::new(),
            instances: vec![
                (rows[0].clone(), observed, Listed::No),
                (
                    rows[1].clone(),
                    Observation::Connected {
                        generation: 1,
                        armed: true,
                        started: false,
                        over: false,
                    },
                    Listed::No,
                ),
            ],
            ends: BTreeMap::new(),
            tasks: Vec::new(),
        };
        let (pool, actions) = Pool::adopt(adopted, world.pool.limits, world.now, &mut world.ledger);
        let asked: Vec<(u32, EffectKind)> = actions
            .iter()
            .filter_map(|a| match a {
                Action::Perform(effect) => Some((effect.instance.ordinal, effect.kind)),
                _ => None,
            })
            .collect();
        assert_eq!(asked, [(0, expected)]);
        assert_eq!(pool.slots[&1].instance.phase, Phase::Armed);
    }
}

#[test]
fn what_discovery_lists_and_nobody_runs_is_deregistered_before_it_comes_again() {
    let mut world = World::new(0, 8);
    world.ask("up", Verb::Activate, 1);
    world.commit_one();
    let row = world.journal[&0].clone().unwrap();
    assert_eq!(
        (row.phase, row.registered),
        (Phase::Networking, false),
        "the intent of a cold activation"
    );
    let adopted = Adopted {
        stable: None,
        pool: crate::journal::PoolRow {
            app: world.pool.app.clone(),
            revision: "r1".into(),
            target: 1,
            seq: 1,
            deleting: false,
            applied_ms: 0,
        },
        revision: revision("r1", 0),
        revisions: BTreeMap::new(),
        instances: vec![(row, Observation::Absent, Listed::Yes)],
        ends: BTreeMap::new(),
        tasks: Vec::new(),
    };
    let (pool, actions) = Pool::adopt(adopted, world.pool.limits, world.now, &mut world.ledger);
    world.pool = pool;
    world.registered.insert(0);
    world.commits.clear();
    world.effects.clear();
    for action in actions {
        if let Action::Commit { id, writes, .. } = action {
            world.commits.push((id, writes));
        }
    }
    world.performed.clear();
    world.settle();
    assert_eq!(world.performed[0], (0, EffectKind::Deregister));
    assert_eq!(world.pool.active(), 1);
}

/// A pool after a reboot: `serving` in service and `warm` at the gate before it.
fn rebooted(world: &mut World, serving: u32, warm: u32, target: u32) {
    let row = |ordinal, serving| crate::journal::InstanceRow {
        instance: crate::instance::InstanceName::new("web".parse().unwrap(), ordinal),
        generation: 5,
        create_generation: 4,
        rootfs_generation: 3,
        revision: "r1".into(),
        phase: Phase::Lost,
        serving,
        from: None,
        task: None,
        host_ports: Vec::new(),
        reuses: 0,
        address: Some([10, 0, 0, 10 + u8::try_from(ordinal).unwrap()].into()),
        registered: false,
        urgency: crate::instance::Urgency::Drain,
        released_ms: None,
    };
    let rows = (0..serving + warm).map(|n| (row(n, n < serving), Observation::Absent, Listed::No));
    let adopted = Adopted {
        stable: None,
        pool: crate::journal::PoolRow {
            app: world.pool.app.clone(),
            revision: "r1".into(),
            target,
            seq: 1,
            deleting: false,
            applied_ms: 0,
        },
        revision: revision("r1", 2),
        revisions: BTreeMap::new(),
        instances: rows.collect(),
        ends: BTreeMap::new(),
        tasks: Vec::new(),
    };
    let (pool, actions) = Pool::adopt(adopted, world.pool.limits, world.now, &mut world.ledger);
    world.pool = pool;
    world.commits.clear();
    world.effects.clear();
    for action in actions {
        match action {
            Action::Commit { id, writes, .. } => world.commits.push((id, writes)),
            other => panic!("before its intent: {other:?}"),
        }
    }
}

#[test]
fn after_a_reboot_those_in_service_are_restored_first_on_their_rootfs() {
    let mut world = World::new(2, 8);
    rebooted(&mut world, 3, 2, 3);
    world.commit_one();
    let asked: Vec<u32> = world.effects.iter().map(|e| e.instance.ordinal).collect();
    assert_eq!(asked, [0, 1, 2], "the warm ones wait");
    for effect in &world.effects {
        let i = &effect.instance;
        assert_eq!(
            (i.generation, i.create_generation, i.rootfs_generation),
            (6, 6, 3)
        );
    }
    world.settle();
    assert_eq!(world.pool.active(), 3);
    assert_eq!(world.phases().len(), 5);
    assert!(
        world
            .pool
            .slots
            .values()
            .all(|s| s.instance.rootfs_generation == 3)
    );
    assert_eq!(world.registered.len(), 3);
}

#[test]
fn what_is_not_wanted_after_a_reboot_is_discarded() {
    let mut world = World::new(2, 8);
    rebooted(&mut world, 3, 2, 1);
    world.settle();
    assert_eq!(world.pool.active(), 1);
    assert_eq!(world.phases().len(), 3);
    assert!(!world.phases().contains(&Phase::Lost));
}

#[test]
fn what_has_ended_meanwhile_says_how_where_that_is_known() {
    for (ends, said) in [
        (
            BTreeMap::from([(
                0,
                Failure::new("exited", "process \"app\" exited with code 7"),
            )]),
            ("exited", "process \"app\" exited with code 7"),
        ),
        (
            BTreeMap::new(),
            (
                "gone",
                "web-0 was not there any more when the agent came back",
            ),
        ),
    ] {
        let mut world = World::new(0, 8);
        world.ask("up", Verb::Activate, 1);
        world.settle();
        let row = world.journal[&0].clone().unwrap();
        let adopted = Adopted {
            stable: None,
            pool: crate::journal::PoolRow {
                app: world.pool.app.clone(),
                revision: "r1".into(),
                target: 1,
                seq: 1,
                deleting: false,
                applied_ms: 0,
            },
            revision: revision("r1", 0),
            revisions: BTreeMap::new(),
            instances: vec![(row, Observation::Absent, Listed::Yes)],
            ends,
            tasks: Vec::new(),
        };
        let (pool, _) = Pool::adopt(adopted, world.pool.limits, world.now, &mut world.ledger);
        let failure = pool.slots[&0].instance.failure.clone().unwrap();
        assert_eq!((failure.code, failure.detail.as_str()), said);
    }
}

#[test]
fn a_wall_clock_that_is_set_moves_no_deadline_and_no_pause() {
    for step in [3_600_000_i64, -3_600_000] {
        let mut world = World::new(0, 8);
        world.now.wall_ms = 10_000_000;
        let id = world.ask("t1", Verb::Activate, 1);
        world.commit_one();
        let before = world.pool.wake_at();
        world.now.wall_ms = world.now.wall_ms.saturating_add_signed(step);
        world.event(Event::Tick);
        assert_eq!(world.pool.wake_at(), before, "the deadline");
        assert!(!world.answers.contains_key(&id));
        world.pass(Duration::from_secs(59));
        assert!(
            !world.answers.contains_key(&id),
            "a second before its deadline"
        );
        world.pass(Duration::from_secs(2));
        while world.commit_one() {}
        assert_eq!(world.end_of(&id), EndState::Failed);
    }
}

#[test]
fn a_second_deactivation_waits_for_what_the_first_takes_out() {
    let mut world = World::new(0, 8);
    world.ask("up", Verb::Activate, 2);
    world.settle();
    let first = world.ask("down-1", Verb::Deactivate, 0);
    world.commit_one();
    let second = world.ask("down-2", Verb::Deactivate, 0);
    while world.commit_one() {}
    assert!(
        !world.answers.contains_key(&second),
        "two instances still serve"
    );
    world.settle();
    assert_eq!(
        (world.end_of(&first), world.end_of(&second)),
        (EndState::Done, EndState::Done)
    );
}

#[test]
fn failures_with_successes_between_are_not_consecutive() {
    let mut world = World::new(0, 8);
    let id = world.ask("t1", Verb::Activate, 6);
    world.commit_one();
    let mut failures = 0;
    for _ in 0..400 {
        if world.commit_one() {
            continue;
        }
        // The newest first: one instance after the other goes all its way.
        let newest = world.effects.len().saturating_sub(1);
        let ready = world.effects.last().map(|e| e.kind) == Some(EffectKind::Ready);
        let fails = ready && failures < 4 && world.pool.active() == failures + 1;
        failures += u32::from(fails);
        let result = if fails {
            Err(Failure::new("exited", "exit code 3"))
        } else {
            Ok(())
        };
        if !world.perform_one(newest, result) {
            world.pass(Duration::from_millis(500));
        }
    }
    assert_eq!((failures, world.end_of(&id)), (4, EndState::Done));
}

#[derive(Debug, Clone)]
enum Move {
    Ask(Verb, u32),
    Commit,
    Perform(usize, bool),
    Exit(u32, bool),
    Probe(u32, bool),
    Pass(u64),
    Revise,
    Roll(u32),
    Accept,
    RefuseNext,
}

fn moves() -> impl Strategy<Value = Move> {
    let verb = prop_oneof![
        Just(Verb::Activate),
        Just(Verb::Deactivate),
        Just(Verb::Scale)
    ];
    prop_oneof![
        2 => (verb, 0u32..6).prop_map(|(verb, to)| Move::Ask(verb, to)),
        6 => Just(Move::Commit),
        12 => (0usize..8, prop::bool::weighted(0.9)).prop_map(|(index, ok)| Move::Perform(index, ok)),
        1 => (0u32..6, any::<bool>()).prop_map(|(ordinal, well)| Move::Exit(ordinal, well)),
        2 => (0u32..6, any::<bool>()).prop_map(|(ordinal, alive)| Move::Probe(ordinal, alive)),
        1 => (0u64..5_000).prop_map(Move::Pass),
        1 => Just(Move::Revise),
        1 => (1u32..4).prop_map(Move::Roll),
        1 => Just(Move::Accept),
        1 => Just(Move::RefuseNext),
    ]
}

proptest! {
    /// Whatever happens in whatever order: once everything goes well, the pool comes to rest at its
    /// target with its warm ones, every task is answered, nothing registered is stopped before it is
    /// deregistered, and every address belongs to an instance.
    #[test]
    fn every_history_comes_to_rest_at_the_target(
        history in prop::collection::vec(moves(), 0..120),
        policy in prop::sample::select(&["Always", "OnFailure", "Never"]),
        journal_lost in any::<bool>(),
    ) {
        let mut world = World::of(probed_with("r1", 2, policy), 8);
        world.pool.limits.keep_everything = journal_lost;
        let mut asked = 0;
        for (step_number, choice) in history.into_iter().enumerate() {
            match choice {
                Move::Ask(verb, to) => {
                    world.ask(&format!("t{step_number}"), verb, to);
                    asked += 1;
                }
                Move::Commit => {
                    world.commit_one();
                }
                Move::Perform(index, true) => {
                    world.perform_one(index, Ok(()));
                }
                Move::Perform(index, false) => {
                    world.perform_one(index, Err(Failure::new("test", "no")));
                }
                Move::Exit(ordinal, well) => {
                    let create_generation = world.pool.slots.get(&ordinal).map_or(0, |s| s.instance.create_generation);
                    world.event(Event::Exited { ordinal, create_generation, failure: Failure::new(if well { COMPLETED } else { "exited" }, "ended") });
                }
                Move::Probe(ordinal, alive) => {
                    let code = if alive { NOT_READY } else { NOT_ALIVE };
                    let failure = Failure::new(code, "503");
                    world.probe(ordinal, if alive { failure.passing() } else { failure });
                }
                Move::Roll(step) => {
                    world.roll(&format!("t{step_number}"), RollStep::Instances(step));
                    asked += 1;
                }
                Move::Accept => world.event(Event::Accepted),
                Move::RefuseNext => world.refuse_next = true,
                Move::Pass(ms) => world.pass(Duration::from_millis(ms)),
                Move::Revise => {
                    let revision = probed_with(&format!("r{step_number}"), 2, policy);
                    let revision = with_image(&revision, step_number % 3);
                    world.event(Event::Command(Command::Revise(revision)));
                }
            }
        }
        world.refuse_next = false;
        world.event(Event::Accepted);
        for _ in 0..40 {
            world.settle();
            world.pass(Duration::from_secs(61));
        }
        world.settle();
        prop_assert!(world.journal_agrees(), "{:?}\n{:?}", world.journal, world.pool.slots);
        prop_assert_eq!(world.pool.active(), world.pool.target);
        let armed = world.phases().iter().filter(|p| **p == Phase::Armed).count();
        prop_assert_eq!(armed, 2);
        prop_assert_eq!(world.phases().len(), world.pool.target as usize + 2);
        prop_assert_eq!(world.answers.len() + world.refusals.len(), asked);
        prop_assert_eq!(world.registered.len(), world.pool.target as usize);
        prop_assert_eq!(world.ledger.in_use(), world.phases().len());
    }
}
