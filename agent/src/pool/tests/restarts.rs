//! Restarts in place.

use super::*;
use crate::instance::State;
use crate::task::{RestartWish, RestartedAgent};

impl World {
    fn restart(&mut self, id: &str, ordinal: u32, agent: Option<&str>) -> TaskId {
        let agent = agent.map(|name| RestartedAgent {
            name: name.to_owned(),
            pid: Some(7),
        });
        self.restart_with(id, RestartWish { ordinal, agent }, Some(30.0))
    }

    fn restart_with(
        &mut self,
        id: &str,
        wish: RestartWish,
        deadline_seconds: Option<f64>,
    ) -> TaskId {
        let task_id: TaskId = id.parse().unwrap();
        self.event(Event::Command(Command::Target(Request {
            context: TaskContext {
                task_id: task_id.clone(),
                traceparent: "00-1-1-01".into(),
            },
            hash: String::new(),
            image: Default::default(),
            verb: Verb::Restart,
            to: 0,
            step: None,
            restart: Some(wish),
            expect_seq: None,
            force: false,
            deadline_seconds,
            created_ms: self.now.wall_ms,
            steady_ms: self.now.steady_ms,
            first_byte: self.now.at,
        })));
        task_id
    }

    fn refused(&self) -> &NotRestarted {
        match self.refusals.last() {
            Some((_, Refusal::Restart(why))) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Performs until the only effect under way is of this kind.
    fn until(&mut self, kind: EffectKind) {
        for _ in 0..100 {
            if self.commits.is_empty() && self.effects.iter().any(|e| e.kind == kind) {
                return;
            }
            let _ = self.commit_one() || self.perform_one(0, Ok(()));
        }
        panic!("{kind:?} never came: {:?}", self.effects);
    }
}

fn serving(count: u32) -> World {
    let mut world = World::new(0, 8);
    world.ask("up", Verb::Activate, count);
    world.settle();
    world.performed.clear();
    world
}

fn kinds(world: &World) -> Vec<EffectKind> {
    world.performed.iter().map(|(_, kind)| *kind).collect()
}

#[test]
fn an_app_leaves_discovery_is_restarted_and_comes_back_with_the_next_generation() {
    let mut world = serving(2);
    let before = world.pool.slots[&0].instance.clone();
    let id = world.restart("r", 0, None);
    assert!(world.effects.is_empty(), "the intent comes first");
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
    use EffectKind::{Deregister, Drain, Ready, Register, Restart};
    assert_eq!(kinds(&world), [Deregister, Drain, Restart, Ready, Register]);
    let after = &world.pool.slots[&0].instance;
    assert_eq!(
        (after.generation, after.create_generation, after.reuses),
        (before.generation + 1, before.create_generation, 1)
    );
    assert_eq!((world.pool.target, world.pool.active()), (2, 2));
    let outcome = &world.answers[&id];
    assert_eq!(outcome.instances.len(), 1);
    assert_eq!(outcome.instances[0].from, None, "it was no activation");
}

#[test]
fn an_agent_is_restarted_beside_an_instance_that_goes_on() {
    let mut world = serving(1);
    let before = world.pool.slots[&0].instance.clone();
    let id = world.restart("r", 0, Some("proxy"));
    world.until(EffectKind::RestartAgent);
    let effect = &world.effects[0];
    assert_eq!(effect.agent.as_ref().unwrap().name, "proxy");
    assert_eq!(effect.instance.task.as_ref().unwrap().task_id, id);
    assert_eq!(world.pool.active(), 1);
    world.restart("other", 0, None);
    assert!(matches!(world.refused(), NotRestarted::UnderWay { task, .. } if *task == id));
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
    assert_eq!(kinds(&world), [EffectKind::RestartAgent]);
    assert_eq!(world.pool.slots[&0].instance.generation, before.generation);
    let id = world.restart("r2", 0, Some("logs"));
    world.until(EffectKind::RestartAgent);
    world.perform_one(0, Err(Failure::new("deadline", "too slow")));
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Failed);
    let detail = world.answers[&id].detail.clone().unwrap();
    assert_eq!(
        detail,
        "logs of web-0 was not restarted: too slow; the app goes on"
    );
    assert_eq!(world.pool.active(), 1);
}

#[test]
fn a_restart_that_fails_is_the_end_of_its_instance_and_another_comes() {
    let mut world = serving(1);
    let id = world.restart("r", 0, None);
    world.until(EffectKind::Restart);
    world.perform_one(
        0,
        Err(Failure::new("exited", "process \"app\" exited with code 3")),
    );
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Failed);
    let detail = world.answers[&id].detail.clone().unwrap();
    assert!(detail.contains("exited with code 3"), "{detail}");
    assert_eq!(world.pool.active(), 1, "by its restartPolicy");
}

