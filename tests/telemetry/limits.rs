//! Callers that are refused because too many wait or hold, and how many may.

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, HoldSessionLeaseRequest, hold_session_lease_response::News,
};
use tonic::Code;

use super::OPS;
use crate::{
    harness::{
        Fixture, acquire, granted, mark,
        metrics::{metric_is, metrics_page, value},
        seconds, session,
    },
    on_both_stores,
};

const FLAGS: [&str; 6] = [OPS[0], OPS[1], "--max-calls", "8", "--queue-capacity", "2048"];

on_both_stores!(refused_waiters_and_streams_are_counted_and_limits_shown);

async fn refused_waiters_and_streams_are_counted_and_limits_shown(f: Fixture) {
    let mut f = f.restarted(&FLAGS).await;
    let page = metrics_page(&f.replica).await;
    for (limit, is) in [
        ("oncegate_session_waiters_limit", 4.0),
        ("oncegate_calls_limit", 8.0),
        ("oncegate_connections_limit", 10_000.0),
        (r#"oncegate_lane_queue_capacity{lane="sweep"}"#, 64.0),
        (r#"oncegate_shed_total{reason="waiters"}"#, 0.0),
        (r#"oncegate_shed_total{reason="streams"}"#, 0.0),
    ] {
        assert_eq!(value(&page, limit), Some(is), "{limit} in\n{page}");
    }
    // One for each writer.
    let capacity = value(&page, r#"oncegate_lane_queue_capacity{lane="mark"}"#).unwrap();
    let writers = if f.url.starts_with("sqlite:") { 1.0 } else { 2.0 };
    assert_eq!(capacity, writers * 2_048.0);
    f.client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    metric_is(&f.replica, r#"oncegate_lane_queue_depth{lane="mark"}"#, |depth| depth == 0.0).await;

    // Of one team, three quarters of the places are the most.
    granted(f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap().into_inner());
    let request =
        |team: &str| AcquireSessionLeaseRequest { wait: seconds(60), ..acquire(team, "s", "b") };
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let (mut client, request) = (f.client.clone(), request("T1"));
        waiting.push(tokio::spawn(async move { client.acquire_session_lease(request).await }));
    }
    metric_is(&f.replica, "oncegate_session_waiters", |waiters| waiters == 3.0).await;
    let error = f.client.acquire_session_lease(request("T1")).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    metric_is(&f.replica, r#"oncegate_shed_total{reason="waiters"}"#, |count| count == 1.0).await;
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    metric_is(&f.replica, "oncegate_session_waiters", |waiters| waiters == 0.0).await;

    let mut held = Vec::new();
    for number in 0..3 {
        let mut events = f.client.hold_session_lease(hold(number)).await.unwrap().into_inner();
        while !matches!(events.message().await.unwrap().unwrap().news, Some(News::Granted(_))) {}
        held.push(events);
    }
    let mut events = f.client.hold_session_lease(hold(3)).await.unwrap().into_inner();
    let error = events.message().await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    metric_is(&f.replica, r#"oncegate_shed_total{reason="streams"}"#, |count| count == 1.0).await;
}

fn hold(number: usize) -> HoldSessionLeaseRequest {
    HoldSessionLeaseRequest {
        session: session("T1", &format!("held-{number}")),
        holder: "h".into(),
        ..Default::default()
    }
}
