use super::{
    super::session::{BindEpic, RenewWithin},
    FencingToken, FinishAs, MAX_HOLD, Operation, Plan, Timestamp, TurnId, Version, World, acquire,
    begin, begin_with_session, begun, event_key, finish, key, mark, prolong,
    random::{Answer, Op},
    release, renew, request, rests_on, succeeded,
};
use crate::{
    domain::{Begun, Obtained},
    rules::EventUpdate,
};

const NEVER: Timestamp = Timestamp::from_micros(i64::MAX);
const ALWAYS: Timestamp = Timestamp::from_micros(i64::MIN);

/// The plan of one operation.
fn plan<O: Operation>(world: &mut World, op: O) -> Plan {
    world.decide(op).0
}

/// The turn of event `a` that request 1 is about to begin.
fn turn() -> TurnId {
    let (event, lease) = (event_key("a"), None);
    TurnId { event, request: request(1), attempt: 1, lease, max_attempts: 3 }
}

/// The names of the events that a plan puts.
fn written(plan: &Plan) -> Vec<&str> {
    plan.writes.puts.iter().map(|(key, _)| key.event.as_str()).collect()
}

// What a decision rests on.

#[test]
fn a_plan_rests_on_the_absence_of_what_was_not_found() {
    let mut world = World::new();
    let plan = plan(&mut world, begin_with_session(1, &["a", "b"]));
    assert_eq!(rests_on(&plan), (vec![None], vec![None, None]));
    for name in ["a", "b"] {
        let mut other = world.copy(2);
        other.run(mark(2, &[name]));
        assert!(!other.holds(&plan), "{name}");
    }
    world.run(BindEpic(&key("s"), None));
    assert!(!world.holds(&plan));
}

#[test]
fn a_plan_rests_on_the_version_of_each_record_that_was_read() {
    let mut world = World::new();
    world.run(acquire(1));
    world.run(mark(1, &["a"]));
    world.wait(600_000);
    let plan = plan(&mut world, begin_with_session(2, &["a", "b"]));
    let of_event = world.event("a").map(|event| event.version);
    assert_eq!(rests_on(&plan), (vec![Some(world.latest().version)], vec![of_event, None]));
    assert!(world.holds(&plan));
    world.latest_mut().version = Version(1);
    assert!(!world.holds(&plan));
}

#[test]
fn a_decision_rests_on_which_side_of_the_end_of_a_lease_it_is() {
    let mut world = World::new();
    world.run(acquire(1));
    let (own, end) = (world.latest().lease, world.latest().expire_time);
    let running = plan(&mut world, RenewWithin(&renew(own), MAX_HOLD));
    assert_eq!((running.from, running.until), (ALWAYS, end));
    world.now = end;
    let ended = plan(&mut world, acquire(2));
    assert_eq!((ended.from, ended.until), (end, NEVER));
    assert!(!world.holds(&running) && world.holds(&ended));
    world.step_back(1);
    assert!(world.holds(&running) && !world.holds(&ended));
}

#[test]
fn a_decision_on_a_released_lease_does_not_rest_on_its_end() {
    let mut world = World::new();
    world.run(acquire(1));
    world.run(release(world.latest().lease));
    let plan = plan(&mut world, acquire(2));
    assert_eq!((plan.from, plan.until), (ALWAYS, NEVER));
}

#[test]
fn a_decision_rests_on_which_side_of_the_ends_of_an_event_it_is() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    let event = world.event("a").unwrap();
    let (end, expiry) = (event.ends(), event.expire_time);
    let running = plan(&mut world, finish(&turn, succeeded("done")));
    assert_eq!((running.from, running.until), (ALWAYS, end));
    world.now = end;
    let lapsed = plan(&mut world, begin(2, &["a"]));
    assert_eq!((lapsed.from, lapsed.until), (end, expiry));
    world.now = expiry;
    let expired = plan(&mut world, begin(2, &["a"]));
    assert_eq!((expired.from, expired.until), (expiry, NEVER));
}

