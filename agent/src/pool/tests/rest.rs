//! `restartPolicy`: whose place is taken, and by how much the target falls.

use super::*;

/// A pool with `count` in service of an app with this policy.
fn serving(policy: &str, count: u32) -> World {
    let mut world = World::of(probed_with("r1", 0, policy), 8);
    world.ask("up", Verb::Activate, count);
    world.settle();
    assert_eq!(world.pool.active(), count);
    world
}

fn exit(world: &mut World, ordinal: u32, code: &'static str) {
    let create_generation = world.pool.slots[&ordinal].instance.create_generation;
    world.event(Event::Exited {
        ordinal,
        create_generation,
        failure: Failure::new(code, "process \"app\" ended"),
    });
}

fn rest(world: &mut World) {
    for _ in 0..5 {
        world.settle();
        world.pass(Duration::from_secs(5));
    }
    world.settle();
    assert!(world.journal_agrees());
}

#[test]
fn the_policy_says_whether_another_takes_the_place_or_the_target_falls() {
    for (policy, code, target) in [
        ("Always", COMPLETED, 3),
        ("Always", "exited", 3),
        ("OnFailure", COMPLETED, 2),
        ("OnFailure", "exited", 3),
        ("OnFailure", "out_of_memory", 3),
        ("Never", COMPLETED, 2),
        ("Never", "exited", 2),
    ] {
        let mut world = serving(policy, 3);
        let seq = world.pool.seq;
        exit(&mut world, 1, code);
        rest(&mut world);
        let got = (world.pool.target, world.pool.active(), world.phases().len());
        assert_eq!(got, (target, target, target as usize), "{policy}, {code}");
        assert_eq!(world.pool.seq, seq + u64::from(3 - target));
        assert_eq!(world.pool.alarm, None);
    }
}

#[test]
fn an_app_that_did_its_work_is_no_failure_and_the_next_one_needs_no_pause() {
    let mut world = serving("OnFailure", 3);
    for ordinal in 0..3 {
        exit(&mut world, ordinal, COMPLETED);
        world.settle();
    }
    assert_eq!((world.pool.target, world.pool.streak), (0, 0));
    assert_eq!(world.pool.wake_at(), None);
    let id = world.ask("more", Verb::Activate, 2);
    world.settle();
    assert_eq!(
        (world.end_of(&id), world.pool.active()),
        (EndState::Done, 2)
    );
}

#[test]
fn an_activation_whose_instance_ended_says_why_it_is_less() {
    let mut world = World::of(probed_with("r1", 0, "Never"), 8);
    let id = world.ask("up", Verb::Activate, 2);
    world.commit_one();
    while !world.phases().contains(&Phase::Probing) {
        assert!(world.commit_one() || world.perform_one(0, Ok(())));
    }
    let probing = world
        .pool
        .slots
        .values()
        .find(|s| s.instance.phase == Phase::Probing);
    let ordinal = probing.unwrap().instance.ordinal;
    exit(&mut world, ordinal, "exited");
    rest(&mut world);
    assert_eq!(world.end_of(&id), EndState::Partial);
    assert_eq!(
        world.answers[&id].detail.as_deref(),
        Some("1 of 2 active: process \"app\" ended; restartPolicy is Never: the target is 1 now")
    );
    assert_eq!((world.pool.target, world.pool.active()), (1, 1));
}

#[test]
fn what_never_started_its_app_is_made_again_whatever_the_policy() {
    let mut world = World::of(probed_with("r1", 0, "Never"), 8);
    let id = world.ask("up", Verb::Activate, 1);
    world.commit_one();
    world.perform_one(0, Err(Failure::new("network", "no veth")));
    rest(&mut world);
    assert_eq!((world.end_of(&id), world.pool.target), (EndState::Done, 1));
}

#[test]
fn one_that_is_not_alive_is_drained_and_only_it_leaves() {
    let mut world = serving("Never", 3);
    world.performed.clear();
    assert!(world.probe(0, Failure::new(NOT_ALIVE, "no answer")));
    rest(&mut world);
    assert_eq!((world.pool.target, world.pool.active()), (2, 2));
    assert_eq!(world.pool.slots.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert!(world.performed.contains(&(0, EffectKind::Drain)));
}

#[test]
fn an_end_counts_once_however_often_the_agent_is_killed() {
    let mut world = serving("Never", 2);
    let active = world.journal[&0].clone().unwrap();
    let other = world.journal[&1].clone().unwrap();
    exit(&mut world, 0, "exited");
    let (_, writes) = world.commits[0].clone();
    let after = writes.iter().rev().find_map(|write| match write {
        Write::Instance(row) if row.instance.ordinal == 0 => Some(row.clone()),
        _ => None,
    });
    let lessened = writes
        .iter()
        .any(|write| matches!(write, Write::Target { target: 1, .. }));
    assert!(lessened, "in the intent that takes it out: {writes:?}");
    // Killed before the intent was durable: the end is found, and counted. After it: not again.
    for (row, target) in [(active, 2), (after.unwrap(), 1)] {
        let running = Observation::Connected {
            generation: other.generation,
            armed: true,
            started: true,
            over: false,
        };
        let adopted = Adopted {
            stable: None,
            pool: crate::journal::PoolRow {
                app: world.pool.app.clone(),
                revision: "r1".into(),
                target,
                seq: 7,
                deleting: false,
                applied_ms: 0,
            },
            revision: probed_with("r1", 0, "Never"),
            revisions: BTreeMap::new(),
            instances: vec![
                (row, Observation::Absent, Listed::Yes),
                (other.clone(), running, Listed::Yes),
            ],
            ends: BTreeMap::new(),
            tasks: Vec::new(),
        };
        let (pool, actions) = Pool::adopt(adopted, world.pool.limits, world.now, &mut world.ledger);
        world.pool = pool;
        world.effects.clear();
        world.commits.clear();
        for action in actions {
            match action {
                Action::Commit { id, writes, .. } => world.commits.push((id, writes)),
                Action::Perform(effect) => world.effects.push(effect),
                other => panic!("{other:?}"),
            }
        }
        rest(&mut world);
        assert_eq!((world.pool.target, world.pool.active()), (1, 1));
        assert_eq!(world.phases().len(), 1);
    }
}
