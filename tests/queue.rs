//! Waiting for a session: first come first served among the callers of one
//! replica, and never a lease for somebody who has gone.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream, stream::FuturesUnordered};
use oncegate::{
    grpc::pb::{
        AcquireSessionLeaseRequest, AcquireSessionLeaseResponse, GetStatsRequest,
        ReleaseSessionLeaseRequest, SessionLease, admin_service_client::AdminServiceClient,
    },
    store::Clock,
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

mod places;
mod repeated;
mod replicas;

use crate::{
    harness::{
        Client, Fixture, Replica, acquire, connect, granted, held, mark,
        postgres::{Cluster, new_database},
        process::Process,
        proxy::{Line, Proxy},
        seconds, session,
    },
    on_all_stores,
};

on_all_stores!(
    waiters_are_served_in_the_order_in_which_they_came,
    waiters_that_went_away_are_passed_over,
    nobody_overtakes_the_queue,
    a_queue_is_bounded,
    a_wait_in_vain_tells_who_holds_the_session,
    a_repeated_request_does_not_wait_for_itself,
    a_waiter_for_other_work_is_told_at_once,
    a_waiter_is_told_when_another_binds_the_session_before_its_turn,
);

type Waiter = JoinHandle<Result<AcquireSessionLeaseResponse, Status>>;

async fn take(client: &mut Client, request: AcquireSessionLeaseRequest) -> SessionLease {
    granted(client.acquire_session_lease(request).await.unwrap().into_inner())
}

async fn give_back(client: &mut Client, lease: &SessionLease) {
    let release = ReleaseSessionLeaseRequest {
        session: session(&lease.team_id, &lease.session_id),
        lease_id: lease.lease_id.clone(),
    };
    assert!(client.release_session_lease(release).await.unwrap().into_inner().released);
}

fn waiting(holder: &str) -> AcquireSessionLeaseRequest {
    AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "s", holder) }
}

/// Lets a caller queue, and returns once it stands in its place.
async fn enqueue(client: &Client, request: AcquireSessionLeaseRequest, place: i32) -> Waiter {
    let mut waiter = client.clone();
    let call = tokio::spawn(async move {
        waiter.acquire_session_lease(request).await.map(tonic::Response::into_inner)
    });
    length(client, place).await;
    call
}

