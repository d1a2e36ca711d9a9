use super::{
    super::turn::RenewTurnWithin, Begin, Begun, FinishAs, MAX_HOLD, RenewTurn, TurnId, World,
    acquire, begin, begin_again, begin_with_session, begun, detail, digest, enqueue, finish,
    granted, key, lease, mark, prolong, request, succeeded, ttl,
};
use crate::domain::{
    Attempts, Claim, EventRow, Interruption, Lease, Obtained, ProcessedBy, ResumedBy, SessionRow,
    StoredEvent, StreamId, TurnLost, limits::CLAIM_MEMORY,
};

fn renewed(world: &mut World, prolong: &RenewTurn) -> Result<(Claim, Option<Lease>), TurnLost> {
    world.run(RenewTurnWithin(prolong, MAX_HOLD))
}

/// What a begin is answered that writes nothing.
pub(super) fn taken(world: &mut World, begin: &Begin) -> EventRow {
    let (plan, answer) = world.decide(begin);
    assert!(plan.is_empty(), "{plan:?}");
    match answer.begun {
        Begun::NotAvailable(row, _) => row,
        other => panic!("not taken: {other:?}"),
    }
}

fn attempts(world: &World) -> (u32, u32) {
    let attempts = world.event("a").unwrap().attempts.unwrap();
    (attempts.claimed, attempts.uncounted)
}

fn interrupted(world: &World) -> Option<u32> {
    world.event("a").unwrap().attempts.unwrap().interrupted
}

/// A turn of event `a` with the session, by request 1.
pub(super) fn running() -> (World, TurnId) {
    let mut world = World::new();
    let turn = begun(&mut world, &begin_with_session(1, &["a"]));
    (world, turn)
}

// Begin.

#[test]
fn begin_of_an_unknown_event_claims_it_under_all_names_and_takes_the_session() {
    let mut world = World::new();
    let begin = begin_with_session(1, &["a", "b"]);
    let answer = world.run(&begin);
    assert!(!answer.lapsed && !answer.gave_up && answer.orphan.is_none());
    let (claim, lease, obtained) = granted(answer.begun);
    assert_eq!((claim.attempt, obtained), (1, Obtained::Granted));
    assert_eq!(lease.unwrap().id, world.latest().lease);
    assert_eq!(world.event("a"), world.event("b"));
    let event = world.event("a").unwrap();
    assert_eq!(event.ends(), world.now.after(ttl(60)));
    assert_eq!(event.expire_time, world.now.plus(CLAIM_MEMORY));
}

#[test]
fn begin_of_an_unknown_event_without_a_session_claims_it_alone() {
    let mut world = World::new();
    let (_, lease, _) = granted(world.run(begin(1, &["a"])).begun);
    assert!(lease.is_none() && world.sessions.is_empty());
}

#[test]
fn begin_is_busy_where_the_session_is_held_bound_or_about_to_be_handed_on() {
    let mut world = World::new();
    world.run(acquire(9));
    let busy = |world: &mut World, begin: &Begin| {
        let (_, answer) = world.decide(begin);
        matches!(answer.begun, Begun::Busy(_)).then_some(answer.handover)
    };
    assert_eq!(busy(&mut world, &begin_with_session(1, &["a"])), Some(None), "held");
    let mut other_work = begin_with_session(1, &["a"]);
    other_work.session.as_mut().unwrap().epic = Some("E2".to_owned());
    world.latest_mut().epic = Some("E1".to_owned());
    world.latest_mut().released = true;
    assert_eq!(busy(&mut world, &other_work), Some(None), "bound");
    world.latest_mut().released = false;
    world.run(enqueue(2, 200));
    world.wait(30_000);
    let (plan, answer) = world.decide(begin_with_session(1, &["a"]));
    let handed = answer.handover.unwrap();
    assert_eq!(handed.lease.id, lease(200));
    assert_eq!(answer.begun, Begun::Busy(handed));
    assert!(world.apply(plan) && world.event("a").is_none());
}

#[test]
fn begin_is_busy_with_the_lease_that_an_earlier_run_of_the_request_waited_for() {
    let mut world = World::new();
    world.run(acquire(1));
    let (plan, answer) = world.decide(begin_with_session(1, &["a"]));
    assert!(plan.is_empty());
    assert!(matches!(answer.begun, Begun::Busy(SessionRow { live: true, request: of, .. })
        if of == request(1)));
}

#[test]
fn begin_under_an_alias_does_not_compare_the_payload() {
    let mut world = World::new();
    let mut own = begin(1, &["a"]);
    own.event.digest = Some(digest(1));
    begun(&mut world, &own);
    let mut other = begin(2, &["b", "a"]);
    other.event.digest = Some(digest(2));
    assert_eq!(taken(&mut world, &other).digest(), None);
}

#[test]
fn begin_of_another_requests_claim_is_in_progress() {
    let (mut world, _) = running();
    assert!(taken(&mut world, &begin_with_session(2, &["a"])).is_claim_of(request(1)));
}

