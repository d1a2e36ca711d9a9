use std::time::Duration;

use super::{
    super::{
        queue::{HandOn, Leave, PLACE_KEPT},
        session::BindEpic,
    },
    Enqueue, LeaseId, Notice, Waiter, World, acquire, digest, enqueue, enqueue_again, key, lease,
    release, request,
};
use crate::domain::{Enqueued, Obtained, SessionRow, Timestamp, limits::MAX_WAITERS_PER_SESSION};

/// The session held by request 1, and so many requests, from 2, in its queue: each is to end in
/// the lease of a hundred times its number.
fn awaited(waiters: u128) -> World {
    let mut world = World::new();
    world.run(acquire(1));
    for number in 2..2 + waiters {
        let enqueued = world.run(enqueue(number, number * 100));
        assert!(matches!(enqueued, Enqueued::Waits(_)), "{enqueued:?}");
    }
    world
}

fn leases(world: &World) -> Vec<LeaseId> {
    world.queue().iter().map(|waiter| waiter.lease).collect()
}

/// Hands the session on once its lease has lapsed. The lease that it went to.
fn handed_on(world: &mut World) -> Option<LeaseId> {
    world.wait(30_000);
    let (row, handed) = world.run(HandOn(&key("s")));
    assert!(handed.is_none() || row == handed);
    handed.map(|row| row.lease.id)
}

fn leave(world: &mut World, of: u128, keep: bool) -> (bool, Vec<Notice>) {
    world.run_noting(Leave { key: &key("s"), lease: lease(of), keep })
}

fn bound_to(epic: &str, number: u128) -> Enqueue {
    let mut enqueue = enqueue(number, number * 100);
    enqueue.acquire.epic = Some(epic.to_owned());
    enqueue
}

/// An enqueue that writes nothing.
fn refused(world: &mut World, op: &Enqueue) -> Enqueued {
    let (plan, enqueued) = world.decide(op);
    assert!(plan.is_empty());
    enqueued
}

// Enqueue.

#[test]
fn enqueue_at_an_absent_or_free_session_finds_it_free() {
    assert_eq!(refused(&mut World::new(), &enqueue(2, 200)), Enqueued::Free);
    let mut world = World::new();
    let acquired = world.run(acquire(1));
    world.run(release(acquired.row.lease.id));
    assert_eq!(refused(&mut world, &enqueue(2, 200)), Enqueued::Free);
}

#[test]
fn enqueue_at_a_held_session_takes_the_last_place() {
    let mut world = awaited(2);
    assert_eq!(leases(&world), [lease(200), lease(300)]);
    assert!(world.latest().waiting);
    let tickets: Vec<Option<i64>> = world.queue().iter().map(|waiter| waiter.ticket).collect();
    assert!(tickets.is_sorted(), "{tickets:?}");
    let (_, notices) = world.run_noting(enqueue(4, 400));
    assert_eq!(notices, [Notice::Session(key("s"))]);
}

#[test]
fn enqueue_at_a_free_session_that_somebody_waits_for_takes_the_last_place() {
    let mut world = awaited(1);
    world.wait(30_000);
    assert_eq!(world.run(enqueue(3, 300)), Enqueued::Waits(0));
    assert_eq!(handed_on(&mut world), Some(lease(200)));
}

#[test]
fn enqueue_by_the_same_request_takes_the_earlier_place_over() {
    let mut world = awaited(2);
    let ticket = world.queue()[0].ticket.unwrap();
    let (enqueued, notices) = world.run_noting(enqueue_again(2, 201, 200));
    assert_eq!(enqueued, Enqueued::TookOver(ticket, lease(200)));
    assert_eq!(notices, [Notice::TakenOver(lease(200)), Notice::Session(key("s"))]);
    assert_eq!(leases(&world), [lease(201), lease(300)]);
}

