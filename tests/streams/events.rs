//! What a stream reports while it keeps a turn or lease: that the turn or lease is lost, and how
//! many callers wait behind it.

use std::sync::atomic::{AtomicUsize, Ordering};

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, CloseSessionRequest, EventKey, ForceReleaseSessionLeaseRequest,
    ForgetEventRequest, HoldSessionLeaseRequest, HoldSessionLeaseResponse, SessionKey,
    admin_service_client::AdminServiceClient, hold_session_lease_response::News as HoldNews,
};
use oncegate::store::Clock;

use super::{
    alive::{channel, hold, long, long_turn},
    leases::Hold,
    *,
};
use crate::{
    harness::{Client, Fixture, Replica, acquire, postgres::new_database},
    on_both_stores,
};

on_both_stores!(
    a_holder_learns_at_once_that_its_lease_was_taken_away,
    a_run_learns_at_once_that_its_event_was_forgotten,
    a_holder_is_told_how_many_wait_behind_it,
    a_run_is_told_how_many_wait_behind_it,
);

async fn admin(replica: &Replica) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(channel(replica).await)
}

/// Ends a lease by hand.
async fn end_lease(
    admin: &mut AdminServiceClient<Channel>,
    session: Option<SessionKey>,
    close: bool,
) {
    let (actor, reason) = ("ops".to_owned(), "stuck".to_owned());
    if close {
        admin.close_session(CloseSessionRequest { session, actor, reason }).await.unwrap();
    } else {
        let force = ForceReleaseSessionLeaseRequest { session, actor, reason };
        admin.force_release_session_lease(force).await.unwrap();
    }
}

/// Its lease is ended by `there`, while the stream is at `here`.
async fn loses_its_lease_at_once(here: &Replica, there: &Replica) {
    let (channel, mut admin) = (channel(here).await, admin(there).await);
    for close in [false, true] {
        let mut hold = Hold::begin(channel.clone(), long()).await;
        end_lease(&mut admin, session("T1", "s"), close).await;
        let lost = hold.closed().await;
        assert_eq!(reason(&lost), "LEASE_LOST");
        let event_id = if close { "Ev1" } else { "Ev2" };
        let mut run = Run::begin(channel.clone(), long_turn(event_id)).await;
        end_lease(&mut admin, session("T1", &format!("thread of {event_id}")), close).await;
        let lost = run.last().await;
        assert_eq!(reason(&lost.unwrap_err()), "LEASE_LOST");
    }
}

