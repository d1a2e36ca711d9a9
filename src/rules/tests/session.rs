use super::{
    super::{
        queue::HandOn,
        session::{Released, RenewWithin},
    },
    Acquire, LeaseId, MAX_HOLD, Release, Renew, World, acquire, acquire_again, enqueue, key, lease,
    release, renew, ttl,
};
use crate::{
    domain::{
        Decision, FencingToken, Obtained, PriorGrant, Renewed, ResumedBy, SessionRow, StreamId,
        Timestamp,
    },
    rules::{Draft, Operation as _, RuleError, Wanted},
};

/// The session held by request 1, and its lease.
pub(super) fn held() -> (World, LeaseId) {
    let mut world = World::new();
    let lease = acquired(&mut world, &acquire(1));
    (world, lease)
}

/// The session held by request 1, with request 2 in its queue, and the lease.
pub(super) fn awaited() -> (World, LeaseId) {
    let (mut world, lease) = held();
    world.run(enqueue(2, 200));
    (world, lease)
}

pub(super) fn acquired(world: &mut World, acquire: &Acquire) -> LeaseId {
    let acquired = world.run(acquire);
    assert_eq!(acquired.obtained, Some(Obtained::Granted), "{acquired:?}");
    acquired.row.lease.id
}

/// What an acquire finds, which writes nothing.
pub(super) fn found(world: &mut World, acquire: &Acquire) -> Decision {
    let (plan, acquired) = world.decide(acquire);
    assert!(plan.is_empty() && acquired.obtained.is_none());
    acquired.row.decision(acquire)
}

pub(super) fn renewed(world: &mut World, renew: &Renew) -> Renewed {
    world.run(RenewWithin(renew, MAX_HOLD))
}

pub(super) fn released(world: &mut World, lease: LeaseId) -> Released {
    world.run(release(lease))
}

pub(super) fn is_nothing(world: &mut World, op: &Release) -> Released {
    let (plan, released) = world.decide(op);
    assert!(plan.is_empty());
    released
}

pub(super) fn bound_to(epic: &str, number: u128) -> Acquire {
    Acquire { epic: Some(epic.to_owned()), ..acquire(number) }
}

pub(super) const NOT_ENDED: Released = Released { ended: false, handover: None };
pub(super) const ENDED: Released = Released { ended: true, handover: None };

// Acquire.

#[test]
fn acquire_of_an_absent_session_is_granted() {
    let mut world = World::new();
    let acquired = world.run(acquire(1));
    assert!(acquired.obtained == Some(Obtained::Granted) && acquired.row.live);
    let latest = world.latest();
    assert_eq!(latest.token.0, world.now.as_micros());
    assert_eq!(latest.expire_time, world.now.after(ttl(30)));
    assert_eq!(latest.resumed, ResumedBy::Nobody);
}

#[test]
fn acquire_of_a_session_held_by_the_same_request_is_granted_again_and_noted_if_it_names_the_lease()
{
    let (mut world, lease) = held();
    let stream = StreamId::random();
    let mut before = ResumedBy::Nobody;
    for (by, noted) in [(Some(stream), ResumedBy::Stream(stream)), (None, ResumedBy::Call)] {
        let acquired = world.run(Acquire { stream: by, ..acquire_again(&world, 1) });
        let resumed = Some(Obtained::Resumed(before));
        assert_eq!((acquired.row.lease.id, acquired.obtained), (lease, resumed));
        assert_eq!(world.latest().resumed, noted);
        before = noted;
    }
}

