use super::{
    Begin, Finish, FinishAs, TurnId, World, acquire_again, begin, begin_again, begin_with_session,
    begun, detail, enqueue, finish, lease, mark, release, succeeded, ttl, turn::is_lost,
};
use crate::domain::{
    EventRow, ProcessedBy, ResumedBy, StoredEvent, StreamId, TurnLost, limits::CLAIM_MEMORY,
};
use crate::rules::{Operation as _, event::ForgetEvent, session::ForceRelease};

fn running() -> (World, TurnId) {
    let mut world = World::new();
    let turn = begun(&mut world, &begin_with_session(1, &["a", "b"]));
    (world, turn)
}

fn kept(world: &mut World, finish: &Finish) -> Result<Option<EventRow>, TurnLost> {
    world.run(finish).finished
}

fn by(kept: Result<Option<EventRow>, TurnLost>) -> Option<ProcessedBy> {
    match kept {
        Ok(row) => row.map(|row| match row {
            EventRow::Processed(StoredEvent { by, .. }) => by,
            EventRow::Claimed(claim) => panic!("not handled: {claim:?}"),
        }),
        other => panic!("not done: {other:?}"),
    }
}

fn attempts(world: &World) -> (u32, u32) {
    let attempts = world.event("a").unwrap().attempts.unwrap();
    (attempts.claimed, attempts.uncounted)
}

fn rejected(text: &str) -> FinishAs {
    FinishAs::Rejected(Some(detail(text)), ttl(600))
}

const FAILED: FinishAs = FinishAs::Failed(None);

// What a turn has lost.

#[test]
fn a_turn_of_an_unknown_or_forgotten_event_is_lost() {
    let (mut world, turn) = running();
    assert!(is_lost(&mut World::new(), &turn, &Err(TurnLost::Claim)));
    world.run(ForgetEvent(&turn.event));
    assert!(is_lost(&mut world, &turn, &Err(TurnLost::Claim)));
}

#[test]
fn a_turn_of_another_request_or_another_attempt_is_lost() {
    let (mut world, turn) = running();
    let other = TurnId { request: super::request(9), ..turn.clone() };
    assert!(is_lost(&mut world, &other, &Err(TurnLost::Claim)));
    world.wait(60_000);
    begun(&mut world, &begin_with_session(1, &["a", "b"]));
    assert!(is_lost(&mut world, &turn, &Err(TurnLost::Claim)), "the attempt before");
}

#[test]
fn a_turn_whose_claim_has_lapsed_is_lost_before_anybody_takes_it() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    world.wait(60_000);
    assert!(is_lost(&mut world, &turn, &Err(TurnLost::Claim)));
}

#[test]
fn a_turn_of_an_event_that_was_handled_otherwise_is_lost() {
    let (mut world, turn) = running();
    world.wait(60_000);
    world.run(mark(2, &["a"]));
    assert!(is_lost(&mut world, &turn, &Err(TurnLost::Claim)));
}

#[test]
fn a_turn_whose_lease_has_ended_is_lost_and_says_how_long_it_was_held() {
    let (mut world, turn) = running();
    world.wait(30_000);
    assert!(is_lost(&mut world, &turn, &Err(TurnLost::Lease(Some(ttl(30).span())))), "it ran out");
    let (mut world, turn) = running();
    world.run(release(turn.lease.clone().unwrap().1));
    assert!(is_lost(&mut world, &turn, &Err(TurnLost::Lease(None))), "it was released");
    let (mut world, turn) = running();
    world.run(ForceRelease(&super::key("s")));
    assert!(is_lost(&mut world, &turn, &Err(TurnLost::Lease(None))), "an operator released it");
    let (mut world, turn) = running();
    world.wait(30_000);
    world.run(super::acquire(2));
    assert!(is_lost(&mut world, &turn, &Err(TurnLost::Lease(None))), "it passed to another");
}

// How a turn ends.

#[test]
fn a_success_handles_the_event_under_all_names_and_releases_the_session() {
    let (mut world, turn) = running();
    world.wait(1_000);
    assert_eq!(by(kept(&mut world, &finish(&turn, succeeded("done")))), Some(ProcessedBy::Turn(1)));
    let event = world.event("a").unwrap();
    assert_eq!((event.time, event.expire_time), (world.now, world.now.after(ttl(600))));
    assert_eq!(world.event("a"), world.event("b"));
    assert!(world.latest().released);
}

#[test]
fn a_rejection_handles_the_event_with_its_detail() {
    let (mut world, turn) = running();
    assert_eq!(
        by(kept(&mut world, &finish(&turn, rejected("bad")))),
        Some(ProcessedBy::Rejected(1))
    );
    assert_eq!(world.event("a").unwrap().detail, Some(detail("bad")));
}

