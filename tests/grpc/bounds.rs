//! Load that is shed, and time that is bounded.

use std::time::Duration;

use futures_util::future::join_all;
use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, IsProcessedRequest, ReleaseSessionLeaseRequest,
};
use tokio::time::Instant;
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use super::SERVICE;
use crate::{
    harness::{
        Fixture, Replica, acquire, connect, event, granted, held, mark, metrics::metric, seconds,
        session,
    },
    on_both_stores,
};

#[tokio::test]
async fn calls_beyond_the_most_are_shed_at_once_and_health_still_answers() {
    let mut f = Fixture::postgres().await;
    let flags = ["--max-calls", "1", "--ops-listen", "127.0.0.1:0"];
    let full = Replica::start(&f.url, f.clock.store_clock(), &flags).await;
    let mut caller = full.client().await;

    let lease = f.client.acquire_session_lease(acquire("T", "s", "a")).await.unwrap();
    let lease = granted(lease.into_inner());
    let mut waiter = full.client().await;
    let waiting = tokio::spawn(async move {
        let request = AcquireSessionLeaseRequest { wait: seconds(600), ..acquire("T", "s", "b") };
        waiter.acquire_session_lease(request).await
    });
    metric(&full, "oncegate_session_waiters 1").await;

    let refused = caller.mark_processed(mark("T", "x")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let after = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(after > Duration::ZERO);
    metric(&full, r#"oncegate_shed_total{reason="calls"} 1"#).await;
    let ask = IsProcessedRequest { event: event("T", "x"), ..Default::default() };
    assert!(!f.client.is_processed(ask).await.unwrap().into_inner().processed);
    let mut health = HealthClient::new(connect(full.server.address()).await);
    let check = health.check(HealthCheckRequest { service: SERVICE.into() }).await.unwrap();
    assert_eq!(check.into_inner().status(), ServingStatus::Serving);

    // The waiter was none the worse for it, and leaves its room to the next.
    let release =
        ReleaseSessionLeaseRequest { session: session("T", "s"), lease_id: lease.lease_id };
    f.client.release_session_lease(release).await.unwrap();
    granted(waiting.await.unwrap().unwrap().into_inner());
    let call =
        format!(r#"grpc_type="unary",grpc_service="{SERVICE}",grpc_method="AcquireSessionLease""#);
    metric(&full, &format!(r#"grpc_server_handled_total{{{call},grpc_code="OK"}} 1"#)).await;
    assert!(caller.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);
}

on_both_stores!(a_wait_ends_before_the_callers_deadline_does);

async fn a_wait_ends_before_the_callers_deadline_does(mut f: Fixture) {
    const DEADLINE: Duration = Duration::from_secs(2);

    let lease = f.client.acquire_session_lease(acquire("T", "s", "a")).await.unwrap();
    granted(lease.into_inner());
    // The first in the queue, and one behind it.
    let waits = ["b", "c"].map(async |holder| {
        let wait = AcquireSessionLeaseRequest { wait: seconds(600), ..acquire("T", "s", holder) };
        let mut request = Request::new(wait);
        request.set_timeout(DEADLINE);
        let begun = Instant::now();
        let answer = f.client.clone().acquire_session_lease(request).await;
        (answer, begun.elapsed())
    });
    for (answer, took) in join_all(waits).await {
        let held = held(answer.expect("an answer, not a deadline exceeded").into_inner());
        assert_eq!(held.holder, "a");
        assert!(took < DEADLINE, "{took:?}");
        assert!(took > DEADLINE / 2, "it hardly waited: {took:?}");
    }
}
