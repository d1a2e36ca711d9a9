use super::{
    super::{
        queue::HandOn,
        session::{BindEpic, CloseSession, ForceRelease},
    },
    Latest, Notice, World, acquire, enqueue, key, lease, release, renew,
    session::{
        ENDED, NOT_ENDED, acquired, awaited, bound_to, found, held, is_nothing, released, renewed,
    },
};
use crate::domain::{Decision, FencingToken, Renewed};

fn close(world: &mut World) -> (bool, Vec<Notice>) {
    world.run_noting(CloseSession(&key("s")))
}

fn force(world: &mut World) -> bool {
    world.run(ForceRelease(&key("s")))
}

fn bind(world: &mut World, epic: Option<&str>) {
    world.run(BindEpic(&key("s"), epic));
}

/// The session free and bound to `E1`, and request 2, which wants `E2`, in its queue.
fn waiters_without_a_chance() -> World {
    let (mut world, own) = held();
    let mut other = enqueue(2, 200);
    other.acquire.epic = Some("E2".to_owned());
    world.run(other);
    bind(&mut world, Some("E1"));
    assert_eq!(released(&mut world, own), ENDED);
    assert!(!world.latest().waiting);
    world
}

// Bind.

#[test]
fn bind_makes_an_absent_session_free_and_bound() {
    let mut world = World::new();
    bind(&mut world, Some("E1"));
    assert!(!world.latest().is_live(world.now));
    assert_eq!(found(&mut world, &bound_to("E2", 1)), Decision::EpicMismatch("E1".to_owned()));
    let token = world.latest().token;
    acquired(&mut world, &acquire(1));
    assert!(world.latest().token > token);
}

#[test]
fn bind_leaves_the_lease_and_the_queue() {
    for (epic, seconds) in [(Some("E1"), 0), (None, 0), (Some("E1"), 30)] {
        let (mut world, _) = awaited();
        world.wait(seconds * 1_000);
        let before = world.latest().clone();
        bind(&mut world, epic);
        let version = world.latest().version;
        assert_ne!(version, before.version);
        let epic = epic.map(str::to_owned);
        assert_eq!(*world.latest(), Latest { version, epic, ..before });
        assert_eq!(world.queue().len(), 1);
    }
}

#[test]
fn bind_has_waiters_looked_at_again_that_could_not_have_the_session() {
    let mut world = waiters_without_a_chance();
    bind(&mut world, Some("E2"));
    assert!(world.latest().waiting);
    assert_eq!(world.run(HandOn(&key("s"))).1.unwrap().lease.id, lease(200));
}

// Force a release.

#[test]
fn force_release_of_an_absent_or_free_session_does_nothing() {
    let mut world = World::new();
    assert!(!force(&mut world));
    let (mut world, lease) = held();
    world.wait(30_000);
    assert!(world.decide(ForceRelease(&key("s"))).0.is_empty(), "it has lapsed");
    let _ = lease;
    let (mut world, lease) = held();
    released(&mut world, lease);
    assert!(world.decide(ForceRelease(&key("s"))).0.is_empty(), "it was released");
}

#[test]
fn force_release_ends_the_lease_and_raises_the_fence() {
    let (mut world, own) = awaited();
    let token = world.latest().token;
    let (was_held, notices) = world.run_noting(ForceRelease(&key("s")));
    assert!(was_held);
    assert_eq!(notices, [Notice::Session(key("s"))]);
    assert!(world.latest().token > token && world.latest().waiting);
    assert_eq!(renewed(&mut world, &renew(own)), Renewed::Gone);
    assert_eq!(is_nothing(&mut world, &release(own)), NOT_ENDED);
    let (row, handed) = world.run(HandOn(&key("s")));
    assert_eq!(row, handed);
    assert_eq!(handed.unwrap().lease.id, lease(200));
}

// Close.

#[test]
fn close_of_an_absent_session_does_nothing() {
    let (plan, was_there) = World::new().decide(CloseSession(&key("s")));
    assert!(plan.is_empty() && !was_there);
}

#[test]
fn close_deletes_a_session_held_or_free_and_raises_the_floor_to_its_token() {
    for seconds in [0, 30] {
        let (mut world, _) = held();
        let token = world.latest().token;
        world.wait(seconds * 1_000);
        assert_eq!(close(&mut world), (true, vec![Notice::Session(key("s"))]));
        assert!(world.sessions.is_empty());
        assert_eq!(world.floor, token);
        world.step_back(3_600_000);
        acquired(&mut world, &acquire(1));
        assert_eq!(world.latest().token, FencingToken(token.0 + 1));
    }
}

#[test]
fn close_leaves_an_awaited_session_to_its_waiters_free_and_unbound() {
    for seconds in [0, 30] {
        let (mut world, own) = awaited();
        bind(&mut world, Some("E1"));
        let token = world.latest().token;
        world.wait(seconds * 1_000);
        assert!(close(&mut world).0);
        let latest = world.latest();
        assert!(latest.waiting && latest.released && latest.epic.is_none());
        assert!(latest.token > token);
        assert_eq!(renewed(&mut world, &renew(own)), Renewed::Gone);
        assert_eq!(world.run(HandOn(&key("s"))).1.unwrap().lease.id, lease(200));
    }
}

#[test]
fn close_wakes_waiters_that_could_not_have_the_session_while_it_was_bound() {
    let mut world = waiters_without_a_chance();
    assert!(close(&mut world).0);
    assert!(world.latest().waiting);
    assert_eq!(world.run(HandOn(&key("s"))).1.unwrap().lease.id, lease(200));
}

#[test]
fn close_keeps_a_row_whose_token_is_above_the_clock() {
    let (mut world, _) = held();
    let token = world.latest().token;
    world.step_back(1);
    assert!(close(&mut world).0);
    assert_eq!(world.latest().token, FencingToken(token.0 + 1));
    assert_eq!(world.floor, FencingToken(0), "the floor of all sessions stays");
    assert!(!world.latest().is_live(world.now));
}