#[test]
fn begin_of_a_lapsed_claim_is_granted_one_attempt_more() {
    for number in [1, 2] {
        let (mut world, _) = running();
        world.wait(60_000);
        let answer = world.run(begin_with_session(number, &["a"]));
        assert!(answer.lapsed);
        let (claim, _, obtained) = granted(answer.begun);
        assert_eq!((claim.attempt, obtained), (2, Obtained::Granted));
        assert_eq!(attempts(&world), (2, 0));
    }
}

#[test]
fn begin_of_an_ended_claim_is_granted_one_attempt_more() {
    let (mut world, turn) = running();
    world.run(finish(&turn, FinishAs::Failed(Some(detail("no")))));
    let answer = world.run(begin_with_session(2, &["a"]));
    assert!(!answer.lapsed);
    let (claim, ..) = granted(answer.begun);
    assert_eq!((claim.attempt, claim.detail), (2, Some(detail("no"))));
}

#[test]
fn begin_of_a_claim_that_lapsed_while_interrupted_does_not_count_it() {
    let (mut world, turn) = running();
    let drained = RenewTurn {
        stream: Some(StreamId::random()),
        interruption: Some(Interruption::Drained),
        ..prolong(&turn)
    };
    assert!(renewed(&mut world, &drained).is_ok());
    world.wait(60_000);
    assert_eq!(interrupted(&world), Some(1));
    begun(&mut world, &begin_with_session(2, &["a"]));
    assert_eq!((attempts(&world), interrupted(&world)), ((2, 1), None));
}

#[test]
fn begin_of_a_claim_whose_attempts_are_spent_gives_the_event_up() {
    let mut world = World::new();
    for number in 1..=3 {
        begun(&mut world, &begin(number, &["a", "b"]));
        world.wait(60_000);
    }
    let answer = world.run(begin(4, &["b"]));
    assert!(answer.gave_up && answer.lapsed);
    assert!(matches!(
        answer.begun,
        Begun::NotAvailable(
            EventRow::Processed(StoredEvent { by: ProcessedBy::GaveUp(3), .. }),
            None
        )
    ));
    assert_eq!(world.event("a"), world.event("b"));
    let EventRow::Processed(event) = taken(&mut world, &begin(5, &["a"])) else { panic!() };
    assert_eq!(
        (event.by, event.expire_time),
        (ProcessedBy::GaveUp(3), world.now.plus(CLAIM_MEMORY))
    );
}

#[test]
fn begin_of_an_ended_claim_whose_attempts_are_spent_gives_the_event_up() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    world.run(finish(&turn, FinishAs::Failed(Some(detail("no")))));
    let answer = world.run(Begin { max_attempts: 1, ..begin(2, &["a"]) });
    assert!(answer.gave_up && !answer.lapsed);
    let Begun::NotAvailable(EventRow::Processed(event), None) = answer.begun else { panic!() };
    assert_eq!((event.by, event.detail), (ProcessedBy::GaveUp(1), Some(detail("no"))));
    let failed = world.run(finish(&turn, FinishAs::Failed(None)));
    assert!(matches!(failed.finished, Ok(Some(EventRow::Processed(_)))));
}

#[test]
fn begin_of_a_handled_event_is_a_duplicate_with_its_result() {
    let (mut world, turn) = running();
    world.run(finish(&turn, succeeded("done")));
    let (plan, answer) = world.decide(begin_with_session(1, &["a"]));
    assert!(plan.is_empty());
    let Begun::NotAvailable(EventRow::Processed(event), Some(result)) = answer.begun else {
        panic!()
    };
    assert_eq!((event.by, result.bytes), (ProcessedBy::Turn(1), b"done".to_vec()));
    world.run(mark(2, &["b"]));
    let answer = world.run(begin(2, &["b"]));
    assert!(matches!(answer.begun, Begun::NotAvailable(EventRow::Processed(_), None)));
}

#[test]
fn begin_of_an_event_that_is_taken_finds_the_lease_that_nobody_needs() {
    let (mut world, turn) = running();
    world.run(finish(&turn, succeeded("done")));
    let own = world.run(acquire(1)).row.lease.id;
    assert_eq!(world.run(begin_with_session(1, &["a"])).orphan, Some((key("s"), own)));
    assert_eq!(world.run(begin_with_session(2, &["a"])).orphan, None, "it is another's");
}

#[test]
fn begin_of_an_expired_event_starts_at_its_first_attempt() {
    let (mut world, _) = running();
    world.now = world.event("a").unwrap().expire_time;
    assert_eq!(granted(world.run(begin(2, &["a"])).begun).0.attempt, 1);
}

#[test]
fn begin_under_several_names_heeds_a_live_record_before_others() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    world.run(finish(&turn, FinishAs::Failed(None)));
    begun(&mut world, &begin(2, &["b"]));
    assert!(taken(&mut world, &begin(3, &["a", "b"])).is_claim_of(request(2)));
}

