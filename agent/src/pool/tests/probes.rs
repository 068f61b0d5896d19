//! What probes of instances in service lead to.

use super::*;

fn not_ready() -> Failure {
    Failure::new(NOT_READY, "answered 503").passing()
}

fn serving() -> World {
    let mut world = World::of(probed("r1", 1), 8);
    world.settle();
    world.ask("up", Verb::Activate, 1);
    world.settle();
    assert_eq!(world.pool.slots[&0].instance.phase, Phase::Active);
    world.performed.clear();
    world
}

fn of_first(world: &World) -> Vec<EffectKind> {
    let mut kinds = Vec::new();
    for (ordinal, kind) in &world.performed {
        if *ordinal == 0 {
            kinds.push(*kind);
        }
    }
    kinds
}

#[test]
fn only_instances_in_service_are_watched_and_only_those_with_probes() {
    let world = serving();
    let watched: Vec<(u32, EffectKind)> = world
        .effects
        .iter()
        .map(|e| (e.instance.ordinal, e.kind))
        .collect();
    assert_eq!(watched, [(0, EffectKind::Watch)]);
    assert_eq!(world.pool.wake_at(), None, "the pool itself has no timer");
    let mut world = World::new(1, 8);
    world.ask("up", Verb::Activate, 1);
    world.settle();
    assert!(world.effects.is_empty(), "an app without probes");
}

#[test]
fn an_instance_that_stops_being_ready_leaves_discovery_goes_on_and_returns_with_a_new_generation() {
    let mut world = serving();
    let generation = world.pool.slots[&0].instance.generation;
    world.probe(0, not_ready());
    assert!(
        world.registered.contains(&0),
        "nothing happens before the intent is durable"
    );
    world.commit_one();
    world.perform_one(0, Ok(()));
    let instance = &world.pool.slots[&0].instance;
    assert_eq!((instance.phase, instance.serving), (Phase::Unready, true));
    assert_eq!(
        instance.failure.as_ref().map(|f| f.detail.as_str()),
        Some("answered 503")
    );
    assert!(world.registered.is_empty());
    assert_eq!(world.pool.active(), 0);
    world.settle();
    let instance = &world.pool.slots[&0].instance;
    assert_eq!(
        (instance.phase, instance.generation),
        (Phase::Active, generation + 1)
    );
    assert_eq!(
        of_first(&world),
        [
            EffectKind::Deregister,
            EffectKind::Recover,
            EffectKind::Register
        ]
    );
    assert!(world.journal_agrees());
}

#[test]
fn an_instance_that_is_not_alive_is_drained_stopped_with_the_probes_grace_and_replaced() {
    let mut world = serving();
    world.probe(0, Failure::new(NOT_ALIVE, "timed out"));
    assert_eq!(
        world.pool.slots[&0].instance.termination_grace(),
        Duration::from_secs(1)
    );
    world.settle();
    assert_eq!(
        of_first(&world)[..4],
        [
            EffectKind::Deregister,
            EffectKind::Drain,
            EffectKind::Stop,
            EffectKind::Remove
        ]
    );
    assert_eq!(world.pool.active(), 1);
    assert_eq!(world.registered.len(), 1);
}

#[test]
fn instances_that_go_on_dying_come_again_after_a_growing_pause() {
    let mut world = World::of(probed("r1", 0), 8);
    world.ask("up", Verb::Activate, 1);
    world.settle();
    for _ in 0..3 {
        let ordinal = *world.pool.slots.keys().next().unwrap();
        assert!(world.probe(ordinal, Failure::new(NOT_ALIVE, "timed out")));
        world.settle();
        if world.pool.active() == 0 {
            assert!(world.pool.wake_at().is_some(), "it comes again");
            world.pass(Duration::from_secs(1));
            world.settle();
        }
    }
    assert_eq!(world.pool.failures, 3);
    assert_eq!(world.pool.active(), 1);
}

#[test]
fn what_is_not_alive_is_not_taken_back_while_it_drains() {
    let mut world = serving();
    world.probe(0, Failure::new(NOT_ALIVE, "timed out"));
    world.commit_one();
    world.ask("more", Verb::Activate, 2);
    world.settle();
    assert!(of_first(&world).contains(&EffectKind::Stop));
    assert_eq!(world.pool.active(), 2);
}

#[test]
fn an_unready_instance_is_the_first_to_go_and_is_drained_all_the_same() {
    let mut world = World::of(probed("r1", 0), 8);
    world.ask("up", Verb::Activate, 2);
    world.settle();
    world.probe(0, not_ready());
    world.commit_one();
    world.perform_one(0, Ok(()));
    world.performed.clear();
    let id = world.ask("down", Verb::Deactivate, 1);
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
    assert_eq!(
        world.pool.slots.keys().copied().collect::<Vec<_>>(),
        [1],
        "the ready one stays"
    );
    assert!(of_first(&world).contains(&EffectKind::Drain));
}

#[test]
fn an_unready_instance_is_unready_after_a_restart_until_it_is_seen_to_be_ready() {
    let mut world = serving();
    world.probe(0, not_ready());
    world.commit_one();
    world.perform_one(0, Ok(()));
    while world.commit_one() {}
    let row = world.journal[&0].clone().unwrap();
    assert_eq!(row.phase, Phase::Unready);
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
        revision: probed("r1", 0),
        revisions: BTreeMap::new(),
        instances: vec![(
            row.clone(),
            Observation::Connected {
                generation: row.generation,
                armed: true,
                started: true,
                over: false,
            },
            Listed::No,
        )],
        ends: BTreeMap::new(),
        tasks: Vec::new(),
    };
    let (pool, actions) = Pool::adopt(adopted, world.pool.limits, world.now, &mut world.ledger);
    world.pool = pool;
    world.effects.clear();
    world.performed.clear();
    for action in actions {
        match action {
            Action::Perform(effect) => world.effects.push(effect),
            Action::Commit { id, writes, .. } => world.commits.push((id, writes)),
            _ => {}
        }
    }
    world.settle();
    assert_eq!(
        of_first(&world),
        [
            EffectKind::Deregister,
            EffectKind::Recover,
            EffectKind::Register
        ]
    );
    let instance = &world.pool.slots[&0].instance;
    assert_eq!(
        (instance.phase, instance.generation),
        (Phase::Active, row.generation + 1)
    );
}