#[test]
fn enqueue_that_does_not_name_the_place_of_its_request_takes_none() {
    let mut world = awaited(1);
    for again in [enqueue(2, 201), enqueue_again(2, 201, 199)] {
        assert_eq!(refused(&mut world, &again), Enqueued::Taken(lease(200)));
    }
    assert_eq!(leases(&world), [lease(200)]);
}

#[test]
fn enqueue_by_the_same_request_of_another_payload_takes_a_place_of_its_own() {
    let mut world = awaited(1);
    let mut other = enqueue(2, 201);
    other.acquire.digest = Some(digest(1));
    assert!(matches!(world.run(other), Enqueued::Waits(_)));
    assert_eq!(leases(&world), [lease(200), lease(201)]);
}

#[test]
fn enqueue_that_is_repeated_finds_its_place() {
    let mut world = awaited(1);
    let ticket = world.queue()[0].ticket.unwrap();
    assert_eq!(refused(&mut world, &enqueue(2, 200)), Enqueued::Waits(ticket));
}

#[test]
fn enqueue_that_is_repeated_finds_the_lease_that_has_come_since() {
    let mut world = awaited(1);
    handed_on(&mut world);
    assert_eq!(refused(&mut world, &enqueue(2, 200)), Enqueued::Given);
    world.wait(30_000);
    assert_eq!(refused(&mut world, &enqueue(2, 200)), Enqueued::Free, "it has lapsed");
}

#[test]
fn enqueue_by_the_request_that_was_left_behind_waits_again_in_its_place() {
    let mut world = awaited(2);
    leave(&mut world, 200, true);
    world.wait(u64::try_from(PLACE_KEPT.as_millis()).unwrap() - 1);
    let enqueued = world.run(enqueue_again(2, 201, 200));
    assert!(matches!(enqueued, Enqueued::TookOver(_, earlier) if earlier == lease(200)));
    assert_eq!((world.queue()[0].lease, world.queue()[0].left_at), (lease(201), None));
}

#[test]
fn enqueue_forgets_places_that_were_left_behind_for_too_long() {
    let mut world = awaited(3);
    leave(&mut world, 200, true);
    world.wait(u64::try_from(PLACE_KEPT.as_millis()).unwrap());
    leave(&mut world, 300, true);
    assert!(matches!(world.run(enqueue(2, 201)), Enqueued::Waits(_)), "at the end");
    assert_eq!(leases(&world), [lease(300), lease(400), lease(201)]);
}

#[test]
fn enqueue_at_a_full_queue_is_refused_and_places_without_callers_do_not_count() {
    let mut world = awaited(MAX_WAITERS_PER_SESSION as u128);
    assert_eq!(refused(&mut world, &enqueue(1_000, 1)), Enqueued::Full);
    leave(&mut world, 200, true);
    assert!(matches!(world.run(enqueue(1_000, 1)), Enqueued::Waits(_)));
    assert_eq!(refused(&mut world, &enqueue(1_001, 2)), Enqueued::Full);
    world.queue_mut()[1].is_there = false;
    assert!(matches!(world.run(enqueue(1_001, 2)), Enqueued::Waits(_)));
}

// Hand-over.

#[test]
fn a_session_that_is_held_or_that_nobody_waits_for_is_not_handed_on() {
    for waiters in [0, 1] {
        let mut world = awaited(waiters);
        let (plan, (row, handed)) = world.decide(HandOn(&key("s")));
        assert!(plan.is_empty() && row.is_some() && handed.is_none());
    }
    let mut world = awaited(0);
    assert_eq!(handed_on(&mut world), None);
    assert_eq!(World::new().run(HandOn(&key("s"))), (None, None));
}

#[test]
fn a_hand_over_grants_the_first_waiter_what_it_asked_for() {
    let mut world = awaited(2);
    let (own, token) = (world.queue()[0].clone(), world.latest().token);
    world.wait(30_000);
    let ((row, _), notices) = world.run_noting(HandOn(&key("s")));
    assert_eq!(notices, [Notice::Handed(lease(200)), Notice::Session(key("s"))]);
    let latest = world.latest();
    assert_eq!(
        (latest.lease, latest.request, &latest.holder),
        (own.lease, own.request, &own.holder)
    );
    assert_eq!((latest.acquire_time, latest.expire_time), (world.now, world.now.plus(own.ttl)));
    assert!(latest.token > token && latest.waiting);
    assert!(matches!(row, Some(SessionRow { live: true, queue, .. }) if queue == [lease(300)]));
    assert_eq!(leases(&world), [lease(300)]);
}