#[test]
fn a_decision_on_a_handled_event_rests_on_its_expiry() {
    let mut world = World::new();
    world.run(mark(1, &["a"]));
    let expiry = world.event("a").unwrap().expire_time;
    let handled = plan(&mut world, mark(2, &["a"]));
    assert_eq!((handled.from, handled.until, handled.is_empty()), (ALWAYS, expiry, true));
    world.now = expiry;
    let expired = plan(&mut world, mark(2, &["a"]));
    assert_eq!((expired.from, expired.until), (expiry, NEVER));
}

#[test]
fn a_decision_on_an_ended_claim_rests_on_its_expiry_alone() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    world.run(finish(&turn, FinishAs::Failed(None)));
    let plan = plan(&mut world, begin(2, &["a"]));
    let expiry = world.event("a").unwrap().expire_time;
    assert_eq!((plan.from, plan.until), (ALWAYS, expiry));
}

#[test]
fn a_folded_decision_rests_on_the_nearest_ends() {
    let mut world = World::new();
    world.run(acquire(1));
    let lapses = world.latest().expire_time;
    world.run(mark(1, &["a"]));
    world.wait(1);
    let own = Op::Renew(renew(world.latest().lease));
    let (plan, _) = world.fold(&[own, Op::Mark(mark(2, &["a"])), Op::Mark(mark(1, &["b"]))]);
    assert_eq!((plan.from, plan.until), (ALWAYS, lapses));
}

#[test]
fn a_grant_rests_on_a_floor_below_its_token() {
    let mut world = World::new();
    let plan = plan(&mut world, acquire(1));
    let token = FencingToken(world.now.as_micros());
    assert_eq!(plan.token, Some(token));
    world.floor = FencingToken(token.0 - 1);
    assert!(world.holds(&plan));
    world.floor = token;
    assert!(!world.holds(&plan));
    let (_, acquired) = world.decide(acquire(1));
    assert_eq!(acquired.row.lease.token, FencingToken(token.0 + 1));
}

#[test]
fn folded_grants_rest_on_the_lowest_token_and_heed_the_floor_that_they_raise() {
    let mut world = World::new();
    world.run(acquire(1));
    let token = world.latest().token;
    let close = Op::Close(key("s"));
    let (plan, answers) = world.fold(&[close, Op::Acquire(acquire(2)), Op::Close(key("s"))]);
    let Answer::Acquired(acquired) = &answers[1] else { panic!() };
    assert_eq!(acquired.row.lease.token, FencingToken(token.0 + 1));
    assert_eq!(plan.token, Some(FencingToken(token.0 + 1)));
    assert!(world.apply(plan));
}

#[test]
fn what_grants_nothing_rests_on_no_floor() {
    let mut world = World::new();
    world.run(acquire(1));
    let own = world.latest().lease;
    assert_eq!(plan(&mut world, RenewWithin(&renew(own), MAX_HOLD)).token, None);
    assert_eq!(plan(&mut world, release(own)).token, None);
    world.floor = FencingToken(world.now.as_micros() + 1);
    world.run(release(own));
}

// What is written.

#[test]
fn a_plan_that_only_reads_is_empty() {
    let mut world = World::new();
    world.run(acquire(1));
    let plan = plan(&mut world, acquire(2));
    assert!(plan.is_empty() && plan.sessions.len() == 1 && plan.notices.is_empty());
}

#[test]
fn each_written_session_has_a_version_of_its_own() {
    let mut world = World::new();
    let mut versions = Vec::new();
    world.run(acquire(1));
    let own = world.latest().lease;
    for _ in 0..3 {
        versions.push(world.latest().version);
        world.run(RenewWithin(&renew(own), MAX_HOLD));
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 3);
}

#[test]
fn a_claim_and_its_end_in_one_draft_are_written_once() {
    let mut world = World::new();
    let ops = [Op::Begin(begin(1, &["a", "b"])), Op::Finish(finish(&turn(), succeeded("done")))];
    let (plan, answers) = world.fold(&ops);
    assert!(matches!(&answers[1], Answer::Finished(answer) if answer.finished.is_ok()));
    assert_eq!(written(&plan), ["a", "b"]);
    assert!(plan.writes.updates.is_empty() && world.apply(plan));
    assert_eq!(world.event("a"), world.event("b"));
    assert!(world.event("b").unwrap().is_live(world.now));
}

