//! Sequences in which the stores had differed, or might.

use std::{ops::RangeInclusive, time::Duration};

use oncegate::{
    domain::{
        Acquire, Begin, Delivered, Enqueue, EventKey, Interruption, Labels, Mark, OwnLease,
        PayloadDigest, Release, RenewTurn, RequestId, SessionKey, StreamId, Team, TeamFilter, Ttl,
        TurnId,
        limits::{CLAIM_MEMORY, CLAIM_TTL, EVENT_TTL, LEASE_TTL},
    },
    store::{Age, Kind, Scope, Sweep},
};
use uuid::Uuid;

use super::{
    Ground,
    steps::{Grant, Of, Op, Step, lease, request},
};

fn key() -> SessionKey {
    SessionKey { team: Team::stored("T1"), session: "s".into() }
}

fn minute(range: &RangeInclusive<Duration>) -> Ttl {
    Ttl::parse(None, Duration::from_mins(1), range).unwrap()
}

fn acquire(request: RequestId, epic: Option<&str>) -> Acquire {
    Acquire {
        key: key(),
        holder: "h1".into(),
        request,
        lease: OwnLease::random(),
        ttl: minute(&LEASE_TTL),
        epic: epic.map(str::to_owned),
        labels: Labels::default(),
        stream: None,
        resumes: None,
        digest: None,
    }
}

/// Takes the session for work that it is bound to from then on.
fn take() -> Op {
    Op::Change(vec![acquire(request((0, 0)), Some("P-1"))], vec![])
}

fn release(grant: Grant) -> Op {
    let release = Release::new(key(), lease(grant), None);
    Op::Change(vec![], vec![Of(grant, release)])
}

/// Takes a place in the queue.
fn wait(grant: Grant, epic: &str) -> Op {
    let acquire = Acquire { lease: lease(grant).into(), ..acquire(request(grant), Some(epic)) };
    Op::Enqueue(vec![Enqueue { acquire, takes_over: None }])
}

/// Takes over the place of the same request.
fn take_over(number: usize, of: Grant) -> Op {
    let acquire = Acquire { lease: lease((number, 0)).into(), ..acquire(request(of), None) };
    Op::Enqueue(vec![Enqueue { acquire, takes_over: Some(lease(of)) }])
}

fn leave(grant: Grant, keep: bool) -> Op {
    Op::Leave(vec![Of(grant, key())], keep)
}

