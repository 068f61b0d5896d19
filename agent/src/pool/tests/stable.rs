//! Which revision scale-out uses while another image is tried.

use super::*;
use crate::journal::StableRow;
use crate::pool::machine::count;
use crate::pool::{Evidence, Stable};
use crate::task::ScaleImage;

/// `count` in service from image 1 (revision `r1`), and image 2 (`r2`) applied.
fn tried(count: u32, armed: u32) -> World {
    let mut world = World::of(with_image(&revision("r1", armed), 1), 8);
    world.ask("up", Verb::Activate, count);
    world.settle();
    apply(&mut world, "r2", armed, 2);
    world.performed.clear();
    world
}

fn apply(world: &mut World, id: &str, armed: u32, image: usize) {
    let revision = with_image(&revision(id, armed), image);
    world.event(Event::Command(Command::Revise(revision)));
    world.settle();
}

/// Instances of a revision, in service or warm.
fn all_of(world: &World, revision: &str) -> u32 {
    let of = |slot: &&Slot| slot.instance.revision.id == revision;
    count(world.pool.slots.values().filter(of))
}

fn stable(world: &World) -> Option<(&str, bool)> {
    let stable = world.pool.stable.as_ref()?;
    let by_hand = stable.evidence == Evidence::ByHand;
    Some((stable.revision.id.as_str(), by_hand))
}

#[test]
fn what_covers_all_instances_is_stable_and_written_with_its_evidence() {
    let mut world = World::of(with_image(&revision("r1", 1), 1), 8);
    assert_eq!(stable(&world), None);
    world.ask("up", Verb::Activate, 3);
    while world.pool.active() < 3 {
        assert_eq!(stable(&world), None, "not before all are active");
        assert!(world.commit_one() || world.perform_one(0, Ok(())));
    }
    world.settle();
    assert_eq!(stable(&world), Some(("r1", false)));
    let row = world.stable.as_ref().unwrap();
    assert_eq!(row.revision, "r1");
    assert_eq!(
        row.evidence,
        Evidence::Covered {
            instances: 3,
            task_id: Some("up".parse().unwrap()),
        }
    );
    // What was covered once stays so when instances leave.
    world.ask("down", Verb::Deactivate, 0);
    world.settle();
    assert_eq!(stable(&world), Some(("r1", false)));
}

#[test]
fn scale_out_and_refill_use_the_stable_image_until_another_one_covers_all() {
    let mut world = tried(3, 2);
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r2")), (5, 0));
    world.ask("more", Verb::Activate, 5);
    world.settle();
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r2")), (7, 0));
    let id = world.roll("roll", RollStep::Instances(2));
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r2")), (0, 7));
    assert_eq!(stable(&world), Some(("r2", false)));
    assert_eq!(world.stable.as_ref().unwrap().revision, "r2");
}

#[test]
fn a_task_that_says_applied_tries_the_new_image_and_scale_in_ends_the_trial() {
    let mut world = tried(3, 1);
    let id: TaskId = "canary".parse().unwrap();
    let mut request = world.a_request("canary", Verb::Activate, 4, None);
    request.image = ScaleImage::Applied;
    world.event(Event::Command(Command::Target(request)));
    world.settle();
    assert_eq!(world.end_of(&id), EndState::Done);
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r2")), (4, 1));
    // More of it come from the stable image again.
    world.ask("more", Verb::Activate, 5);
    world.settle();
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r2")), (5, 1));
    world.ask("fewer", Verb::Deactivate, 4);
    world.settle();
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r2")), (5, 0));
    assert_eq!(stable(&world), Some(("r1", false)));
}

#[test]
fn with_nothing_of_the_stable_image_in_service_the_applied_one_is_used() {
    let mut world = tried(2, 1);
    world.ask("down", Verb::Deactivate, 0);
    world.settle();
    world.ask("up-again", Verb::Activate, 2);
    world.settle();
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r2")), (0, 3));
    assert_eq!(stable(&world), Some(("r2", false)));
}

#[test]
fn what_was_set_by_hand_holds_until_it_is_taken_back() {
    let mut world = tried(2, 0);
    let r1 = world.pool.stable.as_ref().unwrap().revision.clone();
    let said = Stable {
        revision: r1,
        evidence: Evidence::ByHand,
        since_ms: 1_700_000_000_123,
    };
    world.event(Event::Command(Command::Stable(Some(said.clone()))));
    world.settle();
    // The journal has what the pool has.
    assert_eq!(world.stable, Some(StableRow::of(&said)));
    assert_eq!(world.pool.stable, Some(said));
    assert_eq!(stable(&world), Some(("r1", true)));
    world.roll("roll", RollStep::Instances(1));
    world.settle();
    assert_eq!(all_of(&world, "r2"), 2);
    assert_eq!(stable(&world), Some(("r1", true)));
    // Also with nothing of it in service.
    world.ask("more", Verb::Activate, 3);
    world.settle();
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r2")), (1, 2));
    world.ask("back", Verb::Deactivate, 2);
    world.settle();
    world.event(Event::Command(Command::Stable(None)));
    world.settle();
    assert!(matches!(stable(&world), Some((_, false)) | None));
}

#[test]
fn another_environment_of_the_stable_image_is_used_at_once_and_remembered() {
    let mut world = tried(2, 1);
    apply(&mut world, "r1b", 1, 1);
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r1b")), (2, 1));
    world.ask("more", Verb::Activate, 3);
    world.settle();
    assert_eq!((all_of(&world, "r1"), all_of(&world, "r1b")), (2, 2));
    let since = world.pool.stable.as_ref().unwrap().since_ms;
    apply(&mut world, "r3", 1, 3);
    let stable = world.pool.stable.as_ref().unwrap();
    assert_eq!(
        (stable.revision.id.as_str(), stable.since_ms),
        ("r1b", since)
    );
    assert_eq!(world.stable.as_ref().unwrap().revision, "r1b");
}

#[test]
fn a_journal_that_refuses_leaves_the_stable_image_to_be_written_later() {
    let mut world = World::of(with_image(&revision("r1", 0), 1), 8);
    world.ask("up", Verb::Activate, 1);
    while world.pool.active() < 1 {
        assert!(world.commit_one() || world.perform_one(0, Ok(())));
    }
    world.refuse_next = true;
    world.settle();
    world.pass(Duration::from_secs(2));
    world.settle();
    assert_eq!(world.stable.as_ref().unwrap().revision, "r1");
}