#[test]
fn a_restart_that_nobody_waits_for_any_more_is_not_begun() {
    let mut world = serving(1);
    let before = world.pool.slots[&0].instance.generation;
    let id = world.restart("r", 0, None);
    world.until(EffectKind::Deregister);
    world.perform_one(0, Err(Failure::new("discovery", "etcd is away")));
    world.pass(Duration::from_secs(31));
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Failed);
    let detail = world.answers[&id].detail.clone().unwrap();
    assert!(
        detail.ends_with("etcd is away; it goes back into service"),
        "{detail}"
    );
    assert!(!kinds(&world).contains(&EffectKind::Restart));
    let after = &world.pool.slots[&0].instance;
    assert_eq!((after.phase, after.reuses), (Phase::Active, 0));
    assert!(after.generation > before + 1, "registered anew");
}

#[test]
fn a_deactivation_takes_a_restart_along() {
    let mut world = serving(1);
    let id = world.restart("r", 0, None);
    world.until(EffectKind::Restart);
    world.ask("down", Verb::Deactivate, 0);
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Superseded);
    assert!(world.pool.slots.is_empty());
}

#[test]
fn what_cannot_be_restarted_is_refused_with_what_is_true() {
    let mut world = World::new(1, 8);
    world.settle();
    world.restart("a", 0, None);
    let armed = State::Armed;
    assert!(matches!(world.refused(), NotRestarted::NotInService { state, .. } if *state == armed));
    world.ask("up", Verb::Activate, 1);
    world.settle();
    world.restart("b", 9, None);
    assert_eq!(
        world.refused().to_string(),
        "there is no instance web-9; there are web-0, web-1"
    );
    world.restart("c", 0, Some("cache"));
    assert_eq!(
        world.refused().to_string(),
        "web-0 has no process \"cache\"; it has app and the in-container agents proxy, logs"
    );
    for n in 0..MOST_REUSES {
        let id = world.restart(&format!("n{n}"), 0, None);
        world.settle();
        assert_eq!(world.end_of(&id), EndState::Done);
    }
    world.restart("d", 0, None);
    assert!(matches!(world.refused(), NotRestarted::UsedUp { .. }));
    world.event(Event::Command(Command::Revise(revision("r2", 1))));
    world.settle();
    world.restart("e", 0, None);
    assert!(matches!(world.refused(), NotRestarted::Stale { current, .. } if current == "r2"));
}

/// The pool as an agent that was killed finds it again.
fn killed(world: &World, id: &TaskId, observed: u64) -> (Pool, Vec<Action>) {
    let task = &world.pool.tasks[id];
    let restart = task.restart.as_ref().unwrap().what.clone();
    let rows = world.journal.values().flatten();
    let adopted = Adopted {
        stable: None,
        pool: crate::journal::PoolRow {
            app: world.pool.app.clone(),
            revision: "r1".into(),
            target: 1,
            seq: world.pool.seq,
            deleting: false,
            applied_ms: 0,
        },
        revision: revision("r1", 0),
        revisions: BTreeMap::from([("r1".to_owned(), revision("r1", 0))]),
        instances: rows
            .map(|row| {
                let observation = Observation::Connected {
                    generation: observed,
                    armed: true,
                    started: true,
                    over: false,
                };
                (row.clone(), observation, Listed::Yes)
            })
            .collect(),
        ends: BTreeMap::new(),
        tasks: vec![crate::journal::TaskRow {
            image: Default::default(),
            context: task.context.clone(),
            app: world.pool.app.clone(),
            verb: Verb::Restart,
            to: 1,
            roll: None,
            restart: Some(restart),
            hash: String::new(),
            target: 1,
            seq: task.seq,
            created_ms: world.now.wall_ms,
            steady_ms: world.now.steady_ms,
            deadline_ms: 60_000,
        }],
    };
    let mut ledger = Ledger::new(&config::defaults("test").network);
    Pool::adopt(adopted, world.pool.limits, world.now, &mut ledger)
}

#[test]
fn after_a_kill_the_generation_says_whether_the_app_was_restarted() {
    let mut world = serving(1);
    let id = world.restart("r", 0, None);
    world.until(EffectKind::Deregister);
    let generation = world.pool.slots[&0].instance.generation;
    let first = |actions: &[Action]| {
        let performed = actions.iter().find_map(|action| match action {
            Action::Perform(effect) => Some(effect.kind),
            _ => None,
        });
        performed.unwrap()
    };
    let (pool, actions) = killed(&world, &id, generation - 1);
    assert_eq!(pool.slots[&0].instance.phase, Phase::Leaving);
    assert_eq!(first(&actions), EffectKind::Deregister);
    let (pool, actions) = killed(&world, &id, generation);
    assert_eq!(pool.slots[&0].instance.phase, Phase::Restarting);
    assert_eq!(
        first(&actions),
        EffectKind::Restart,
        "asked again it is not done again"
    );
    assert_eq!(pool.slots[&0].instance.reuses, 1);
}

#[test]
fn after_a_kill_the_restart_of_an_agent_goes_on() {
    let mut world = serving(1);
    let id = world.restart("r", 0, Some("proxy"));
    world.until(EffectKind::RestartAgent);
    let generation = world.pool.slots[&0].instance.generation;
    let (pool, actions) = killed(&world, &id, generation);
    let asked = actions.iter().any(|action| match action {
        Action::Perform(effect) => effect.kind == EffectKind::RestartAgent,
        _ => false,
    });
    assert!(asked, "{actions:?}");
    assert!(pool.tasks.contains_key(&id));
}
