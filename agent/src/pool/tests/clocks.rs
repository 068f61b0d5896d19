//! Wall clocks that are set while the agent is away.

use super::*;
use crate::journal::{PoolRow, TaskRow};

const HOUR_MS: i64 = 3_600_000;

#[test]
fn what_is_left_of_a_deadline_is_the_same_whatever_the_wall_clock_says() {
    for step in [HOUR_MS, -HOUR_MS] {
        let mut world = World::new(0, 8);
        world.now.wall_ms = 10_000_000;
        world.ask("t1", Verb::Activate, 1);
        world.commit_one();
        let begun = world.now;
        let context = world.pool.tasks[&"t1".parse().unwrap()].context.clone();
        // A kill; 20 s later another agent is there, and somebody has set the clock.
        let millis = 20_000;
        let now = Now {
            at: begun.at + Duration::from_millis(millis),
            wall_ms: (begun.wall_ms + millis).saturating_add_signed(step),
            steady_ms: begun.steady_ms + millis,
        };
        let adopted = Adopted {
            stable: None,
            pool: PoolRow {
                app: world.pool.app.clone(),
                revision: world.pool.revision.id.clone(),
                target: 1,
                seq: 1,
                deleting: false,
                applied_ms: 0,
            },
            revision: world.pool.revision.clone(),
            revisions: BTreeMap::new(),
            instances: Vec::new(),
            ends: BTreeMap::new(),
            tasks: vec![TaskRow {
                image: Default::default(),
                context,
                app: world.pool.app.clone(),
                verb: Verb::Activate,
                to: 1,
                restart: None,
                roll: None,
                hash: String::new(),
                target: 1,
                seq: 1,
                created_ms: begun.wall_ms,
                steady_ms: begun.steady_ms,
                deadline_ms: 60_000,
            }],
        };
        let (pool, _) = Pool::adopt(adopted, world.pool.limits, now, &mut world.ledger);
        let left = pool.tasks.values().next().unwrap().deadline - now.at;
        assert_eq!(left, Duration::from_secs(40), "{step}");
    }
}

#[test]
fn a_quarantine_begins_by_the_clock_that_nobody_sets() {
    let mut world = World::new(0, 8);
    world.ask("t1", Verb::Activate, 1);
    world.settle();
    world.now.wall_ms += 3_600_000;
    world.ask("t2", Verb::Deactivate, 0);
    world.settle();
    assert!(world.pool.slots.is_empty(), "{:?}", world.phases());
    assert_eq!(world.pool.released[&0], world.now.steady_ms);
}