#[test]
fn a_failure_frees_the_event_and_counts() {
    let (mut world, turn) = running();
    assert_eq!(by(kept(&mut world, &finish(&turn, FinishAs::Failed(Some(detail("no")))))), None);
    assert_eq!(attempts(&world), (1, 0));
    let event = world.event("a").unwrap();
    assert!(!event.is_live(world.now));
    assert_eq!(
        (event.detail.clone(), event.expire_time),
        (Some(detail("no")), world.now.plus(CLAIM_MEMORY))
    );
    assert!(world.latest().released);
}

#[test]
fn a_failure_of_the_last_attempt_gives_the_event_up() {
    let mut world = World::new();
    for attempt in 1..=3 {
        let turn = begun(&mut world, &begin(attempt, &["a"]));
        let ended = kept(&mut world, &finish(&turn, FinishAs::Failed(Some(detail("no")))));
        assert_eq!(by(ended), (attempt == 3).then_some(ProcessedBy::GaveUp(3)));
    }
    assert_eq!(world.event("a").unwrap().detail, Some(detail("no")));
}

#[test]
fn a_broken_stream_leaves_the_detail_of_the_turn_before() {
    let (mut world, turn) = running();
    world.run(finish(&turn, FinishAs::Failed(Some(detail("no")))));
    let turn = begun(&mut world, &begin_with_session(2, &["a", "b"]));
    world.run(finish(&turn, FinishAs::Broken));
    assert_eq!(world.event("a").unwrap().detail, Some(detail("no")));
}

#[test]
fn a_broken_stream_frees_the_event_and_does_not_count() {
    let mut world = World::new();
    for attempt in 1..=5 {
        let turn = begun(&mut world, &begin(1, &["a"]));
        assert_eq!(turn.attempt, attempt, "attempts that do not count are never spent");
        assert_eq!(by(kept(&mut world, &finish(&turn, FinishAs::Broken))), None);
        assert_eq!(attempts(&world), (attempt, attempt));
    }
}

#[test]
fn an_abandoned_turn_frees_the_event_and_takes_its_attempt_back() {
    let (mut world, turn) = running();
    world.run(finish(&turn, FinishAs::Failed(Some(detail("no")))));
    let turn = begun(&mut world, &begin_with_session(2, &["a", "b"]));
    assert_eq!(attempts(&world), (2, 0));
    let ending = FinishAs::Abandoned(world.now);
    assert_eq!(by(kept(&mut world, &finish(&turn, ending))), None);
    assert_eq!(attempts(&world), (1, 0));
    assert_eq!(world.event("a").unwrap().detail, Some(detail("no")), "of the turn before");
}

#[test]
fn the_end_of_a_turn_hands_its_session_to_the_first_waiter() {
    let endings = [
        succeeded("done"),
        rejected("bad"),
        FAILED,
        FinishAs::Broken,
        FinishAs::Abandoned(running().0.now),
    ];
    for ending in endings {
        let (mut world, turn) = running();
        world.run(enqueue(2, 200));
        let answer = world.run(finish(&turn, ending));
        assert_eq!(answer.handover.unwrap().lease.id, lease(200));
    }
}

#[test]
fn an_end_that_is_repeated_is_done_except_for_one_that_was_taken_back() {
    for ending in [succeeded("done"), rejected("bad"), FAILED, FinishAs::Broken] {
        let (mut world, turn) = running();
        let finish = finish(&turn, ending);
        let first = kept(&mut world, &finish);
        let (plan, again) = world.decide(&finish);
        assert!(plan.is_empty());
        assert_eq!(again.finished, first);
    }
    let (mut world, turn) = running();
    let abandoned = finish(&turn, FinishAs::Abandoned(world.now));
    kept(&mut world, &abandoned).unwrap();
    assert_eq!(kept(&mut world, &abandoned), Err(TurnLost::Claim));
}

/// Its answer was lost, and the attempt that it took back has been made again since.
#[test]
fn taking_an_attempt_back_again_leaves_the_next_that_has_its_number() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    let abandoned = finish(&turn, FinishAs::Abandoned(world.now));
    kept(&mut world, &abandoned).unwrap();
    world.wait(1);
    assert_eq!(begun(&mut world, &begin(1, &["a"])), turn);
    let (plan, again) = world.decide(&abandoned);
    assert!(plan.is_empty());
    assert_eq!(again.finished, Err(TurnLost::Claim));
    assert!(world.event("a").unwrap().is_live(world.now));
}

#[test]
fn the_last_failure_that_is_repeated_is_done() {
    let mut world = World::new();
    let once = Begin { max_attempts: 1, ..begin(1, &["a"]) };
    let turn = begun(&mut world, &once);
    let first = kept(&mut world, &finish(&turn, FAILED));
    assert_eq!(by(first.clone()), Some(ProcessedBy::GaveUp(1)));
    assert_eq!(kept(&mut world, &finish(&turn, FAILED)), first);
}

#[test]
fn an_end_is_done_only_for_its_own_request_and_until_the_event_expires() {
    let (mut world, turn) = running();
    let finish = finish(&turn, succeeded("done"));
    kept(&mut world, &finish).unwrap();
    let other = TurnId { request: super::request(9), ..turn };
    assert_eq!(kept(&mut world, &Finish { turn: other, ..finish.clone() }), Err(TurnLost::Claim));
    world.wait(599_999);
    assert_eq!(by(kept(&mut world, &finish)), Some(ProcessedBy::Turn(1)));
    world.wait(1);
    assert_eq!(kept(&mut world, &finish), Err(TurnLost::Claim));
}