/// Its caller may have gone, and the lease may be a newer call's.
#[test]
fn acquire_that_does_not_name_the_lease_of_its_request_as_it_is_notes_nothing() {
    let (mut world, held) = held();
    let late = acquire_again(&world, 1);
    let (older, newer) = (Some(StreamId::random()), Some(StreamId::random()));
    world.run(Acquire { stream: newer, ..late.clone() });
    let resumed = world.latest().resumed;
    let other = Some(PriorGrant { id: lease(200), resumed });
    for resumes in [None, other, late.resumes] {
        for stream in [None, older] {
            let (plan, acquired) = world.decide(Acquire { stream, resumes, ..acquire(1) });
            assert!(plan.is_empty());
            let found = Some(Obtained::Found(ResumedBy::of(newer)));
            assert_eq!((acquired.row.lease.id, acquired.obtained), (held, found));
        }
    }
}

/// The answer to the first run of it was lost.
#[test]
fn acquire_that_has_carried_the_lease_on_itself_has_it() {
    let (mut world, lease) = held();
    let stream = Some(StreamId::random());
    let again = Acquire { stream, ..acquire_again(&world, 1) };
    for _ in 0..2 {
        let acquired = world.run(&again);
        let resumed = Some(Obtained::Resumed(ResumedBy::Nobody));
        assert_eq!((acquired.row.lease.id, acquired.obtained), (lease, resumed));
        assert_eq!(world.latest().resumed, ResumedBy::of(stream));
    }
}

/// The answer to the run that was granted it was lost.
#[test]
fn acquire_that_is_run_again_has_the_lease_that_it_was_granted() {
    let (mut world, asked) = (World::new(), acquire(1));
    let lease = acquired(&mut world, &asked);
    assert_eq!(lease, asked.lease.id());
    let again = |world: &mut World| {
        let (plan, again) = world.decide(&asked);
        assert!(plan.is_empty() && again.row.lease.id == lease);
        again.obtained
    };
    assert_eq!(again(&mut world), Some(Obtained::Granted));
    renewed(&mut world, &renew(lease));
    assert_eq!(again(&mut world), Some(Obtained::Found(ResumedBy::Call)));
}

/// The caller that has carried that lease on may still give it back.
#[test]
fn acquire_that_is_run_again_after_the_end_of_its_lease_is_granted_another() {
    let (mut world, asked) = (World::new(), acquire(1));
    let lease = acquired(&mut world, &asked);
    released(&mut world, lease);
    let next = acquired(&mut world, &acquire(2));
    released(&mut world, next);
    asked.lease.spend();
    let other = acquired(&mut world, &asked);
    assert_ne!(other, lease);
    assert_eq!(is_nothing(&mut world, &release(lease)), NOT_ENDED);
}

#[test]
fn acquire_of_a_session_held_by_another_request_is_held() {
    let (mut world, _) = held();
    let Decision::Held(held) = found(&mut world, &acquire(2)) else { panic!("held") };
    assert_eq!(held.holder, "holder 1");
}

#[test]
fn acquire_of_a_lapsed_session_is_granted_even_to_the_same_request() {
    for number in [1, 2] {
        let (mut world, lease) = held();
        let token = world.latest().token;
        world.wait(30_000);
        assert_ne!(acquired(&mut world, &acquire(number)), lease);
        assert!(world.latest().token > token);
    }
}

#[test]
fn acquire_of_a_released_session_is_granted_even_if_its_end_lies_ahead() {
    let (mut world, lease) = held();
    released(&mut world, lease);
    world.latest_mut().expire_time = world.now.after(ttl(30));
    acquired(&mut world, &acquire(2));
}

#[test]
fn acquire_of_a_free_session_that_somebody_waits_for_is_held_by_nobody() {
    let (mut world, _) = awaited();
    world.wait(30_000);
    // The first waiter itself is granted the lease by the hand-over: a call of it that has gone
    // must not be noted as one that carries the lease on.
    for number in [2, 3] {
        let Decision::Held(held) = found(&mut world, &acquire(number)) else { panic!("held") };
        assert_eq!((held.holder.as_str(), held.queue_length), ("", 1));
    }
    assert_eq!(world.queue_mut().len(), 1);
}

