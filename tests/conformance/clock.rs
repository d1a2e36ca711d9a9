//! The store's clock is stepped back: nothing runs longer than its TTL from then on, and no
//! token falls.

use std::time::Duration;

use oncegate::{
    domain::FencingToken,
    grpc::pb::{
        AcquireSessionLeaseRequest, BeginTurnRequest, BeginTurnResponse, BindEpicRequest,
        CheckSessionLeaseRequest, CleanupRequest, CloseSessionRequest, FinishTurnRequest,
        ForceReleaseSessionLeaseRequest, GetSessionRequest, IsProcessedRequest,
        ListSessionsRequest, RenewSessionLeaseRequest, RenewTurnRequest, SessionLease, Turn,
        TurnOutcome, admin_service_client::AdminServiceClient, begin_turn_response::Outcome,
        turn_service_client::TurnServiceClient,
    },
    store::{AdminStore as _, Clock, FenceStore as _, Store as _, Upkeep as _, Work},
};
use tonic::transport::Channel;

use crate::{
    harness::{
        Client, Fixture, acquire, connect, event, execute, granted, held, mark, release, renew,
        seconds, session,
    },
    on_both_stores,
};

mod fence;
mod repeats;

on_both_stores!(
    a_dead_holders_lease_ends_a_ttl_after_the_first_look,
    a_dead_runs_claim_ends_a_ttl_after_the_first_look,
    a_dead_runs_session_ends_a_ttl_after_the_first_begin,
    a_dead_holder_is_passed_over_by_those_who_wait,
    a_turn_that_failed_before_the_step_is_retried_at_once,
    a_holder_that_renews_keeps_its_lease_over_the_step,
    a_run_that_renews_keeps_its_turn_over_the_step,
    no_lease_is_held_longer_because_of_the_step,
    a_clock_that_is_a_moment_behind_does_not_change_when_a_lease_was_granted,
    a_restart_does_not_shorten_the_step,
);

const HOUR: Duration = Duration::from_hours(1);

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// An acquire with a TTL of 5 s.
fn brief(holder: &str) -> AcquireSessionLeaseRequest {
    AcquireSessionLeaseRequest { ttl: seconds(5), ..acquire("T1", "s", holder) }
}

async fn take(client: &mut Client, request: AcquireSessionLeaseRequest) -> SessionLease {
    granted(client.acquire_session_lease(request).await.unwrap().into_inner())
}

/// How long the session is still held, in microseconds, as an acquire is answered.
async fn held_for(f: &mut Fixture) -> i64 {
    let answer = f.client.acquire_session_lease(brief("other")).await.unwrap().into_inner();
    let remaining = held(answer).remaining.unwrap();
    remaining.seconds * 1_000_000 + i64::from(remaining.nanos) / 1_000
}

async fn admin(f: &Fixture) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(connect(f.replica.server.address()).await)
}

async fn turns(f: &Fixture) -> TurnServiceClient<Channel> {
    TurnServiceClient::new(connect(f.replica.server.address()).await)
}

fn wish(holder: &str) -> BeginTurnRequest {
    BeginTurnRequest {
        event: event("T1", "e"),
        holder: holder.into(),
        claim_ttl: seconds(60),
        ..Default::default()
    }
}

fn outcome(answer: tonic::Response<BeginTurnResponse>) -> Outcome {
    answer.into_inner().outcome.unwrap()
}

#[track_caller]
fn turn(outcome: Outcome) -> Turn {
    match outcome {
        Outcome::Granted(granted) => granted.turn.unwrap(),
        other => panic!("not granted: {other:?}"),
    }
}

/// How many wait.
async fn queue(f: &mut Fixture) -> i32 {
    let answer = f.client.acquire_session_lease(brief("look")).await.unwrap().into_inner();
    held(answer).queue_length
}