#[test]
fn begin_under_several_names_heeds_its_own_claim_before_anothers() {
    let mut world = World::new();
    begun(&mut world, &begin(1, &["a"]));
    begun(&mut world, &begin(2, &["b"]));
    let (claim, ..) = granted(world.run(begin(2, &["a", "b"])).begun);
    assert_eq!(claim.request, request(2));
}

#[test]
fn begin_under_several_names_counts_from_the_most_attempts() {
    let mut world = World::new();
    for (number, name) in [(1, "a"), (2, "b"), (3, "b")] {
        let turn = begun(&mut world, &begin(number, &[name]));
        world.run(finish(&turn, FinishAs::Failed(None)));
    }
    let (claim, ..) = granted(world.run(begin(4, &["a", "b"])).begun);
    assert_eq!(claim.attempt, 3);
}

// Renew.

#[test]
fn renew_by_the_holder_runs_claim_and_lease_on() {
    let (mut world, turn) = running();
    world.wait(20_000);
    let Ok((claim, Some(lease))) = renewed(&mut world, &prolong(&turn)) else { panic!() };
    assert_eq!(claim.lapse_time, world.now.after(ttl(60)));
    assert_eq!(lease.expire_time, world.now.after(ttl(30)));
    let event = world.event("a").unwrap();
    assert_eq!((event.ends(), event.resumed), (claim.lapse_time, ResumedBy::Call));
    assert_eq!(event.expire_time, world.now.plus(CLAIM_MEMORY));
}

#[test]
fn renew_with_shorter_ttls_takes_nothing_away() {
    let (mut world, turn) = running();
    let ends =
        |world: &World| (world.event("a").unwrap().state.clone(), world.latest().expire_time);
    let before = ends(&world);
    world.wait(1_000);
    let short = RenewTurn { claim_ttl: ttl(3), lease_ttl: ttl(3), ..prolong(&turn) };
    renewed(&mut world, &short).unwrap();
    assert_eq!(ends(&world), before);
}

#[test]
fn renew_by_the_holder_takes_an_interruption_back() {
    let (mut world, turn) = running();
    let stream = Some(StreamId::random());
    let interruption = Some(Interruption::Broken);
    renewed(&mut world, &RenewTurn { stream, interruption, ..prolong(&turn) }).unwrap();
    assert_eq!(interrupted(&world), Some(1));
    renewed(&mut world, &RenewTurn { stream, ..prolong(&turn) }).unwrap();
    assert_eq!(interrupted(&world), None);
    renewed(&mut world, &RenewTurn { stream, interruption, ..prolong(&turn) }).unwrap();
    world.run(begin_again(&world, begin_with_session(1, &["a"])));
    assert_eq!(interrupted(&world), None, "a call has carried it on");
    renewed(&mut world, &RenewTurn { stream, interruption, ..prolong(&turn) }).unwrap();
    assert_eq!(interrupted(&world), None, "a call has carried it on");
}

#[test]
fn renew_by_a_stream_that_was_replaced_changes_nothing() {
    let (mut world, turn) = running();
    world.run(begin_again(&world, begin_with_session(1, &["a"])).kept_by(StreamId::random()));
    let by_old = RenewTurn { stream: Some(StreamId::random()), ..prolong(&turn) };
    let (plan, kept) = world.decide(RenewTurnWithin(&by_old, MAX_HOLD));
    assert!(plan.is_empty() && kept == Err(TurnLost::Replaced));
}

#[test]
fn a_turn_that_is_renewed_after_the_clock_was_stepped_back_runs_on() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    world.step_back(61_000);
    assert!(renewed(&mut world, &prolong(&turn)).is_ok());
    world.wait(59_999);
    assert!(taken(&mut world, &begin(2, &["a"])).is_claim_of(request(1)));
    assert!(renewed(&mut world, &prolong(&turn)).is_ok());
}

/// Whether a turn neither runs on nor ends, and nothing is written.
pub(super) fn is_lost(world: &mut World, turn: &TurnId, lost: &Result<(), TurnLost>) -> bool {
    let (renew, renewed) = world.decide(RenewTurnWithin(&prolong(turn), MAX_HOLD));
    let (end, finished) = world.decide(finish(turn, succeeded("late")));
    let is_so = [without_value(&renewed) == *lost, without_value(&finished.finished) == *lost];
    renew.is_empty() && end.is_empty() && is_so == [true, true]
}

fn without_value<T>(kept: &Result<T, TurnLost>) -> Result<(), TurnLost> {
    match kept {
        Ok(_) => Ok(()),
        Err(TurnLost::Claim) => Err(TurnLost::Claim),
        Err(TurnLost::Lease(held)) => Err(TurnLost::Lease(*held)),
        Err(TurnLost::Replaced) => Err(TurnLost::Replaced),
    }
}

#[test]
fn attempts_that_lapsed_count_unless_they_were_interrupted() {
    let attempts = |interrupted| Attempts { claimed: 2, uncounted: 0, interrupted };
    assert_eq!(attempts(None).lapsed().uncounted, 0);
    assert_eq!(attempts(Some(1)).lapsed().uncounted, 0);
    assert_eq!(attempts(Some(2)).lapsed().uncounted, 1);
}