#[test]
fn an_end_after_another_end_is_lost() {
    let endings = [succeeded("done"), rejected("bad"), FAILED];
    for (place, first) in endings.iter().enumerate() {
        for (_, second) in endings.iter().enumerate().filter(|(other, _)| *other != place) {
            let (mut world, turn) = running();
            kept(&mut world, &finish(&turn, first.clone())).unwrap();
            assert_eq!(kept(&mut world, &finish(&turn, second.clone())), Err(TurnLost::Claim));
        }
    }
}

#[test]
fn an_end_that_spares_a_turn_carried_on_by_another_call_changes_nothing() {
    let own = StreamId::random();
    let unless_resumed = Some(own);
    for stream in [None, Some(StreamId::random())] {
        let (mut world, turn) = running();
        world.run(Begin { stream, ..begin_again(&world, begin_with_session(1, &["a", "b"])) });
        let (plan, answer) = world.decide(Finish { unless_resumed, ..finish(&turn, FAILED) });
        assert!(plan.is_empty() && answer.finished == Err(TurnLost::Replaced));
        assert_eq!(by(kept(&mut world, &finish(&turn, FAILED))), None, "without that, it ends");
    }
    let (mut world, turn) = running();
    world.run(begin_again(&world, begin_with_session(1, &["a", "b"])).kept_by(own));
    assert_eq!(world.event("a").unwrap().resumed, ResumedBy::Stream(own));
    assert_eq!(by(kept(&mut world, &Finish { unless_resumed, ..finish(&turn, FAILED) })), None);
}

#[test]
fn an_end_spares_a_turn_without_a_session_that_another_call_carries_on() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    world.run(begin_again(&world, begin(1, &["a"])));
    let spare = Finish { unless_resumed: Some(StreamId::random()), ..finish(&turn, FAILED) };
    assert_eq!(kept(&mut world, &spare), Err(TurnLost::Replaced));
}

#[test]
fn an_end_spares_a_turn_whose_lease_alone_was_carried_on() {
    let (mut world, turn) = running();
    world.run(acquire_again(&world, 1));
    assert_eq!(world.event("a").unwrap().resumed, ResumedBy::Nobody);
    let spare = Finish { unless_resumed: Some(StreamId::random()), ..finish(&turn, FAILED) };
    assert_eq!(kept(&mut world, &spare), Err(TurnLost::Replaced));
}

#[test]
fn an_ended_claim_stays_ended_when_the_clock_steps_back() {
    let (mut world, turn) = running();
    world.run(finish(&turn, FAILED));
    world.step_back(10_000);
    assert!(!world.event("a").unwrap().is_live(world.now));
    begun(&mut world, &begin(2, &["a"]));
}

/// The answer to the run that ended it was lost, and another attempt has the event since.
#[test]
fn a_failure_that_is_run_again_is_answered_by_the_run_that_ended_the_turn() {
    let (mut world, turn) = running();
    let asked = finish(&turn, FAILED);
    let (plan, _) = world.decide(&asked);
    assert!(world.apply(plan));
    begun(&mut world, &begin(2, &["a"]));
    assert_eq!(kept(&mut world, &finish(&turn, FAILED)), Err(TurnLost::Claim));
    asked.spend();
    assert_eq!(by(kept(&mut world, &asked)), None);
}

/// A turn whose end was decided, but not written, and which is in doubt.
fn not_written(ending: FinishAs) -> (World, TurnId, Finish) {
    let (mut world, turn) = running();
    let asked = finish(&turn, ending);
    let _ = world.decide(&asked);
    asked.spend();
    (world, turn, asked)
}

/// Its record is gone: it is not known to have been written.
#[test]
fn a_success_that_is_run_again_without_its_record_is_not_claimed() {
    let (mut world, _, asked) = not_written(succeeded("x"));
    world.wait(120_000);
    begun(&mut world, &begin(2, &["a"]));
    assert_eq!(kept(&mut world, &asked), Err(TurnLost::Claim));
}

/// The run had not been written: the claim has lapsed, and no other run has the event.
#[test]
fn a_failure_that_was_not_written_is_not_claimed() {
    let (mut world, _, asked) = not_written(FAILED);
    world.wait(120_000);
    assert_eq!(kept(&mut world, &asked), Err(TurnLost::Claim));
}

/// Nor had this one: another run has the event, and the turn still has its session.
#[test]
fn a_failure_that_left_its_session_was_not_written() {
    let (mut world, turn, asked) = not_written(FAILED);
    world.run(ForgetEvent(&turn.event));
    begun(&mut world, &begin(2, &["a"]));
    assert_eq!(kept(&mut world, &asked), Err(TurnLost::Claim));
}
