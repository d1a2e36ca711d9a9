//! How long calls take, how long they wait, and which streams are open.

use std::time::Duration;

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BeginTurnRequest, HoldSessionLeaseRequest,
    begin_turn_response::Outcome, turn_service_client::TurnServiceClient,
};
use tokio::time::sleep;

use super::{OPS, SERVICE};
use crate::{
    harness::{
        Fixture, acquire, connect, event, granted, held,
        metrics::{metric_is, metrics_page, value},
        release, seconds, session,
    },
    on_both_stores,
};

const TURNS: &str = "oncegate.v1.TurnService";
/// How long a caller waits here, at least.
const WAIT: Duration = Duration::from_secs(2);
/// How long the server may work meanwhile: less than it waits, on a slow machine too.
const WORK: f64 = 1.5;

on_both_stores!(
    a_wait_for_a_session_is_no_handling,
    a_wait_that_is_cancelled_is_a_wait,
    streams_are_counted_while_they_are_open
);

fn handling(service: &str, method: &str, part: &str) -> String {
    let labels = format!(r#"grpc_type="unary",grpc_service="{service}",grpc_method="{method}""#);
    format!("grpc_server_handling_seconds_{part}{{{labels}}}")
}

fn wait(service: &str, method: &str, part: &str) -> String {
    let labels = format!(r#"grpc_service="{service}",grpc_method="{method}""#);
    format!("oncegate_wait_seconds_{part}{{{labels}}}")
}

async fn a_wait_for_a_session_is_no_handling(f: Fixture) {
    let mut f = f.restarted(&OPS).await;
    let lease = f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
    let lease = granted(lease.into_inner());
    // The whole wait passes.
    let request = AcquireSessionLeaseRequest { wait: seconds(2), ..acquire("T1", "s", "b") };
    held(f.client.acquire_session_lease(request).await.unwrap().into_inner());
    metric_is(&f.replica, &handling(SERVICE, "AcquireSessionLease", "count"), |n| n == 2.0).await;
    let page = metrics_page(&f.replica).await;
    let waited = value(&page, &wait(SERVICE, "AcquireSessionLease", "sum")).unwrap();
    assert!(waited > 1.0, "{waited}");
    assert_eq!(value(&page, &wait(SERVICE, "AcquireSessionLease", "count")), Some(1.0));
    let handled = value(&page, &handling(SERVICE, "AcquireSessionLease", "sum")).unwrap();
    assert!(handled < WORK, "{handled}");

    // It ends when the session is free; so for a turn.
    let turn = BeginTurnRequest {
        event: event("T1", "Ev1"),
        session: session("T1", "s"),
        holder: "c".into(),
        wait: seconds(60),
        ..Default::default()
    };
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    let waiting = tokio::spawn(async move { turns.begin_turn(turn).await.unwrap().into_inner() });
    sleep(WAIT).await;
    f.client.release_session_lease(release(&lease)).await.unwrap();
    let begun = waiting.await.unwrap().outcome;
    assert!(matches!(begun, Some(Outcome::Granted(_))), "{begun:?}");
    metric_is(&f.replica, &handling(TURNS, "BeginTurn", "count"), |n| n == 1.0).await;
    let page = metrics_page(&f.replica).await;
    let waited = value(&page, &wait(TURNS, "BeginTurn", "sum")).unwrap();
    let handled = value(&page, &handling(TURNS, "BeginTurn", "sum")).unwrap();
    assert!(waited > 1.0 && handled < WORK, "{waited} {handled}");
    // A call that did not wait has no series.
    assert_eq!(value(&page, &wait(SERVICE, "ReleaseSessionLease", "count")), None);
}

async fn a_wait_that_is_cancelled_is_a_wait(f: Fixture) {
    let mut f = f.restarted(&OPS).await;
    granted(f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap().into_inner());
    let request = AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "s", "b") };
    let mut client = f.client.clone();
    let waiting = tokio::spawn(async move { client.acquire_session_lease(request).await });
    sleep(WAIT).await;
    waiting.abort();
    let handled = handling(SERVICE, "AcquireSessionLease", "count");
    metric_is(&f.replica, &handled, |calls| calls == 2.0).await;
    let page = metrics_page(&f.replica).await;
    let waited = value(&page, &wait(SERVICE, "AcquireSessionLease", "sum")).unwrap();
    let handled = value(&page, &handling(SERVICE, "AcquireSessionLease", "sum")).unwrap();
    assert!(waited > 1.0 && handled < WORK, "{waited} {handled}");
}

async fn streams_are_counted_while_they_are_open(f: Fixture) {
    let mut f = f.restarted(&OPS).await;
    let lease = f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
    let lease = granted(lease.into_inner());
    let hold = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "b".into(),
        wait: seconds(60),
        ..Default::default()
    };
    let mut events = f.client.hold_session_lease(hold).await.unwrap().into_inner();
    let open =
        format!(r#"oncegate_streams{{grpc_service="{SERVICE}",grpc_method="HoldSessionLease"}}"#);
    metric_is(&f.replica, &open, |open| open == 1.0).await;
    sleep(WAIT).await;
    f.client.release_session_lease(release(&lease)).await.unwrap();
    // Its wait is over, and it goes on.
    let waits = wait(SERVICE, "HoldSessionLease", "count");
    metric_is(&f.replica, &waits, |waits| waits == 1.0).await;
    let page = metrics_page(&f.replica).await;
    let waited = value(&page, &wait(SERVICE, "HoldSessionLease", "sum")).unwrap();
    assert!(waited > 1.0, "{waited}");
    assert_eq!(value(&page, &open), Some(1.0));
    events.message().await.unwrap();
    drop(events);
    metric_is(&f.replica, &open, |open| open == 0.0).await;
    let page = metrics_page(&f.replica).await;
    let of_streams = |line: &&str| {
        line.starts_with("grpc_server_handling_seconds") && line.contains("HoldSessionLease")
    };
    assert_eq!(page.lines().find(of_streams), None);
    assert!(page.contains(r#"grpc_method="HoldSessionLease",grpc_code="Canceled"} 1"#), "{page}");
}