#[test]
fn acquire_of_a_free_session_that_no_waiter_can_have_is_granted() {
    let (mut world, _) = awaited();
    world.queue_mut()[0].is_there = false;
    world.wait(30_000);
    world.run(HandOn(&key("s")));
    assert!(!world.latest().waiting);
    acquired(&mut world, &acquire(3));
    assert_eq!(world.queue().len(), 1, "the place stays");
}

#[test]
fn acquire_of_a_session_bound_to_other_work_is_refused_held_or_free() {
    let mut world = World::new();
    let lease = acquired(&mut world, &bound_to("E1", 1));
    let mismatch = Decision::EpicMismatch("E1".to_owned());
    assert_eq!(found(&mut world, &bound_to("E2", 2)), mismatch);
    released(&mut world, lease);
    assert_eq!(found(&mut world, &bound_to("E2", 2)), mismatch);
    acquired(&mut world, &acquire(2));
    assert_eq!(world.latest().epic.as_deref(), Some("E1"), "it stays bound");
}

// Renew.

#[test]
fn renew_of_an_absent_session_is_gone() {
    assert_eq!(renewed(&mut World::new(), &renew(lease(1))), Renewed::Gone);
}

#[test]
fn renew_by_the_holder_runs_on() {
    let (mut world, lease) = held();
    world.wait(20_000);
    let Renewed::Found(row) = renewed(&mut world, &renew(lease)) else { panic!("found") };
    assert_eq!(row.lease.expire_time, world.now.after(ttl(30)));
    assert_eq!((world.latest().lease, world.latest().resumed), (lease, ResumedBy::Call));
}

#[test]
fn renew_is_bounded_by_max_hold_and_never_shortens_below_it() {
    let (mut world, lease) = held();
    let end = world.now.plus(MAX_HOLD);
    for _ in 0..3 {
        world.wait(19_000);
        renewed(&mut world, &renew(lease));
    }
    assert_eq!(world.latest().expire_time, end);
    world.run(RenewWithin(&renew(lease), MAX_HOLD / 2));
    assert_eq!(world.latest().expire_time, end, "a lower bound takes nothing away");
}

#[test]
fn renew_with_a_shorter_ttl_takes_nothing_away() {
    let (mut world, lease) = held();
    let end = world.latest().expire_time;
    world.wait(1_000);
    renewed(&mut world, &Renew { ttl: ttl(3), ..renew(lease) });
    assert_eq!(world.latest().expire_time, end);
    assert_eq!(
        world.latest().ttl,
        Some(std::time::Duration::from_secs(29)),
        "what is left is trusted"
    );
}

#[test]
fn renew_by_another_lease_is_gone() {
    let (mut world, _) = held();
    assert_eq!(renewed(&mut world, &renew(lease(9))), Renewed::Gone);
}

#[test]
fn renew_after_the_lapse_finds_the_lease_as_it_ended() {
    let (mut world, lease) = held();
    world.wait(30_000);
    let (plan, found) = world.decide(RenewWithin(&renew(lease), MAX_HOLD));
    assert!(plan.is_empty());
    assert!(matches!(found, Renewed::Found(SessionRow { live: false, .. })));
}

#[test]
fn renew_after_the_release_is_gone() {
    let (mut world, lease) = held();
    released(&mut world, lease);
    assert_eq!(renewed(&mut world, &renew(lease)), Renewed::Gone);
}

#[test]
fn renew_by_a_stream_that_was_replaced_changes_nothing() {
    let (mut world, lease) = held();
    let (old, new) = (StreamId::random(), StreamId::random());
    world.run(Acquire { stream: Some(new), ..acquire_again(&world, 1) });
    let before = world.latest().clone();
    let renew = |stream| Renew { stream: Some(stream), ..renew(lease) };
    assert_eq!(renewed(&mut world, &renew(old)), Renewed::Resumed);
    assert_eq!(*world.latest(), before);
    assert!(matches!(renewed(&mut world, &renew(new)), Renewed::Found(_)));
    assert_eq!(world.latest().resumed, ResumedBy::Stream(new));
}