async fn a_holder_learns_at_once_that_its_lease_was_taken_away(f: Fixture) {
    loses_its_lease_at_once(&f.replica, &f.replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_taken_away_at_another_replica_is_lost_at_once() {
    let url = new_database().await;
    let replicas = Replica::start_all(2, &url, &Clock::Store).await;
    hears(&replicas[0], &replicas[1]).await;
    loses_its_lease_at_once(&replicas[0], &replicas[1]).await;
}

/// Its event is forgotten at `there`, while the stream is at `here`.
async fn loses_its_event_at_once(here: &Replica, there: &Replica) {
    let (channel, mut admin) = (channel(here).await, admin(there).await);
    for by in ["Ev1", "alias"] {
        let known = EventKey { aliases: vec!["alias".into()], ..event("T1", "Ev1").unwrap() };
        let request = BeginTurnRequest { event: Some(known), ..long_turn("Ev1") };
        let mut run = Run::begin(channel.clone(), request).await;
        let forget = ForgetEventRequest {
            event: event("T1", by),
            actor: "ops".into(),
            reason: "wrong".into(),
        };
        admin.forget_event(forget).await.unwrap();
        let lost = run.last().await;
        assert_eq!(reason(&lost.unwrap_err()), "CLAIM_LOST");
        // The session was still this turn's.
        end_lease(&mut admin, session("T1", "thread of Ev1"), false).await;
    }
}

async fn a_run_learns_at_once_that_its_event_was_forgotten(f: Fixture) {
    loses_its_event_at_once(&f.replica, &f.replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_forgotten_at_another_replica_is_lost_at_once() {
    let url = new_database().await;
    let replicas = Replica::start_all(2, &url, &Clock::Store).await;
    hears(&replicas[0], &replicas[1]).await;
    loses_its_event_at_once(&replicas[0], &replicas[1]).await;
}

/// A caller that waits for a session.
struct Waiter(JoinHandle<()>);

impl Waiter {
    async fn at(replica: &Replica, id: &str) -> Self {
        let mut client = Client::new(channel(replica).await);
        let request =
            AcquireSessionLeaseRequest { wait: seconds(600), ..acquire("T1", id, "waiter") };
        Self(tokio::spawn(async move {
            let _ = client.acquire_session_lease(request).await;
        }))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until a stream reports so many waiters.
async fn reports<T>(events: &mut Streaming<T>, count: i32, waiters: impl Fn(&T) -> Option<i32>) {
    let reported = async {
        loop {
            let event = events.message().await.unwrap().unwrap();
            if waiters(&event) == Some(count) {
                return;
            }
        }
    };
    timeout(PATIENCE, reported).await.expect("the number of waiters");
}

async fn of_hold(events: &mut Streaming<HoldSessionLeaseResponse>, count: i32) {
    let waiters = |event: &HoldSessionLeaseResponse| match &event.news {
        Some(HoldNews::Waiting(waiting)) => Some(waiting.waiters),
        _ => None,
    };
    reports(events, count, waiters).await;
}

async fn of_run(events: &mut Streaming<RunTurnResponse>, count: i32) {
    let waiters = |event: &RunTurnResponse| match &event.news {
        Some(News::Waiting(waiting)) => Some(waiting.waiters),
        _ => None,
    };
    reports(events, count, waiters).await;
}

/// Waits until `here` hears what `there` notifies.
async fn hears(here: &Replica, there: &Replica) {
    static PROBES: AtomicUsize = AtomicUsize::new(0);
    let heard = async {
        loop {
            let probe = format!("probe {}", PROBES.fetch_add(1, Ordering::Relaxed));
            let request = HoldSessionLeaseRequest { session: session("T1", &probe), ..long() };
            let mut held = Hold::begin(channel(here).await, request).await;
            let _waiter = Waiter::at(there, &probe).await;
            if timeout(Duration::from_secs(1), of_hold(&mut held.events, 1)).await.is_ok() {
                return;
            }
        }
    };
    timeout(PATIENCE, heard).await.expect("a notification");
}

/// A holder at `here`, and callers at `there` that wait behind it.
async fn is_told_how_many_wait(here: &Replica, there: &Replica) {
    let mut held = Hold::begin(channel(here).await, long()).await;
    let first = HoldSessionLeaseRequest {
        holder: "second".into(),
        request_id: String::new(),
        wait: seconds(600),
        ..long()
    };
    let mut next = hold(channel(there).await, first).await;
    of_hold(&mut held.events, 1).await;
    let waiters = [Waiter::at(there, "s").await, Waiter::at(here, "s").await];
    of_hold(&mut held.events, 3).await;
    drop(held);
    // It begins with callers that wait already.
    of_hold(&mut next, 2).await;
    drop(waiters);
    of_hold(&mut next, 0).await;
}

async fn a_holder_is_told_how_many_wait_behind_it(f: Fixture) {
    is_told_how_many_wait(&f.replica, &f.replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_is_told_how_many_wait_on_other_replicas() {
    let url = new_database().await;
    let replicas = Replica::start_all(2, &url, &Clock::Store).await;
    hears(&replicas[0], &replicas[1]).await;
    hears(&replicas[1], &replicas[0]).await;
    is_told_how_many_wait(&replicas[0], &replicas[1]).await;
}

async fn a_run_is_told_how_many_wait_behind_it(f: Fixture) {
    let mut run = Run::begin(channel(&f.replica).await, long_turn("Ev1")).await;
    let waiter = Waiter::at(&f.replica, "thread of Ev1").await;
    of_run(&mut run.events, 1).await;
    drop(waiter);
    of_run(&mut run.events, 0).await;
}