/// What a look at the session is answered: whether the token is current, and the row.
async fn looks(f: &mut Fixture, lease: &SessionLease) {
    let check = CheckSessionLeaseRequest {
        session: session("T1", "s"),
        fencing_token: lease.fencing_token,
    };
    assert!(f.client.check_session_lease(check).await.unwrap().into_inner().current);
    let mut admin = admin(f).await;
    let get = GetSessionRequest { session: session("T1", "s") };
    let shown = admin.get_session(get).await.unwrap().into_inner().session.unwrap();
    let listed = admin.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner();
    for session in [shown, listed.sessions.into_iter().next().unwrap()] {
        assert!(session.remaining.unwrap().seconds <= 5, "{:?}", session.remaining);
    }
}

async fn a_dead_holders_lease_ends_a_ttl_after_the_first_look(mut f: Fixture) {
    let lease = take(&mut f.client, brief("dead")).await;
    f.clock.step_back(HOUR);
    looks(&mut f, &lease).await;
    f.clock.advance(secs(1));
    // From here on it counts; a look alone does not write.
    let first = held_for(&mut f).await;
    assert!(first <= 5_000_000, "held for {first} µs");
    f.clock.advance(secs(3));
    let second = held_for(&mut f).await;
    assert!(second <= 2_000_000, "the end is written back: held for {second} µs");
    f.clock.advance(secs(2));
    let next = take(&mut f.client, brief("next")).await;
    assert!(next.fencing_token > lease.fencing_token);
}

async fn a_dead_runs_claim_ends_a_ttl_after_the_first_look(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let request = BeginTurnRequest {
        event: Some(oncegate::grpc::pb::EventKey {
            aliases: vec!["alias".into()],
            ..event("T1", "e").unwrap()
        }),
        ..wish("dead")
    };
    turn(outcome(turns.begin_turn(request).await.unwrap()));
    f.clock.step_back(HOUR);
    let remaining = |outcome| match outcome {
        Outcome::InProgress(claimed) => claimed.remaining.unwrap().seconds,
        other => panic!("not in progress: {other:?}"),
    };
    let first = remaining(outcome(turns.begin_turn(wish("other")).await.unwrap()));
    assert!(first <= 60, "claimed for {first} s");
    f.clock.advance(secs(40));
    assert!(!f.client.mark_processed(mark("T1", "e")).await.unwrap().into_inner().first);
    assert!(remaining(outcome(turns.begin_turn(wish("other")).await.unwrap())) <= 20);
    f.clock.advance(secs(20));
    let alias = BeginTurnRequest { event: event("T1", "alias"), ..wish("by its alias") };
    assert_eq!(turn(outcome(turns.begin_turn(alias).await.unwrap())).attempt, 2);
    assert_eq!(turn(outcome(turns.begin_turn(wish("next")).await.unwrap())).attempt, 2);
}

async fn a_dead_runs_session_ends_a_ttl_after_the_first_begin(mut f: Fixture) {
    let mut turns = turns(&f).await;
    take(&mut f.client, brief("dead")).await;
    f.clock.step_back(HOUR);
    let request = || BeginTurnRequest { session: session("T1", "s"), ..wish("run") };
    let remaining = |outcome| match outcome {
        Outcome::Busy(held) => held.remaining.unwrap().seconds,
        other => panic!("not busy: {other:?}"),
    };
    assert!(remaining(outcome(turns.begin_turn(request()).await.unwrap())) <= 5);
    f.clock.advance(secs(4));
    assert!(remaining(outcome(turns.begin_turn(request()).await.unwrap())) <= 1);
    f.clock.advance(secs(1));
    turn(outcome(turns.begin_turn(request()).await.unwrap()));
}

async fn a_dead_holder_is_passed_over_by_those_who_wait(mut f: Fixture) {
    let lease = take(&mut f.client, brief("dead")).await;
    let mut waiter = f.client.clone();
    let request = AcquireSessionLeaseRequest { wait: seconds(60), ..brief("waiter") };
    let waiting = tokio::spawn(async move { waiter.acquire_session_lease(request).await });
    while queue(&mut f).await == 0 {}
    f.clock.step_back(HOUR);
    // The first in the queue looks every half second, and is not asked to.
    let clock = f.clock.clone();
    let passing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            clock.advance(Duration::from_millis(100));
        }
    });
    let next = tokio::time::timeout(secs(40), waiting).await.expect("handed on");
    passing.abort();
    assert!(granted(next.unwrap().unwrap().into_inner()).fencing_token > lease.fencing_token);
}