// Release.

#[test]
fn release_of_an_absent_session_does_nothing() {
    assert_eq!(is_nothing(&mut World::new(), &release(lease(1))), NOT_ENDED);
}

#[test]
fn release_by_the_holder_frees_the_session() {
    let (mut world, lease) = held();
    assert_eq!(released(&mut world, lease), ENDED);
    let latest = world.latest();
    assert!(latest.released && latest.expire_time == world.now);
}

#[test]
fn release_by_the_holder_hands_the_session_to_the_first_waiter() {
    let (mut world, own) = awaited();
    let released = released(&mut world, own);
    assert!(released.ended);
    assert_eq!(released.handover.unwrap().lease.id, lease(200));
    assert!(world.latest().is_live(world.now) && world.queue().is_empty());
}

#[test]
fn release_by_another_lease_does_nothing() {
    let (mut world, _) = held();
    assert_eq!(is_nothing(&mut world, &release(lease(9))), NOT_ENDED);
}

#[test]
fn release_after_the_lapse_does_nothing() {
    let (mut world, lease) = awaited();
    world.wait(30_000);
    assert_eq!(is_nothing(&mut world, &release(lease)), NOT_ENDED);
}

#[test]
fn release_is_repeatable() {
    let (mut world, lease) = held();
    released(&mut world, lease);
    assert_eq!(is_nothing(&mut world, &release(lease)), ENDED);
}

#[test]
fn release_by_a_stream_spares_a_lease_that_another_call_carries_on() {
    let (mut world, lease) = held();
    let (own, other) = (StreamId::random(), StreamId::random());
    let by = |stream| Release { unless_resumed: Some(stream), ..release(lease) };
    for resumed in [ResumedBy::Call, ResumedBy::Stream(other)] {
        world.latest_mut().resumed = resumed;
        assert_eq!(is_nothing(&mut world, &by(own)), NOT_ENDED);
    }
    world.latest_mut().resumed = ResumedBy::Stream(own);
    assert_eq!(world.run(by(own)), ENDED);
}

/// The answer to the run that released it was lost, and another caller has the session since.
#[test]
fn release_that_is_run_again_is_answered_by_the_run_that_released() {
    let (mut world, lease) = held();
    let asked = release(lease);
    let (plan, _) = world.decide(&asked);
    assert!(world.apply(plan));
    acquired(&mut world, &acquire(2));
    assert_eq!(is_nothing(&mut world, &release(lease)), NOT_ENDED, "another call is not that one");
    asked.spend();
    assert_eq!(is_nothing(&mut world, &asked), ENDED);

    // It had found nothing to release.
    let late = release(lease);
    assert_eq!(is_nothing(&mut world, &late), NOT_ENDED);
    late.spend();
    assert_eq!(is_nothing(&mut world, &late), NOT_ENDED);
}

// Fencing tokens.

#[test]
fn a_grant_is_refused_when_tokens_are_exhausted() {
    let mut world = World::new();
    world.floor = FencingToken::MAX;
    let mut wanted = Wanted::default();
    wanted.session(&key("s"));
    let snapshot = world.read(&wanted);
    let mut draft = Draft::new(&snapshot, &mut world.ids);
    let refused = acquire(1).decide(&mut draft);
    assert_eq!(refused.err(), Some(RuleError::TokensExhausted));
}

#[test]
fn a_lease_ends_at_its_end_and_not_before() {
    let (mut world, _) = held();
    let end: Timestamp = world.latest().expire_time;
    world.now = Timestamp::from_micros(end.as_micros() - 1);
    assert!(matches!(found(&mut world, &acquire(2)), Decision::Held(_)));
    world.now = end;
    acquired(&mut world, &acquire(2));
}
