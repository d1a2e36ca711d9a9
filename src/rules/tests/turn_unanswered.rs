//! A begin that may have been granted a turn, or its lease alone, without an answer: it goes on
//! with what it has, or gives it back.

use super::{
    Acquire, Begin, Finish, FinishAs, Operation as _, TurnId, World, acquire, acquire_again,
    begin_again, begin_with_session, begun, enqueue, finish, granted, key, lease, mark, request,
};
use crate::domain::{Begun, Obtained, StreamId, TurnLost};

/// A begin whose first run took the session without the event, whose answer was lost.
fn alone() -> (World, Begin) {
    let mut world = World::new();
    let begin = begin_with_session(1, &["a", "b"]);
    world.run(own(&begin));
    begin.spend();
    (world, begin)
}

fn own(begin: &Begin) -> &Acquire {
    begin.session.as_ref().unwrap()
}

/// What is posted once its caller has gone.
fn give_back(begin: &Begin) -> Finish {
    let turn = TurnId {
        event: begin.event.key.clone(),
        request: begin.request,
        attempt: 0,
        lease: Some((key("s"), own(begin).lease.id())),
        max_attempts: begin.max_attempts,
    };
    let unless_resumed = Some(StreamId::random());
    Finish { unless_resumed, ..finish(&turn, FinishAs::Unanswered) }
}

/// What it is answered that changes nothing.
fn lost(world: &mut World, finish: &Finish) -> TurnLost {
    let (plan, answer) = world.decide(finish);
    assert!(plan.is_empty(), "{plan:?}");
    answer.finished.unwrap_err()
}

#[test]
fn begin_goes_on_with_the_lease_that_an_earlier_run_of_it_took() {
    let (mut world, begin) = alone();
    let token = world.latest().token;
    world.wait(1);
    let (claim, held, obtained) = granted(world.run(&begin).begun);
    assert_eq!((claim.attempt, obtained), (1, Obtained::Granted));
    let held = held.unwrap();
    assert_eq!((held.id, held.token), (own(&begin).lease.id(), token));
    assert!(world.event("a").unwrap().is_live(world.now));
}

#[test]
fn begin_leaves_the_lease_of_an_earlier_run_of_it_that_another_call_carries_on() {
    let (mut world, begin) = alone();
    let again = acquire_again(&world, 1);
    world.run(again);
    let (plan, answer) = world.decide(&begin);
    assert!(plan.is_empty() && matches!(answer.begun, Begun::Busy(_)), "{answer:?}");
}

/// What it rests on: somebody may end the lease meanwhile.
#[test]
fn begin_goes_on_only_with_a_lease_that_still_runs_as_it_was_found() {
    let (mut world, begin) = alone();
    let (plan, _) = world.decide(&begin);
    let again = acquire_again(&world, 1);
    world.run(again);
    assert!(!world.apply(plan), "another call has carried it on");
    let (mut world, begin) = alone();
    let (plan, _) = world.decide(&begin);
    world.wait(30_000);
    assert!(!world.apply(plan), "it has ended");
}

#[test]
fn what_an_unanswered_begin_was_granted_is_given_back() {
    for with_event in [false, true] {
        let (mut world, begin) = alone();
        if with_event {
            begun(&mut world, &begin);
        }
        world.run(enqueue(2, 200));
        let answer = world.run(give_back(&begin));
        assert_eq!(answer.finished, Ok(None));
        assert_eq!(answer.handover.unwrap().lease.id, lease(200));
        let events = ["a", "b"].map(|name| world.event(name).cloned());
        for event in events.into_iter().flatten() {
            assert!(with_event && !event.is_live(world.now), "{event:?}");
            assert_eq!(event.attempts.unwrap().claimed, 0, "the attempt is taken back");
        }
    }
}

#[test]
fn an_unanswered_begin_gives_back_nothing_that_another_call_has_carried_on() {
    let (mut world, begin) = alone();
    let again = acquire_again(&world, 1);
    world.run(again);
    assert_eq!(lost(&mut world, &give_back(&begin)), TurnLost::Replaced, "the lease");
    let (mut world, begin) = alone();
    begun(&mut world, &begin);
    let again = begin_again(&world, begin_with_session(1, &["a", "b"]));
    world.run(again);
    assert_eq!(lost(&mut world, &give_back(&begin)), TurnLost::Replaced, "the turn");
}

#[test]
fn an_unanswered_begin_gives_back_only_what_its_own_lease_stands_for() {
    let (mut world, begin) = alone();
    begun(&mut world, &begin);
    // The same request, by another call.
    let other = begin_with_session(1, &["a", "b"]);
    assert_eq!(lost(&mut world, &give_back(&other)), TurnLost::Lease(None));
}

#[test]
fn the_claim_of_an_unanswered_begin_is_given_back_after_its_lease_has_ended() {
    let (mut world, begin) = alone();
    world.wait(30_000);
    assert_eq!(lost(&mut world, &give_back(&begin)), TurnLost::Lease(None), "no claim");
    let claimed = || {
        let (mut world, begin) = alone();
        begun(&mut world, &begin);
        world.wait(30_000);
        assert!(!world.latest().is_live(world.now));
        (world, begin)
    };
    let (mut world, begin) = claimed();
    let answer = world.run(give_back(&begin));
    assert!(matches!(answer.finished, Ok(None)) && answer.handover.is_none(), "{answer:?}");
    let event = world.event("a").unwrap();
    assert_eq!((event.is_live(world.now), event.attempts.unwrap().claimed), (false, 0));
    // Another call has the session: the lease stands for nothing any more.
    let (mut world, begin) = claimed();
    world.run(acquire(2));
    assert_eq!(lost(&mut world, &give_back(&begin)), TurnLost::Lease(None));
}

#[test]
fn an_unanswered_begin_leaves_an_event_that_is_anothers() {
    let (mut world, begin) = alone();
    world.run(mark(2, &["a"]));
    assert_eq!(world.run(give_back(&begin)).finished, Ok(None));
    assert!(world.latest().released);
    assert_eq!(world.event("a").unwrap().request, Some(request(2)));
    assert!(world.event("a").unwrap().is_live(world.now));
}
