//! A begin that is repeated while its request has the turn.

use std::time::Duration;

use super::{
    super::session::RenewWithin,
    Acquire, Begin, Finish, FinishAs, MAX_HOLD, World, acquire_again, begin, begin_again,
    begin_with_session, begun, digest, finish, granted, key, release, renew, request,
    turn::{running, taken},
};
use crate::domain::{Obtained, PriorGrant, ResumedBy, StreamId};

#[test]
fn begin_again_by_the_same_request_is_granted_again_and_noted_if_it_names_the_claim() {
    let (mut world, turn) = running();
    let stream = StreamId::random();
    let mut before = ResumedBy::Nobody;
    for (stream, noted) in [(None, ResumedBy::Call), (Some(stream), ResumedBy::Stream(stream))] {
        let again = Begin { stream, ..begin_again(&world, begin_with_session(1, &["a"])) };
        let (claim, held, obtained) = granted(world.run(&again).begun);
        assert_eq!((claim.attempt, obtained), (turn.attempt, Obtained::Resumed(before)));
        before = noted;
        assert_eq!(Some((key("s"), held.unwrap().id)), turn.lease);
        assert_eq!(world.event("a").unwrap().resumed, noted);
        assert_eq!(world.latest().resumed, noted);
    }
}

/// Its caller may have gone, and the turn may be a newer call's.
#[test]
fn begin_that_does_not_name_the_claim_of_its_request_as_it_is_notes_nothing() {
    let (mut world, turn) = running();
    let late = begin_again(&world, begin_with_session(1, &["a"]));
    let (older, newer) = (Some(StreamId::random()), Some(StreamId::random()));
    world.run(Begin { stream: newer, ..late.clone() });
    let resumed = ResumedBy::of(newer);
    // Of an attempt that was taken back: the next has its number.
    let other = Some(PriorGrant { id: world.now.plus(Duration::from_secs(1)), resumed });
    for resumes in [None, other, late.resumes] {
        for stream in [None, older] {
            let again = Begin { stream, resumes, ..begin_with_session(1, &["a"]) };
            let (plan, answer) = world.decide(again);
            assert!(plan.is_empty());
            let (claim, _, obtained) = granted(answer.begun);
            assert_eq!((claim.attempt, obtained), (turn.attempt, Obtained::Found(resumed)));
        }
    }
}

/// The answer to the first run of it was lost.
#[test]
fn begin_that_has_carried_the_turn_on_itself_has_it() {
    let (mut world, _) = running();
    let stream = Some(StreamId::random());
    let again = Begin { stream, ..begin_again(&world, begin_with_session(1, &["a"])) };
    for _ in 0..2 {
        let (_, _, obtained) = granted(world.run(&again).begun);
        assert_eq!(obtained, Obtained::Resumed(ResumedBy::Nobody));
        assert_eq!(world.event("a").unwrap().resumed, ResumedBy::of(stream));
        assert_eq!(world.latest().resumed, ResumedBy::of(stream));
    }
}

/// The answer to the run that was granted it was lost.
#[test]
fn begin_that_is_run_again_has_the_turn_that_it_was_granted() {
    let (mut world, asked) = (World::new(), begin_with_session(1, &["a"]));
    let turn = begun(&mut world, &asked);
    let (_, lease) = turn.lease.unwrap();
    let again = |world: &mut World, asked: &Begin| {
        let (plan, answer) = world.decide(asked);
        assert!(plan.is_empty());
        granted(answer.begun).2
    };
    assert_eq!(again(&mut world, &asked), Obtained::Granted);
    let other = begin_with_session(1, &["a"]);
    assert_eq!(again(&mut world, &other), Obtained::Found(ResumedBy::Nobody));
    world.run(RenewWithin(&renew(lease), MAX_HOLD));
    assert_eq!(again(&mut world, &asked), Obtained::Found(ResumedBy::Call));
}

/// By a stream that found the turn when the call had renewed its lease, or before that.
#[test]
fn begin_again_takes_a_lease_over_that_a_call_has_carried_on_alone() {
    let (mut world, turn) = running();
    let late = begin_again(&world, begin_with_session(1, &["a"])).kept_by(StreamId::random());
    let (_, lease) = turn.lease.clone().unwrap();
    world.run(RenewWithin(&renew(lease), MAX_HOLD));
    let (plan, answer) = world.decide(&late);
    assert!(plan.is_empty());
    let (.., found) = granted(answer.begun);
    assert_eq!(found, Obtained::Found(ResumedBy::Call));

    let stream = StreamId::random();
    let again = begin_with_session(1, &["a"]).kept_by(stream);
    let resumes = Some(PriorGrant { id: world.now, resumed: ResumedBy::Call });
    // The second time, as if the answer to the first was lost.
    for _ in 0..2 {
        let (.., obtained) = granted(world.run(Begin { resumes, ..again.clone() }).begun);
        // That call may be newer: unanswered, the stream ends nothing of it.
        assert_eq!(obtained, Obtained::Resumed(ResumedBy::Call));
        let by = [world.event("a").unwrap().resumed, world.latest().resumed];
        assert_eq!(by, [ResumedBy::Stream(stream); 2]);
    }
    // Answered, it ends what it keeps.
    let ends = Finish { unless_resumed: Some(stream), ..finish(&turn, FinishAs::Broken) };
    assert_eq!(world.run(ends).finished, Ok(None));
}

/// Nor is it noted as its own.
#[test]
fn begin_again_takes_no_turn_whose_lease_another_has_carried_on_since() {
    let (mut world, turn) = running();
    let own = StreamId::random();
    let again = begin_again(&world, begin_with_session(1, &["a"])).kept_by(own);
    world.run(&again);
    let (_, lease) = turn.lease.unwrap();
    world.run(RenewWithin(&renew(lease), MAX_HOLD));
    let (plan, answer) = world.decide(&again);
    assert!(plan.is_empty());
    assert_eq!(granted(answer.begun).2, Obtained::Found(ResumedBy::Call));

    let newer = StreamId::random();
    world.run(Acquire { stream: Some(newer), ..acquire_again(&world, 1) });
    let (plan, answer) = world.decide(&again);
    assert!(plan.is_empty());
    assert_eq!(granted(answer.begun).2, Obtained::Found(ResumedBy::Stream(newer)));
}

#[test]
fn begin_again_under_an_alias_is_granted_again_under_all_names() {
    let mut world = World::new();
    begun(&mut world, &begin(1, &["a", "b"]));
    let again = begin_again(&world, begin(1, &["b"]));
    let (_, _, obtained) = granted(world.run(again).begun);
    assert_eq!(obtained, Obtained::Resumed(ResumedBy::Nobody));
    assert_eq!(world.event("a"), world.event("b"));
    assert_eq!(world.event("a").unwrap().resumed, ResumedBy::Call);
}

#[test]
fn begin_again_without_its_session_is_in_progress() {
    let (mut world, turn) = running();
    world.run(release(turn.lease.unwrap().1));
    let row = taken(&mut world, &begin_with_session(1, &["a"]));
    assert!(row.is_claim_of(request(1)));
}

#[test]
fn begin_again_with_another_payload_is_in_progress() {
    let mut world = World::new();
    let mut own = begin(1, &["a"]);
    own.event.digest = Some(digest(1));
    begun(&mut world, &own);
    own.event.digest = Some(digest(2));
    let row = taken(&mut world, &own);
    assert!(own.event.contradicts(row.digest()));
}