async fn a_turn_that_failed_before_the_step_is_retried_at_once(f: Fixture) {
    let mut turns = turns(&f).await;
    let of = |id: &str| BeginTurnRequest { event: event("T1", id), ..wish("first") };
    let first = turn(outcome(turns.begin_turn(of("e")).await.unwrap()));
    let other = turn(outcome(turns.begin_turn(of("other")).await.unwrap()));
    let finish = |turn: &Turn, outcome: TurnOutcome| FinishTurnRequest {
        turn_id: turn.turn_id.clone(),
        outcome: outcome.into(),
        ..Default::default()
    };
    for failed in [&first, &other] {
        turns.finish_turn(finish(failed, TurnOutcome::Failed)).await.unwrap();
    }
    f.clock.step_back(HOUR);
    let second = turn(outcome(turns.begin_turn(of("e")).await.unwrap()));
    assert_eq!(second.attempt, 2);
    turns.finish_turn(finish(&second, TurnOutcome::Succeeded)).await.unwrap();
    // What has failed is not done after all, and its answer is repeated.
    assert!(turns.finish_turn(finish(&other, TurnOutcome::Succeeded)).await.is_err());
    let again = turns.finish_turn(finish(&other, TurnOutcome::Failed)).await;
    assert!(again.is_ok(), "{again:?}");
}

async fn a_holder_that_renews_keeps_its_lease_over_the_step(mut f: Fixture) {
    let lease = take(&mut f.client, brief("alive")).await;
    let renewal = RenewSessionLeaseRequest { ttl: seconds(5), ..renew(&lease) };
    f.clock.step_back(HOUR);
    for _ in 0..5 {
        assert!(held_for(&mut f).await <= 5_000_000);
        f.clock.advance(secs(4));
        let renewed = f.client.renew_session_lease(renewal.clone()).await.unwrap().into_inner();
        assert_eq!(renewed.lease.unwrap().remaining, seconds(5));
    }
}

async fn a_run_that_renews_keeps_its_turn_over_the_step(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let wished = BeginTurnRequest { session: session("T1", "s"), ..wish("alive") };
    let mine = turn(outcome(turns.begin_turn(wished).await.unwrap()));
    f.clock.step_back(HOUR);
    for _ in 0..5 {
        let renew = RenewTurnRequest {
            turn_id: mine.turn_id.clone(),
            claim_ttl: seconds(60),
            lease_ttl: seconds(60),
        };
        turns.renew_turn(renew).await.unwrap();
        let other = outcome(turns.begin_turn(wish("other")).await.unwrap());
        let Outcome::InProgress(claimed) = other else { panic!("not in progress: {other:?}") };
        assert_eq!(claimed.remaining, seconds(60));
        f.clock.advance(secs(50));
    }
    let outcome = TurnOutcome::Succeeded.into();
    let finish = FinishTurnRequest { turn_id: mine.turn_id, outcome, ..Default::default() };
    turns.finish_turn(finish).await.unwrap();
    assert!(
        f.client
            .is_processed(IsProcessedRequest { event: event("T1", "e"), ..Default::default() })
            .await
            .is_ok()
    );
}

async fn no_lease_is_held_longer_because_of_the_step(mut f: Fixture) {
    let long = AcquireSessionLeaseRequest { ttl: seconds(900), ..acquire("T1", "s", "a") };
    let lease = take(&mut f.client, long).await;
    f.clock.step_back(HOUR * 5);
    let again = RenewSessionLeaseRequest { ttl: seconds(900), ..renew(&lease) };
    // An hour from the first look, and not six.
    for minute in [0, 14, 28, 42, 56] {
        let renewed = f.client.renew_session_lease(again.clone()).await;
        assert!(renewed.is_ok(), "at minute {minute}");
        f.clock.advance(Duration::from_mins(14));
    }
    assert!(f.client.renew_session_lease(again).await.is_err(), "at minute 70");
}