#[test]
fn several_changes_of_an_event_in_one_draft_are_written_once() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a", "b"]));
    let was = world.event("a").unwrap().version;
    let prolong = prolong(&turn);
    let ops = [
        Op::RenewTurn(prolong.clone()),
        Op::RenewTurn(prolong),
        Op::Finish(finish(&turn, FinishAs::Failed(None))),
    ];
    let (plan, _) = world.fold(&ops);
    let [EventUpdate { was: of, names, .. }] = &plan.writes.updates[..] else { panic!() };
    assert_eq!((*of, &names[..]), (was, &["b".to_owned()][..]), "it was not read");
    assert_eq!(written(&plan), ["a"]);
    assert!(world.apply(plan));
    assert_eq!(world.event("a"), world.event("b"));
    assert!(!world.event("a").unwrap().is_live(world.now));
}

#[test]
fn an_end_and_a_new_claim_in_one_draft_leave_the_claim() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a"]));
    let end = Op::Finish(finish(&turn, FinishAs::Failed(None)));
    let (plan, answers) = world.fold(&[end, Op::Begin(begin(2, &["a"]))]);
    assert!(matches!(&answers[1], Answer::Begun(answer)
        if matches!(&answer.begun, Begun::Granted { claim, .. } if claim.attempt == 2)));
    assert!(world.apply(plan));
    assert_eq!(world.event("a").unwrap().request, Some(request(2)));
}

#[test]
fn an_event_that_was_changed_in_a_draft_is_found_so_under_its_other_names() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin(1, &["a", "b"]));
    for number in [1, 2] {
        let mut world = world.copy(7);
        let end = Op::Finish(finish(&turn, FinishAs::Abandoned(world.now)));
        let (plan, answers) = world.fold(&[end, Op::Begin(begin(number, &["a", "b"]))]);
        let Answer::Begun(answer) = &answers[1] else { panic!() };
        let is_granted = matches!(answer.begun, Begun::Granted { obtained: Obtained::Granted, .. });
        assert!(is_granted, "{number}: {:?}", answer.begun);
        assert!(world.apply(plan));
        for name in ["a", "b"] {
            assert!(world.event(name).unwrap().is_live(world.now), "{name} is claimed");
        }
    }
}

#[test]
fn an_event_that_was_forgotten_in_a_draft_is_forgotten_under_its_other_names() {
    let mut world = World::new();
    world.run(mark(1, &["a", "b"]));
    let (plan, answers) = world.fold(&[Op::Forget(event_key("a")), Op::Mark(mark(2, &["b"]))]);
    let Answer::Marked(row) = &answers[1] else { panic!() };
    assert!(row.is_of(request(2)));
    assert!(world.apply(plan));
    assert_eq!(world.event("a"), None);
    assert_eq!(world.event("b").unwrap().request, Some(request(2)));
}

#[test]
fn what_a_draft_puts_and_forgets_leaves_nothing() {
    let mut world = World::new();
    let ops = [Op::Mark(mark(1, &["a", "b"])), Op::Forget(event_key("b"))];
    let (plan, _) = world.fold(&ops);
    assert!(world.apply(plan));
    assert!(world.events.is_empty());
    let turn = begun(&mut world, &begin(1, &["a", "b"]));
    world.run(finish(&turn, FinishAs::Failed(None)));
    let (plan, _) = world.fold(&ops);
    assert!(world.apply(plan));
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn an_event_that_is_forgotten_and_marked_in_one_draft_is_marked() {
    let mut world = World::new();
    world.run(mark(1, &["a", "b"]));
    let (plan, _) = world.fold(&[Op::Forget(event_key("a")), Op::Mark(mark(2, &["a"]))]);
    assert!(world.apply(plan));
    assert_eq!(world.event("a").unwrap().request, Some(request(2)));
    assert_eq!(world.event("b"), None);
}