#[test]
fn a_hand_over_to_the_last_waiter_leaves_the_session_to_anybody_afterwards() {
    let mut world = awaited(1);
    assert_eq!(handed_on(&mut world), Some(lease(200)));
    assert!(!world.latest().waiting);
}

#[test]
fn a_hand_over_passes_over_a_place_that_was_left_behind_and_keeps_it() {
    let mut world = awaited(2);
    leave(&mut world, 200, true);
    assert_eq!(handed_on(&mut world), Some(lease(300)));
    assert_eq!(leases(&world), [lease(200)]);
    assert!(!world.latest().waiting, "nobody waits in the place that is left");
}

#[test]
fn a_hand_over_passes_over_a_waiter_whose_server_is_gone_and_keeps_its_place() {
    let mut world = awaited(2);
    world.queue_mut()[0].is_there = false;
    assert_eq!(handed_on(&mut world), Some(lease(300)));
    assert_eq!(leases(&world), [lease(200)]);
    assert!(world.latest().waiting);
}

#[test]
fn a_hand_over_passes_over_a_waiter_that_wants_other_work_than_the_session_is_bound_to() {
    let mut world = awaited(0);
    world.run(bound_to("E2", 2));
    world.run(bound_to("E1", 3));
    world.run(enqueue(4, 400));
    world.run(BindEpic(&key("s"), Some("E1")));
    assert_eq!(handed_on(&mut world), Some(lease(300)));
    assert_eq!(handed_on(&mut world), Some(lease(400)), "it wants no work in particular");
    assert_eq!(world.latest().epic.as_deref(), Some("E1"));
    assert_eq!(handed_on(&mut world), None);
    assert_eq!(leases(&world), [lease(200)]);
}

#[test]
fn a_hand_over_binds_an_unbound_session_to_what_its_waiter_wants() {
    let mut world = awaited(0);
    world.run(bound_to("E2", 2));
    assert_eq!(handed_on(&mut world), Some(lease(200)));
    assert_eq!(world.latest().epic.as_deref(), Some("E2"));
}

#[test]
fn a_session_that_no_waiter_can_have_is_there_for_anybody_and_stays_bound() {
    let mut world = awaited(0);
    world.run(bound_to("E2", 2));
    world.run(BindEpic(&key("s"), Some("E1")));
    assert_eq!(handed_on(&mut world), None);
    let latest = world.latest();
    assert!(!latest.waiting && latest.epic.as_deref() == Some("E1"));
    assert_eq!(leases(&world), [lease(200)]);
    assert_eq!(world.run(acquire(9)).obtained, Some(Obtained::Granted));
}

// Leave.

#[test]
fn a_place_that_is_left_is_removed() {
    let mut world = awaited(2);
    assert_eq!(leave(&mut world, 200, false), (true, vec![Notice::Session(key("s"))]));
    assert_eq!(leases(&world), [lease(300)]);
    assert!(world.latest().waiting);
    leave(&mut world, 300, false);
    assert!(!world.latest().waiting && world.queue().is_empty());
}

#[test]
fn a_place_that_is_left_behind_is_kept_without_a_caller() {
    let mut world = awaited(1);
    assert!(leave(&mut world, 200, true).0);
    assert_eq!(world.queue()[0].left_at, Some(world.now));
    assert!(!world.latest().waiting);
    assert!(leave(&mut world, 200, false).0);
    assert!(world.queue().is_empty());
}