/// As that of a statement which read the time just before another's commit.
async fn a_clock_that_is_a_moment_behind_does_not_change_when_a_lease_was_granted(mut f: Fixture) {
    let lease = take(&mut f.client, brief("a")).await;
    f.clock.step_back(Duration::from_millis(500));
    let renewed = f.client.renew_session_lease(renew(&lease)).await.unwrap().into_inner();
    assert_eq!(renewed.lease.unwrap().acquire_time, lease.acquire_time);
}

async fn a_restart_does_not_shorten_the_step(mut f: Fixture) {
    let mut turns = turns(&f).await;
    f.clock.advance(secs(100));
    let lease = take(&mut f.client, brief("dead")).await;
    turn(outcome(turns.begin_turn(wish("dead")).await.unwrap()));
    drop(turns);
    f.clock.step_back(HOUR);
    let mut f = f.restarted(&[]).await;
    assert!(held_for(&mut f).await <= 5_000_000);
    f.clock.advance(secs(5));
    let next = take(&mut f.client, brief("next")).await;
    assert!(next.fencing_token > lease.fencing_token);
    let mut turns = self::turns(&f).await;
    let _ = turns.begin_turn(wish("other")).await.unwrap();
    f.clock.advance(secs(60));
    turn(outcome(turns.begin_turn(wish("next")).await.unwrap()));
}

/// As after a move by logical replication, which copies those who wait, but not the sequence
/// that their tickets came from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_overtakes_those_whose_tickets_are_ahead_of_the_sequence() {
    const AHEAD: &str = "UPDATE oncegate_waiters SET ticket = ticket + 5000";
    let mut f = Fixture::postgres().await;
    let lease = take(&mut f.client, brief("a")).await;
    let mut waiters = Vec::new();
    for (place, name) in (1..).zip(["first", "second", "third"]) {
        let mut waiter = f.client.clone();
        let request = AcquireSessionLeaseRequest { wait: seconds(60), ..brief(name) };
        waiters.push(tokio::spawn(async move { waiter.acquire_session_lease(request).await }));
        while queue(&mut f).await < place {}
        if place == 1 {
            execute(&f.url, AHEAD).await;
        }
    }
    let mut last = lease;
    for (waiter, name) in waiters.into_iter().zip(["first", "second", "third"]) {
        f.client.release_session_lease(release(&last)).await.unwrap();
        let answer = tokio::time::timeout(secs(20), waiter).await.expect(name);
        last = granted(answer.unwrap().unwrap().into_inner());
        assert_eq!(last.holder, name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_replica_counts_as_there_for_seconds_after_the_step() {
    let mut f = Fixture::postgres().await;
    take(&mut f.client, brief("a")).await;
    let mut waiter = f.client.clone();
    let request = AcquireSessionLeaseRequest { wait: seconds(60), ..brief("waiter") };
    let waiting = tokio::spawn(async move { waiter.acquire_session_lease(request).await });
    while queue(&mut f).await == 0 {}
    f.replica.server.stop().await.unwrap();
    let _ = waiting.await;
    // As if it had been killed.
    let left = "INSERT INTO oncegate_waiters (team_id, session_id, lease_id, request_id, holder,
            labels, ttl_micros, replica)
        SELECT 'T1', 's', gen_random_uuid(), gen_random_uuid(), 'waiter', '{}', 5000000, replica
        FROM oncegate_replicas";
    execute(&f.url, left).await;
    let store = || {
        let clock: Clock = f.clock.store_clock();
        oncegate::store::postgres::Postgres::new(&f.url, secs(5), clock).unwrap()
    };
    let mut other = store().connection(Work::Short);
    assert_eq!(other.count(None).await.unwrap().waiters, 1);
    f.clock.step_back(HOUR);
    other.heartbeat().await.unwrap();
    f.clock.advance(secs(7));
    assert_eq!(other.count(None).await.unwrap().waiters, 1, "not at once");
    f.clock.advance(secs(1));
    assert_eq!(other.count(None).await.unwrap().waiters, 0);
    assert_eq!(store().fence().await.unwrap().now.as_micros(), f.clock.micros());
}
