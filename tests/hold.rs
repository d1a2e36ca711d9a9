//! Leases that a call holds: for as long as it lives, and not a moment longer.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use oncegate::{
    config::Address,
    grpc::pb::{
        AcquireSessionLeaseRequest, CheckSessionLeaseRequest, ForceReleaseSessionLeaseRequest,
        HoldSessionLeaseRequest, HoldSessionLeaseResponse, SessionLease,
        admin_service_client::AdminServiceClient, hold_session_lease_response::News,
    },
    store::Clock,
};
use tempfile::tempdir;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        Client, Fixture, Replica, acquire, connect, granted, held, mark, postgres::new_database,
        process::Process, release, renew, seconds, session, sqlite_url,
    },
    on_all_stores,
};

on_all_stores!(
    a_lease_is_granted_and_renewed_while_the_call_lives,
    a_session_that_is_held_is_told_and_the_call_ends,
    callers_that_wait_are_told_their_place_as_they_move_up,
    a_call_that_is_dropped_gives_the_lease_to_the_next_at_once,
    a_lease_that_was_taken_away_is_told_as_lost,
    a_repeated_call_has_the_lease_when_the_first_ends,
    a_lease_that_is_found_again_is_renewed_in_time,
    what_is_asked_wrongly_is_refused,
);

type Events = Streaming<HoldSessionLeaseResponse>;

fn asking(holder: &str) -> HoldSessionLeaseRequest {
    HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: holder.into(),
        wait: seconds(60),
        ..Default::default()
    }
}

async fn hold(client: &Client, request: HoldSessionLeaseRequest) -> Events {
    client.clone().hold_session_lease(request).await.unwrap().into_inner()
}

async fn next(events: &mut Events) -> Result<Option<News>, Status> {
    let message = timeout(Duration::from_secs(30), events.message()).await.expect("an event");
    Ok(message?.and_then(|message| message.news))
}

async fn next_event(events: &mut Events) -> Option<News> {
    next(events).await.unwrap()
}