#[test]
fn a_place_that_was_left_behind_for_too_long_is_not_found() {
    let kept = u64::try_from(PLACE_KEPT.as_millis()).unwrap();
    for (millis, is_found) in [(kept - 1, true), (kept, false)] {
        let mut world = awaited(1);
        leave(&mut world, 200, true);
        world.wait(millis);
        assert_eq!(leave(&mut world, 200, false).0, is_found);
    }
}

#[test]
fn leaving_a_place_that_does_not_exist_does_nothing() {
    let mut world = awaited(1);
    for keep in [false, true] {
        let (plan, was_there) = world.decide(Leave { key: &key("s"), lease: lease(9), keep });
        assert!(plan.is_empty() && !was_there);
    }
    handed_on(&mut world);
    assert!(!world.run(Leave { key: &key("s"), lease: lease(200), keep: false }), "it has come");
}

#[test]
fn a_place_can_be_left_where_the_session_has_been_deleted() {
    let mut world = awaited(2);
    world.sessions.get_mut(&key("s")).unwrap().latest = None;
    assert!(leave(&mut world, 200, false).0);
    assert_eq!(leases(&world), [lease(300)]);
    assert!(leave(&mut world, 300, false).0);
    assert!(world.sessions.is_empty());
}

#[test]
fn a_queue_is_shown_only_while_somebody_may_have_the_session() {
    let mut world = awaited(2);
    leave(&mut world, 200, true);
    let row = world.sessions[&key("s")].row(world.now).unwrap();
    assert_eq!(row.queue, [lease(300)]);
    world.latest_mut().waiting = false;
    assert!(world.sessions[&key("s")].row(world.now).unwrap().queue.is_empty());
    assert_eq!(world.queue()[1].request, request(3));
    assert_eq!(PLACE_KEPT, Duration::from_secs(10));
}

/// Their server counted as gone for a while, and somebody else took the session.
#[test]
fn a_hand_over_finds_those_who_were_taken_for_gone() {
    for is_held in [true, false] {
        let mut world = awaited(2);
        world.latest_mut().waiting = false;
        if !is_held {
            world.wait(30_000);
        }
        let (row, handed) = world.run(HandOn(&key("s")));
        assert!(row.unwrap().waiting);
        assert_eq!(handed.map(|row| row.lease.id), (!is_held).then(|| lease(200)));
    }
    let changes: [fn(&mut Waiter); 3] = [
        |waiter| waiter.is_there = false,
        |waiter| waiter.epic = Some("other".to_owned()),
        |waiter| waiter.left_at = Some(Timestamp::from_micros(0)),
    ];
    for change in changes {
        let mut world = awaited(1);
        let session = world.sessions.get_mut(&key("s")).unwrap();
        let latest = session.latest.as_mut().unwrap();
        (latest.waiting, latest.epic) = (false, Some("own".to_owned()));
        change(&mut session.queue[0]);
        let (plan, _) = world.decide(HandOn(&key("s")));
        assert!(plan.is_empty());
    }
}

#[test]
fn enqueue_takes_no_place_where_an_acquire_is_answered_at_once() {
    let mut world = awaited(1);
    assert_eq!(refused(&mut world, &enqueue(1, 900)), Enqueued::Free, "its own");
    world.latest_mut().epic = Some("E1".to_owned());
    assert_eq!(refused(&mut world, &bound_to("E2", 9)), Enqueued::Free, "bound");
}

/// The lease of its place came and has ended, while the answer was lost.
#[test]
fn enqueue_that_is_run_again_after_the_end_of_its_lease_takes_no_place_for_it() {
    let (mut world, asked) = (awaited(1), enqueue(9, 900));
    asked.acquire.lease.spend();
    assert_eq!(refused(&mut world, &asked), Enqueued::Spent);
}

#[test]
fn a_queue_shows_nobody_whose_server_is_gone() {
    let mut world = awaited(2);
    world.sessions.get_mut(&key("s")).unwrap().queue[0].is_there = false;
    assert_eq!(world.sessions[&key("s")].row(world.now).unwrap().queue, [lease(300)]);
}
