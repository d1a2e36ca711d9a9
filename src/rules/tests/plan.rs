use super::{
    super::{
        event::ForgetEvent,
        queue::{HandOn, Leave, PLACE_KEPT},
        session::CloseSession,
        turn::RenewTurnWithin,
    },
    Change, Ids, MAX_HOLD, Notice, Operation, Plan, Timestamp, World, acquire, begin,
    begin_with_session, begun, enqueue, enqueue_again, event_key, key, lease, mark, prolong,
    random::{Answer, Op},
    release, request, ttl,
};
use crate::domain::Enqueued;

const ALWAYS: Timestamp = Timestamp::from_micros(i64::MIN);

/// The plan of one operation.
fn plan<O: Operation>(world: &mut World, op: O) -> Plan {
    world.decide(op).0
}

// Queues.

#[test]
fn a_new_place_is_added_and_the_others_stay() {
    let mut world = World::new();
    world.run(acquire(1));
    world.run(enqueue(2, 200));
    let plan = plan(&mut world, enqueue(3, 300));
    let [write] = &plan.writes.sessions[..] else { panic!() };
    assert_eq!((write.add.len(), write.change.len(), write.remove.len()), (1, 0, 0));
    assert_eq!((write.add[0].lease, write.add[0].ticket), (lease(300), None));
}

#[test]
fn a_place_that_is_taken_over_is_changed() {
    let mut world = World::new();
    world.run(acquire(1));
    world.run(enqueue(2, 200));
    let ticket = world.queue()[0].ticket;
    let plan = plan(&mut world, enqueue_again(2, 201, 200));
    let [write] = &plan.writes.sessions[..] else { panic!() };
    assert_eq!((write.add.len(), write.change.len(), write.remove.len()), (0, 1, 0));
    assert_eq!((write.change[0].lease, write.change[0].ticket), (lease(201), ticket));
}

#[test]
fn a_place_that_is_left_or_handed_the_session_is_removed() {
    let mut world = World::new();
    world.run(acquire(1));
    world.run(enqueue(2, 200));
    let ticket = world.queue()[0].ticket.unwrap();
    let leave = plan(&mut world, Leave { key: &key("s"), lease: lease(200), keep: false });
    world.wait(30_000);
    let hand_on = plan(&mut world, HandOn(&key("s")));
    for plan in [leave, hand_on] {
        let [write] = &plan.writes.sessions[..] else { panic!() };
        assert_eq!((write.add.len(), write.change.len()), (0, 0));
        assert_eq!(write.remove, [ticket]);
    }
}

#[test]
fn a_decision_on_a_queue_rests_on_which_places_are_still_kept() {
    let mut world = World::new();
    world.run(acquire(1));
    world.run(enqueue(2, 200));
    world.run(enqueue(3, 300));
    world.run(Leave { key: &key("s"), lease: lease(200), keep: true });
    let end = world.now.plus(PLACE_KEPT);
    let again = plan(&mut world, enqueue(2, 201));
    assert_eq!((again.from, again.until), (ALWAYS, end));
    world.now = end;
    let anew = plan(&mut world, enqueue(2, 201));
    assert_eq!((anew.from, anew.until), (end, world.latest().expire_time));
}

#[test]
fn a_place_that_is_taken_and_left_in_one_draft_is_never_added() {
    let mut world = World::new();
    world.run(acquire(1));
    let leave = Op::Leave(key("s"), lease(200), false);
    let (plan, _) = world.fold(&[Op::Enqueue(enqueue(2, 200)), leave]);
    let [write] = &plan.writes.sessions[..] else { panic!() };
    assert_eq!((write.add.len(), write.change.len(), write.remove.len()), (0, 0, 0));
    assert!(world.apply(plan) && !world.latest().waiting);
}

#[test]
fn a_place_that_is_taken_over_in_one_draft_is_added_once() {
    let mut world = World::new();
    world.run(acquire(1));
    let ops = [Op::Enqueue(enqueue(2, 200)), Op::Enqueue(enqueue_again(2, 201, 200))];
    let (plan, answers) = world.fold(&ops);
    assert_eq!(answers[1], Answer::Enqueued(Enqueued::TookOver(0, lease(200))));
    let [write] = &plan.writes.sessions[..] else { panic!() };
    assert_eq!(write.add.iter().map(|place| place.lease).collect::<Vec<_>>(), [lease(201)]);
}

