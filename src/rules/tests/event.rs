use super::{
    super::event::ForgetEvent, EventKey, FinishAs, Notice, World, begin, begun, digest, event_key,
    finish, mark, prolong, request, succeeded,
};
use crate::{
    domain::{Claim, EventRow, Mark, MarkOutcome, ProcessedBy, StoredEvent},
    rules::turn::RenewTurnWithin,
};

fn outcome(world: &mut World, mark: &Mark) -> MarkOutcome {
    world.run(mark).outcome(mark)
}

fn is_first(world: &mut World, mark: &Mark) -> bool {
    matches!(outcome(world, mark), MarkOutcome::First(_))
}

fn forget(world: &mut World, name: &str) -> (Option<EventRow>, Vec<Notice>) {
    world.run_noting(ForgetEvent(&event_key(name)))
}

#[test]
fn a_mark_of_an_unknown_event_is_first_and_recorded_under_all_names() {
    let mut world = World::new();
    let own = mark(1, &["a", "b"]);
    assert!(is_first(&mut world, &own));
    assert_eq!(world.event("a"), world.event("b"));
    let event = world.event("a").unwrap();
    assert_eq!((event.request, event.attempts), (Some(request(1)), None));
    assert_eq!((event.time, event.expire_time), (world.now, world.now.after(own.ttl)));
    assert_eq!(event.row(world.now).outcome(&own), world.run(&own).outcome(&own));
}

#[test]
fn a_mark_of_an_expired_event_is_first() {
    let mut world = World::new();
    world.run(mark(1, &["a"]));
    world.wait(599_999);
    assert!(!is_first(&mut world, &mark(2, &["a"])));
    world.wait(1);
    assert!(is_first(&mut world, &mark(2, &["a"])));
}

#[test]
fn a_mark_of_a_lapsed_claim_is_first_and_forgets_its_attempts() {
    let mut world = World::new();
    begun(&mut world, &begin(1, &["a"]));
    world.wait(60_000);
    assert!(is_first(&mut world, &mark(2, &["a"])));
    assert_eq!(world.event("a").unwrap().attempts, None);
}

#[test]
fn a_mark_of_an_ended_claim_is_first_and_forgets_its_attempts() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    world.run(finish(&turn, FinishAs::Failed(None)));
    assert!(is_first(&mut world, &mark(2, &["a"])));
    assert_eq!(world.event("a").unwrap().attempts, None);
}

#[test]
fn a_mark_during_a_claim_is_in_progress_even_for_the_request_that_claims() {
    let mut world = World::new();
    begun(&mut world, &begin(1, &["a"]));
    for number in [1, 2] {
        let (plan, row) = world.decide(&mark(number, &["a"]));
        assert!(plan.is_empty());
        assert!(matches!(row, EventRow::Claimed(Claim { attempt: 1, .. })), "{row:?}");
    }
}

#[test]
fn a_mark_of_a_handled_event_is_a_duplicate() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    world.run(finish(&turn, succeeded("done")));
    world.run(mark(1, &["b"]));
    for (number, name) in [(1, "a"), (2, "a"), (2, "b")] {
        let mark = mark(number, &[name]);
        let (plan, row) = world.decide(&mark);
        assert!(plan.is_empty());
        assert!(matches!(row.outcome(&mark), MarkOutcome::Duplicate(_)), "{number} of {name}");
    }
}

#[test]
fn a_repeated_mark_finds_itself_first() {
    let mut world = World::new();
    let own = mark(1, &["a", "b"]);
    let first = outcome(&mut world, &own);
    world.wait(1_000);
    assert_eq!(outcome(&mut world, &own), first);
}

#[test]
fn a_mark_is_a_duplicate_if_any_of_its_names_is_handled() {
    let mut world = World::new();
    world.run(mark(1, &["a"]));
    let (plan, row) = world.decide(mark(2, &["b", "a"]));
    assert!(plan.is_empty());
    assert!(matches!(row, EventRow::Processed(StoredEvent { by: ProcessedBy::Mark, .. })));
    assert_eq!(world.event("b"), None);
}

#[test]
fn a_payload_is_compared_under_the_events_own_name_only() {
    let mut world = World::new();
    let mut of_payload = mark(1, &["a", "b"]);
    of_payload.event.digest = Some(digest(1));
    world.run(&of_payload);
    let mut other = mark(2, &["a"]);
    other.event.digest = Some(digest(2));
    assert_eq!(outcome(&mut world, &other), MarkOutcome::Mismatch);
    let mut by_alias = mark(2, &["b"]);
    by_alias.event.digest = Some(digest(2));
    assert!(matches!(outcome(&mut world, &by_alias), MarkOutcome::Duplicate(_)));
}

#[test]
fn forgetting_an_unknown_event_does_nothing() {
    let mut world = World::new();
    let (plan, row) = world.decide(ForgetEvent(&event_key("a")));
    assert_eq!((plan.is_empty(), row), (true, None));
}

#[test]
fn forgetting_an_event_removes_all_names_that_it_was_recorded_with() {
    let mut world = World::new();
    let row = world.run(mark(1, &["a", "b"]));
    let (forgotten, notices) = forget(&mut world, "b");
    assert_eq!(forgotten, Some(row));
    assert_eq!(notices, [Notice::Forgotten(request(1))]);
    assert!(world.events.is_empty());
}

#[test]
fn forgetting_an_event_leaves_a_name_that_another_one_has_taken_since() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a", "b"]));
    world.run(finish(&turn, FinishAs::Failed(None)));
    world.run(mark(2, &["b"]));
    forget(&mut world, "a");
    assert_eq!(world.events.keys().collect::<Vec<&EventKey>>(), [&event_key("b")]);
}

#[test]
fn forgetting_a_claim_notifies_the_turn_which_has_lost_it() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    let (forgotten, notices) = forget(&mut world, "a");
    assert!(matches!(forgotten, Some(EventRow::Claimed(_))));
    assert_eq!(notices, [Notice::Forgotten(request(1))]);
    let prolonged = world.run(RenewTurnWithin(&prolong(&turn), super::MAX_HOLD));
    assert_eq!(prolonged, Err(crate::domain::TurnLost::Claim));
    let next = begin(2, &["a"]);
    assert_eq!(begun(&mut world, &next).attempt, 1, "its attempts are forgotten too");
}

#[test]
fn forgetting_an_expired_event_deletes_it_and_reports_nothing() {
    let mut world = World::new();
    world.run(mark(1, &["a"]));
    world.wait(600_000);
    assert_eq!(forget(&mut world, "a").0, None);
    assert!(world.events.is_empty());
}

#[test]
fn forgetting_a_claim_that_was_taken_back_reports_nothing() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    world.run(finish(&turn, FinishAs::Abandoned(world.now)));
    assert_eq!(forget(&mut world, "a").0, None);
    assert!(world.events.is_empty());
}