/// Returns once the queue has `count` waiters.
async fn length(client: &Client, count: i32) {
    let mut client = client.clone();
    let look = async {
        loop {
            let answer = client.acquire_session_lease(acquire("T1", "s", "look")).await.unwrap();
            if held(answer.into_inner()).queue_length == count {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.expect("the queue's length");
}

/// Waits until `count` callers have a place in a session's queue, on whichever
/// replica they are.
async fn places(database: &mut PgConnection, count: i64) {
    const PLACES: &str = "SELECT count(*) FROM oncegate_waiters";
    let look = async {
        while sqlx::query_scalar::<_, i64>(PLACES).fetch_one(&mut *database).await.unwrap() != count
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.expect("the queue's length");
}

async fn waiters_are_served_in_the_order_in_which_they_came(mut f: Fixture) {
    let mut lease = take(&mut f.client, acquire("T1", "s", "holder")).await;
    let mut waiters = Vec::new();
    for place in 1..=20 {
        let request = waiting(&format!("waiter {place}"));
        waiters.push(enqueue(&f.client, request, place).await);
    }
    for (place, waiter) in (1..).zip(waiters) {
        give_back(&mut f.client, &lease).await;
        let next = granted(waiter.await.unwrap().unwrap());
        assert_eq!(next.holder, format!("waiter {place}"));
        assert!(next.fencing_token > lease.fencing_token);
        lease = next;
    }
}

async fn waiters_that_went_away_are_passed_over(mut f: Fixture) {
    let lease = take(&mut f.client, acquire("T1", "s", "holder")).await;
    let mut waiters = Vec::new();
    for place in 1..=9 {
        waiters.push(enqueue(&f.client, waiting(&format!("waiter {place}")), place).await);
    }
    // The first and the last among them, and some between.
    for gone in [0, 1, 4, 8] {
        waiters[gone].abort();
    }
    length(&f.client, 5).await;
    let mut last = lease;
    for stayed in [2, 3, 5, 6, 7] {
        give_back(&mut f.client, &last).await;
        last = granted((&mut waiters[stayed]).await.unwrap().unwrap());
        assert_eq!(last.holder, format!("waiter {}", stayed + 1));
    }
}

async fn nobody_overtakes_the_queue(mut f: Fixture) {
    let lease = take(&mut f.client, acquire("T1", "s", "holder")).await;
    let waiter = enqueue(&f.client, waiting("waiter"), 1).await;
    // Callers that do not wait ask all the time while the lease goes over.
    let mut pushy = f.client.clone();
    let pushing = tokio::spawn(async move {
        loop {
            let answer = pushy.acquire_session_lease(acquire("T1", "s", "pushy")).await.unwrap();
            if held(answer.into_inner()).holder == "waiter" {
                return;
            }
        }
    });
    give_back(&mut f.client, &lease).await;
    assert_eq!(granted(waiter.await.unwrap().unwrap()).holder, "waiter");
    pushing.await.expect("a caller that did not wait got the session first");
}

async fn a_queue_is_bounded(mut f: Fixture) {
    take(&mut f.client, acquire("T1", "s", "holder")).await;
    let mut waiters = Vec::new();
    for place in 1..=64 {
        waiters.push(enqueue(&f.client, waiting("waiter"), place).await);
    }
    let refused = f.client.acquire_session_lease(waiting("one more")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().is_some());
    // Another session's queue has nothing to do with it.
    take(&mut f.client, AcquireSessionLeaseRequest { wait: seconds(1), ..acquire("T1", "t", "a") })
        .await;
    waiters.pop().unwrap().abort();
    length(&f.client, 63).await;
    enqueue(&f.client, waiting("one more"), 64).await;
}

async fn a_wait_in_vain_tells_who_holds_the_session(mut f: Fixture) {
    take(&mut f.client, acquire("T1", "s", "holder")).await;
    let short = prost_types::Duration { seconds: 0, nanos: 300_000_000 };
    let request = AcquireSessionLeaseRequest { wait: Some(short), ..acquire("T1", "s", "waiter") };
    let begun = Instant::now();
    let mut second = f.client.clone();
    let (first, second) = tokio::join!(
        f.client.acquire_session_lease(request.clone()),
        second.acquire_session_lease(request),
    );
    assert!(begun.elapsed() >= Duration::from_millis(300));
    for answer in [first, second] {
        assert_eq!(held(answer.unwrap().into_inner()).holder, "holder");
    }
}

async fn a_repeated_request_does_not_wait_for_itself(mut f: Fixture) {
    let named = |holder: &str| AcquireSessionLeaseRequest {
        request_id: holder.to_owned(),
        ..waiting(holder)
    };
    let lease = take(&mut f.client, named("holder")).await;
    let _waiter = enqueue(&f.client, named("waiter"), 1).await;
    let again = take(&mut f.client, named("holder")).await;
    assert_eq!(again.lease_id, lease.lease_id);
}

async fn a_waiter_for_other_work_is_told_at_once(mut f: Fixture) {
    let bound = |epic: &str| AcquireSessionLeaseRequest { epic_id: epic.into(), ..waiting("a") };
    take(&mut f.client, bound("PROJ-50")).await;
    let refused = f.client.acquire_session_lease(bound("PROJ-51")).await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "EPIC_MISMATCH");
}

async fn a_waiter_is_told_when_another_binds_the_session_before_its_turn(mut f: Fixture) {
    let bound = |epic: &str| AcquireSessionLeaseRequest { epic_id: epic.into(), ..waiting(epic) };
    let lease = take(&mut f.client, acquire("T1", "s", "holder")).await;
    let first = enqueue(&f.client, bound("PROJ-50"), 1).await;
    let second = enqueue(&f.client, bound("PROJ-51"), 2).await;
    let third = enqueue(&f.client, bound("PROJ-50"), 3).await;
    give_back(&mut f.client, &lease).await;
    let lease = granted(first.await.unwrap().unwrap());
    let refused = second.await.unwrap().unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "EPIC_MISMATCH");
    // Whoever waits for the same work is not held up by that.
    give_back(&mut f.client, &lease).await;
    granted(third.await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_holders_session_is_taken_when_its_lease_ends() {
    let replica = Replica::start(&new_database().await, Clock::Store, &[]).await;
    let mut client = replica.client().await;
    let short = AcquireSessionLeaseRequest { ttl: seconds(1), ..acquire("T1", "s", "dead") };
    take(&mut client, short).await;
    let begun = Instant::now();
    take(&mut client, waiting("waiter")).await;
    let waited = begun.elapsed();
    assert!(waited < Duration::from_secs(2), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_leave_room_for_other_calls() {
    let url = new_database().await;
    let replica = Replica::start(&url, Clock::Store, &["--max-calls", "4"]).await;
    let mut client = replica.client().await;
    for held in ["s", "t"] {
        take(&mut client, acquire("T1", held, "holder")).await;
    }
    // Half of the calls may wait, whatever for.
    let _waiters = [
        enqueue(&client, waiting("waiter"), 1).await,
        enqueue(&client, waiting("waiter"), 2).await,
    ];
    let other = AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "t", "waiter") };
    let refused = client.acquire_session_lease(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
}

/// On a cluster as it comes: 100 connections, and room for 6,400 locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_leases_and_a_thousand_waiters_need_a_few_connections() {
    const LEASES: usize = 10_000;
    const QUEUES: usize = 16;
    const BACKENDS: &str = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'oncegate%'";
    let start = || Cluster::start_with(&["fsync=off"]);
    let cluster = tokio::task::spawn_blocking(start).await.unwrap();
    let url = cluster.url();
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(replica.client().await);
    }
    let long = |number: usize, holder: &str| AcquireSessionLeaseRequest {
        ttl: seconds(900),
        ..acquire("T1", &format!("s{number}"), holder)
    };
    let leases = stream::iter(0..LEASES)
        .map(|number| {
            let mut client = clients[number % 4].clone();
            async move { take(&mut client, long(number, "holder")).await }
        })
        .buffered(1_000)
        .collect::<Vec<SessionLease>>()
        .await;

    let waiters: Vec<Waiter> = (0..QUEUES * 64)
        .map(|number| {
            let mut client = clients[number % 4].clone();
            let request = long(number % QUEUES, "waiter");
            let request = AcquireSessionLeaseRequest { wait: seconds(600), ..request };
            tokio::spawn(async move {
                client.acquire_session_lease(request).await.map(tonic::Response::into_inner)
            })
        })
        .collect();
    let mut admin = AdminServiceClient::new(connect(replica.server.address()).await);
    loop {
        let stats = admin.get_stats(GetStatsRequest::default()).await.unwrap().into_inner();
        assert_eq!(stats.held_sessions, 10_000);
        if stats.waiters == 1_024 {
            break;
        }
    }
    let mut database = PgConnection::connect(&url).await.unwrap();
    let backends: i64 = sqlx::query_scalar(BACKENDS).fetch_one(&mut database).await.unwrap();
    assert!(backends <= 13, "{backends} connections");

    // Every queue still moves.
    for lease in &leases[..QUEUES] {
        give_back(&mut clients[0], lease).await;
    }
    let mut moved = waiters.into_iter().collect::<FuturesUnordered<_>>();
    for _ in 0..QUEUES {
        let next = moved.next().await.unwrap().unwrap().unwrap();
        assert_eq!(granted(next).holder, "waiter");
    }
}