#[test]
fn a_session_that_is_gone_keeps_its_queue_unless_it_is_written() {
    let mut world = World::new();
    world.run(acquire(1));
    world.run(enqueue(2, 200));
    world.sessions.get_mut(&key("s")).unwrap().latest = None;
    let leave = plan(&mut world, Leave { key: &key("s"), lease: lease(200), keep: true });
    let [write] = &leave.writes.sessions[..] else { panic!() };
    assert!(matches!(write.latest, Change::Keep) && write.change.len() == 1);
}

#[test]
fn a_closed_session_is_deleted() {
    let mut world = World::new();
    world.run(acquire(1));
    let plan = plan(&mut world, CloseSession(&key("s")));
    let [write] = &plan.writes.sessions[..] else { panic!() };
    assert!(matches!(write.latest, Change::Delete));
    assert_eq!(plan.writes.floor, Some(world.latest().token));
}

#[test]
fn a_close_rests_on_a_token_that_is_not_above_the_clock() {
    let mut world = World::new();
    world.run(acquire(1));
    let token = Timestamp::from_micros(world.latest().token.0);
    world.run(release(world.latest().lease));
    assert_eq!(plan(&mut world, CloseSession(&key("s"))).from, token);
    world.step_back(1);
    assert_eq!(plan(&mut world, CloseSession(&key("s"))).until, token);
}

#[test]
fn notices_stand_in_the_order_of_the_operations() {
    let mut world = World::new();
    world.run(acquire(1));
    world.run(mark(1, &["a"]));
    let own = world.latest().lease;
    let ops = [Op::Enqueue(enqueue(2, 200)), Op::Release(release(own)), Op::Forget(event_key("a"))];
    let (plan, _) = world.fold(&ops);
    let session = || Notice::Session(key("s"));
    let forgotten = Notice::Forgotten(request(1));
    assert_eq!(plan.notices, [session(), Notice::Handed(lease(200)), session(), forgotten]);
}

// A new event alone.

#[test]
fn a_new_event_of_one_name_is_recognized() {
    let mut world = World::new();
    for plan in [plan(&mut world, mark(1, &["a"])), plan(&mut world, begin(1, &["a"]))] {
        let (key, event) = plan.as_new_event().unwrap();
        assert_eq!((key, &event.names[..]), (&event_key("a"), &["a".to_owned()][..]));
    }
}

#[test]
fn a_plan_that_is_more_than_a_new_event_is_not_taken_for_one() {
    let mut world = World::new();
    let several_names = plan(&mut world, mark(1, &["a", "b"]));
    let with_session = plan(&mut world, begin_with_session(1, &["a"]));
    let (two_events, _) = world.fold(&[mark(1, &["a"]), mark(1, &["b"])]);
    let nothing = plan(&mut world, ForgetEvent(&event_key("a")));
    world.run(mark(1, &["a"]));
    world.wait(600_000);
    let known = plan(&mut world, mark(2, &["a"]));
    for plan in [several_names, with_session, two_events, nothing, known] {
        assert!(plan.as_new_event().is_none(), "{plan:?}");
    }
}

// New ids.

#[test]
fn seeded_ids_are_the_same_for_the_same_seed_and_differ_otherwise() {
    let drawn = |mut ids: Ids| (ids.lease(), ids.request(), ids.version(), ids.fork().lease());
    assert_eq!(drawn(Ids::seeded(1)), drawn(Ids::seeded(1)));
    let (one, other) = (drawn(Ids::seeded(1)), drawn(Ids::seeded(2)));
    assert!(one.0 != other.0 && one.1 != other.1 && one.2 != other.2 && one.3 != other.3);
    assert_ne!(drawn(Ids::Random), drawn(Ids::Random));
    let mut ids = Ids::seeded(1);
    assert_ne!(ids.lease(), ids.lease());
}

#[test]
fn a_turn_in_one_draft_with_others_is_prolonged_for_as_long_as_asked() {
    let mut world = World::new();
    let turn = begun(&mut world, &begin_with_session(1, &["a"]));
    let (plan, kept) = world.decide(RenewTurnWithin(&prolong(&turn), MAX_HOLD));
    assert!(matches!(kept, Ok((_, Some(_)))));
    assert_eq!((plan.writes.puts.len(), plan.writes.sessions.len()), (1, 1));
    assert_eq!(plan.until, world.now.after(ttl(30)), "the lease ends before the claim");
}