async fn lease(events: &mut Events) -> SessionLease {
    match next(events).await.unwrap() {
        Some(News::Granted(granted)) => granted.lease.unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn place(events: &mut Events) -> i32 {
    match next(events).await.unwrap() {
        Some(News::Queued(queued)) => queued.position,
        other => panic!("{other:?}"),
    }
}

/// Why nothing more comes.
async fn end(mut events: Events) -> Status {
    loop {
        match next(&mut events).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended as if nothing had happened"),
            Err(status) => return status,
        }
    }
}

async fn a_lease_is_granted_and_renewed_while_the_call_lives(mut f: Fixture) {
    let request = HoldSessionLeaseRequest {
        ttl: seconds(3),
        epic_id: "PROJ-50".into(),
        labels: [("run".to_owned(), "7".to_owned())].into(),
        ..asking("pod-1")
    };
    let mut events = hold(&f.client, request).await;
    let lease = lease(&mut events).await;
    assert_eq!((lease.holder.as_str(), lease.epic_id.as_str()), ("pod-1", "PROJ-50"));
    assert_eq!(lease.labels["run"], "7");
    assert!(!lease.lease_id.is_empty());
    // More than its TTL in all.
    for _ in 0..3 {
        f.clock.advance(Duration::from_millis(1_200));
        let Some(News::Renewed(renewed)) = next(&mut events).await.unwrap() else {
            panic!("not renewed")
        };
        let renewed = renewed.lease.unwrap();
        assert_eq!(renewed.remaining, seconds(3));
        assert_eq!(
            (renewed.lease_id, renewed.fencing_token),
            (lease.lease_id.clone(), lease.fencing_token)
        );
    }
    held(f.client.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap().into_inner());
}

async fn a_session_that_is_held_is_told_and_the_call_ends(mut f: Fixture) {
    let answer = f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
    granted(answer.into_inner());
    let mut events = hold(&f.client, HoldSessionLeaseRequest { wait: None, ..asking("b") }).await;
    match next(&mut events).await.unwrap() {
        Some(News::Held(held)) => assert_eq!(held.holder, "a"),
        other => panic!("{other:?}"),
    }
    assert_eq!(next(&mut events).await.unwrap(), None);
}

async fn callers_that_wait_are_told_their_place_as_they_move_up(mut f: Fixture) {
    let holder = acquire("T1", "s", "holder");
    let held = granted(f.client.acquire_session_lease(holder).await.unwrap().into_inner());
    let mut first = hold(&f.client, asking("first")).await;
    assert_eq!(place(&mut first).await, 1);
    let mut second = hold(&f.client, asking("second")).await;
    assert_eq!(place(&mut second).await, 2);
    let mut third = hold(&f.client, asking("third")).await;
    assert_eq!(place(&mut third).await, 3);
    // One that goes away is passed over.
    drop(second);
    assert_eq!(place(&mut third).await, 2);
    f.client.release_session_lease(release(&held)).await.unwrap();
    assert_eq!(lease(&mut first).await.holder, "first");
    assert_eq!(place(&mut third).await, 1);
    drop(first);
    assert_eq!(lease(&mut third).await.holder, "third");
}

async fn a_call_that_is_dropped_gives_the_lease_to_the_next_at_once(f: Fixture) {
    let mut last = 0;
    let mut events = hold(&f.client, asking("0")).await;
    for number in 1..20 {
        let lease = lease(&mut events).await;
        assert!(lease.fencing_token > last);
        last = lease.fencing_token;
        let mut waiter = hold(&f.client, asking(&number.to_string())).await;
        assert_eq!(place(&mut waiter).await, 1);
        events = waiter;
    }
}

async fn a_lease_that_was_taken_away_is_told_as_lost(f: Fixture) {
    let request = HoldSessionLeaseRequest { ttl: seconds(1), ..asking("a") };
    let mut events = hold(&f.client, request).await;
    lease(&mut events).await;
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    let force = ForceReleaseSessionLeaseRequest {
        session: session("T1", "s"),
        actor: "ops".into(),
        reason: "stuck".into(),
    };
    assert!(admin.force_release_session_lease(force).await.unwrap().into_inner().released);
    let lost = end(events).await;
    assert_eq!(lost.code(), Code::FailedPrecondition);
    assert_eq!(lost.get_details_error_info().unwrap().reason, "LEASE_LOST");
}

async fn a_repeated_call_has_the_lease_when_the_first_ends(f: Fixture) {
    let request = HoldSessionLeaseRequest { request_id: "run-7".into(), ..asking("a") };
    let mut first = hold(&f.client, request.clone()).await;
    let granted = lease(&mut first).await;
    let mut again = hold(&f.client, request).await;
    assert_eq!(lease(&mut again).await.lease_id, granted.lease_id);
    let mut next = hold(&f.client, asking("next")).await;
    assert_eq!(place(&mut next).await, 1);
    // The first has gone: nothing is to happen, and what comes after it has.
    drop(first);
    let mut other = hold(&f.client, HoldSessionLeaseRequest { wait: None, ..asking("b") }).await;
    assert!(matches!(next_event(&mut other).await, Some(News::Held(held)) if held.holder == "a"));
    let check = CheckSessionLeaseRequest {
        session: session("T1", "s"),
        fencing_token: granted.fencing_token,
    };
    assert!(f.client.clone().check_session_lease(check).await.unwrap().into_inner().current);
    // The repetition's end is the lease's.
    drop(again);
    assert_eq!(lease(&mut next).await.holder, "next");
}

async fn a_lease_that_is_found_again_is_renewed_in_time(f: Fixture) {
    // Nearly over when its call is repeated: less is left than a third of the TTL.
    let request =
        HoldSessionLeaseRequest { request_id: "run-7".into(), ttl: seconds(60), ..asking("a") };
    let asked = AcquireSessionLeaseRequest {
        request_id: "run-7".into(),
        ttl: seconds(60),
        ..acquire("T1", "s", "a")
    };
    f.client.clone().acquire_session_lease(asked).await.unwrap();
    f.clock.advance(Duration::from_secs(57));
    let mut events = hold(&f.client, request).await;
    assert_eq!(lease(&mut events).await.remaining, seconds(3));
    match next_event(&mut events).await {
        Some(News::Renewed(renewed)) => assert_eq!(renewed.lease.unwrap().remaining, seconds(60)),
        other => panic!("{other:?}"),
    }
}

async fn what_is_asked_wrongly_is_refused(f: Fixture) {
    for (request, field) in [
        (HoldSessionLeaseRequest { session: None, ..asking("a") }, "session"),
        (HoldSessionLeaseRequest { holder: String::new(), ..asking("a") }, "holder"),
        (HoldSessionLeaseRequest { wait: seconds(601), ..asking("a") }, "wait"),
        (HoldSessionLeaseRequest { ttl: seconds(901), ..asking("a") }, "ttl"),
    ] {
        let refused = f.client.clone().hold_session_lease(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let named = refused.get_details_bad_request().unwrap();
        assert_eq!(named.field_violations[0].field, field);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_leave_room_for_other_calls() {
    let directory = tempdir().unwrap();
    let url = sqlite_url(&directory);
    let replica = Replica::start(&url, Clock::Store, &["--max-calls", "4"]).await;
    let client = replica.client().await;
    let other = |id: &str| HoldSessionLeaseRequest { session: session("T1", id), ..asking("a") };
    let mut held = Vec::new();
    for id in ["s", "t"] {
        let mut events = hold(&client, other(id)).await;
        lease(&mut events).await;
        held.push(events);
    }
    let refused = end(hold(&client, other("u")).await).await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().is_some());
    assert!(client.clone().mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    held.pop();
    loop {
        let mut events = hold(&client, other("u")).await;
        if let Ok(Some(News::Granted(_))) = next(&mut events).await {
            return;
        }
    }
}

/// A process that holds the session until it is killed.
fn holder(address: &Address) -> Child {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_oncegate"))
        .env_clear()
        .args(["lease", "hold", "T1", "s", "--holder", "process", "--ttl", "1m"])
        .args(["--server", &address.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = holder.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    assert!(line.starts_with("granted: lease "), "{line}");
    holder
}

/// How long the next in the queue waits for what happens to the holder.
async fn handed_on(client: &Client, happens: impl FnOnce()) -> Duration {
    let mut events = hold(client, asking("next")).await;
    assert_eq!(place(&mut events).await, 1);
    happens();
    let begun = Instant::now();
    assert_eq!(lease(&mut events).await.holder, "next");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_killed_gives_way_in_well_under_a_second() {
    let directory = tempdir().unwrap();
    let replica = Replica::start(&sqlite_url(&directory), Clock::Store, &[]).await;
    let mut process = holder(replica.server.address());
    let client = replica.client().await;
    let waited = handed_on(&client, || process.kill().unwrap()).await;
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    process.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_frozen_gives_way_within_keepalives_time() {
    let directory = tempdir().unwrap();
    let flags = ["--keepalive-interval", "200ms", "--keepalive-timeout", "300ms"];
    let replica = Replica::start(&sqlite_url(&directory), Clock::Store, &flags).await;
    let mut process = holder(replica.server.address());
    let client = replica.client().await;
    let pid = process.id().to_string();
    let stop = || assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    let waited = handed_on(&client, stop).await;
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    process.kill().unwrap();
    process.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_the_replica_that_kept_it() {
    let url = new_database().await;
    let there = Replica::start(&url, Clock::Store, &[]).await;
    let mut there = there.client().await;

    let killed = Process::start(&url, &[]).await;
    let mut events = hold(&killed.client().await, asking("pod-1")).await;
    let kept = lease(&mut events).await;
    killed.kill();
    end(events).await;
    let renewed = there.renew_session_lease(renew(&kept)).await.unwrap().into_inner();
    assert_eq!(renewed.lease.unwrap().fencing_token, kept.fencing_token);
    assert!(there.release_session_lease(release(&kept)).await.unwrap().into_inner().released);

    let drained = Process::start(&url, &[]).await;
    let client = drained.client().await;
    let mut events = hold(&client, asking("pod-1")).await;
    let kept = lease(&mut events).await;
    let mut waits = hold(&client, asking("pod-2")).await;
    assert_eq!(place(&mut waits).await, 1);
    drained.terminate();
    for events in [events, waits] {
        let status = end(events).await;
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.get_details_retry_info().is_some());
    }
    assert!(drained.exit(Duration::from_secs(5)).await.success());
    assert!(there.renew_session_lease(renew(&kept)).await.is_ok());
    held(there.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap().into_inner());
}