/// Runs `ops` in all stores, which are to answer the last of them with `expected`.
async fn come_to(ops: Vec<Op>, expected: &str) {
    let mut sides = Ground::new().await.sides().await;
    let mut last = String::new();
    for (number, op) in ops.into_iter().enumerate() {
        let step = Step { number, op };
        let answers = sides.answers(&step).await;
        assert_eq!(super::difference(&answers), None, "{step:?}");
        assert_eq!(sides.rows().await, None, "{step:?}");
        [last, ..] = answers;
    }
    assert!(last.contains(expected), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_waits_for_other_work_is_next_once_the_session_is_bound_to_that() {
    let hand_on = || Op::HandOn(vec![key()]);
    let bind = |epic| Op::Bind(key(), epic);
    let waits = vec![take(), bind(Some("P-2")), wait((1, 0), "P-2"), bind(Some("P-1"))];
    let until = [waits, vec![release((0, 0)), hand_on()]].concat();
    let idle = "live: false, waiting: false";
    come_to(until.clone(), idle).await;
    come_to([until.clone(), vec![bind(Some("P-3")), hand_on()]].concat(), idle).await;
    for epic in [None, Some("P-2")] {
        let next = "live: true";
        come_to([until.clone(), vec![bind(epic), hand_on()]].concat(), next).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_hands_on_a_session_whose_waiters_it_has_not_read() {
    let steps = vec![take(), wait((1, 0), "P-1"), release((0, 0))];
    come_to(steps, "handovers: [SessionRow").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_was_left_for_too_long_is_gone() {
    let after = |micros| {
        let kept = Op::Advance(Duration::from_micros(micros));
        vec![take(), wait((1, 0), "P-1"), leave((1, 0), true), kept]
    };
    let (soon, late) = (after(9_999_999), after(10_000_000));
    come_to([soon.clone(), vec![leave((1, 0), false)]].concat(), "Decided(Left(true))").await;
    come_to([late.clone(), vec![leave((1, 0), false)]].concat(), "Decided(Left(false))").await;
    let again = || vec![wait((1, 0), "P-1")];
    come_to([soon, again()].concat(), "waits, place 0").await;
    come_to([late, again()].concat(), "waits, place 1, last: true").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_whose_answer_was_lost_is_found_again_and_the_lease_that_has_come_of_it() {
    let placed = vec![take(), wait((1, 0), "P-1"), wait((1, 0), "P-1")];
    come_to(placed.clone(), "waits, place 0").await;
    // The lease has come since.
    let given = [placed, vec![release((0, 0)), wait((1, 0), "P-1")]].concat();
    come_to(given, "Decided(Enqueued(Given))").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_came_for_a_turn_whose_event_was_handled_meanwhile_is_given_back() {
    let event = || {
        Delivered::new(EventKey { team: Team::stored("T1"), event: "a".into() }, vec![], None, None)
    };
    let acquire = acquire(request((1, 0)), None);
    let begin = Begin {
        event: event(),
        request: acquire.request,
        holder: acquire.holder.clone(),
        claim_ttl: minute(&CLAIM_TTL),
        max_attempts: 2,
        session: Some(acquire.clone()),
        stream: None,
        resumes: None,
        grace: Duration::ZERO,
    };
    let acquire = Acquire { lease: lease((2, 0)).into(), ..acquire };
    let enqueue = Enqueue { acquire, takes_over: None };
    let mark = Mark { event: event(), ttl: minute(&EVENT_TTL), request: request((3, 0)) };
    let busy = vec![take(), Op::Turns(vec![begin.clone()], vec![])];
    come_to(busy.clone(), "Busy(").await;
    let handed = vec![Op::Enqueue(vec![enqueue]), Op::Mark(vec![mark]), release((0, 0))];
    let ops = [busy, handed, vec![Op::Turns(vec![begin], vec![])]].concat();
    come_to(ops, "(Release {").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_kept_outlives_a_swept_or_closed_session() {
    let take = || Op::Change(vec![acquire(request((0, 0)), None)], vec![]);
    let scope =
        Scope { team: TeamFilter::stored(None), age: Age::Expired, dry_run: false, elected: false };
    let sweep = Op::Sweep(Sweep { kind: Kind::Sessions, scope, limit: 10 });
    for end in [sweep, Op::Close(key())] {
        let ops = vec![
            take(),
            wait((1, 0), "P-1"),
            leave((1, 0), true),
            release((0, 0)),
            end,
            take(),
            take_over(6, (1, 0)),
        ];
        come_to(ops, "took over, place Some(0)").await;
    }
}

/// Begins a turn without a session.
fn begin(number: usize, stream: Option<StreamId>) -> Op {
    let key = EventKey { team: Team::stored("T1"), event: "a".into() };
    Op::Turns(
        vec![Begin {
            event: Delivered::new(key, vec![], None, None),
            request: request((number, 0)),
            holder: "h1".into(),
            claim_ttl: minute(&CLAIM_TTL),
            max_attempts: 1,
            session: None,
            stream,
            resumes: None,
            grace: Duration::ZERO,
        }],
        vec![],
    )
}

/// Renews the turn that step 0 began.
fn renew(stream: Option<StreamId>, interruption: Option<Interruption>) -> Op {
    let turn = TurnId {
        event: EventKey { team: Team::stored("T1"), event: "a".into() },
        request: request((0, 0)),
        attempt: 1,
        lease: None,
        max_attempts: 1,
    };
    let (claim_ttl, lease_ttl) = (minute(&CLAIM_TTL), minute(&LEASE_TTL));
    let prolong = RenewTurn { turn, claim_ttl, lease_ttl, stream, interruption };
    Op::RenewTurn(vec![Of((0, 0), prolong)], Duration::from_hours(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_was_interrupted_counts_once_it_is_carried_on() {
    let stream = Some(StreamId::random());
    let interrupted = vec![begin(0, stream), renew(stream, Some(Interruption::Drained))];
    let next = || vec![Op::Advance(Duration::from_mins(1)), begin(9, None)];
    come_to([interrupted.clone(), next()].concat(), "attempt: 2").await;
    for carried_on in [begin(0, Some(StreamId::random())), begin(0, None), renew(None, None)] {
        let ops = [interrupted.clone(), vec![carried_on], next()].concat();
        come_to(ops, "by: GaveUp(1)").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_counted_for_a_day_after_the_latest_renewal() {
    let after = |span| {
        let wait = Op::Advance(Duration::from_secs(5));
        vec![begin(0, None), wait, renew(None, None), Op::Advance(span), begin(9, None)]
    };
    let micro = Duration::from_micros(1);
    come_to(after(CLAIM_MEMORY.checked_sub(micro).unwrap()), "by: GaveUp(1)").await;
    come_to(after(CLAIM_MEMORY), "attempt: 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_another_payload_takes_a_place_of_its_own() {
    let payload = |number: u128| Some(PayloadDigest::from_uuid(Uuid::from_u128(number)));
    let wait = |number, digest| {
        let lease_of = lease((number, 0));
        let acquire = Acquire { digest, lease: lease_of.into(), ..acquire(request((1, 0)), None) };
        Op::Enqueue(vec![Enqueue { acquire, takes_over: Some(lease((1, 0))) }])
    };
    let placed = vec![take(), wait(1, payload(1))];
    come_to([placed.clone(), vec![wait(2, payload(1))]].concat(), "took over").await;
    for digest in [payload(2), None] {
        come_to([placed.clone(), vec![wait(2, digest)]].concat(), "waits, place 1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_decided_beside_another_that_had_its_name_before() {
    let key = |name: &str| EventKey { team: Team::stored("T1"), event: name.to_owned() };
    let event = |names: &[&str]| {
        Delivered::new(
            key(names[0]),
            names[1..].iter().map(|name| (*name).to_owned()).collect(),
            None,
            None,
        )
    };
    let begin = |number, names: &[&str]| Begin {
        event: event(names),
        request: request((number, 0)),
        holder: "h1".into(),
        claim_ttl: minute(&CLAIM_TTL),
        max_attempts: 1,
        session: None,
        stream: None,
        resumes: None,
        grace: Duration::ZERO,
    };
    let mark = Mark { event: event(&["e"]), ttl: minute(&EVENT_TTL), request: request((2, 0)) };
    let lapse = || Op::Advance(Duration::from_mins(1));
    let taken = vec![Op::Turns(vec![begin(0, &["e", "a"])], vec![]), lapse(), Op::Mark(vec![mark])];
    // The event that both names were taken with is given up under one, and the other is new.
    let both = Op::Turns(vec![begin(4, &["a"]), begin(5, &["e"])], vec![]);
    come_to([taken, vec![lapse(), both]].concat(), "gave_up: 1").await;
}
