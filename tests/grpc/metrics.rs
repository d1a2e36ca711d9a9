//! What Prometheus is told.

use std::{collections::HashMap, time::Duration};

use oncegate::{
    grpc::pb::{
        AcquireSessionLeaseRequest, BatchMarkProcessedRequest, BeginTurnRequest, CleanupRequest,
        FinishTurnRequest, HoldSessionLeaseRequest, MarkProcessedRequest,
        ReleaseSessionLeaseRequest, Turn, TurnOutcome, begin_turn_response::Outcome,
        turn_service_client::TurnServiceClient,
    },
    store::Clock,
};
use tonic::transport::Channel;

use super::{SERVICE, channel, refusal};
use crate::{
    harness::{
        Fixture, Replica, acquire, connect, event, granted, held, mark,
        metrics::{metric, metric_is, metrics_page},
        postgres::Cluster,
        seconds, session,
    },
    on_both_stores,
};

/// Whatever a caller chooses begins with this, so that it can be looked for.
const CHOSEN: &str = "chosen-by-caller";

fn chosen(what: &str) -> String {
    format!("{CHOSEN}-{what}")
}

/// Calls every method, with known outcomes.
async fn exercise(f: &mut Fixture) {
    let (team, session_id) = (chosen("team"), chosen("session"));
    let named = |id: &str| MarkProcessedRequest {
        request_id: chosen("request"),
        ..mark(&team, &chosen(id))
    };
    for first in [true, true] {
        let marked = f.client.mark_processed(named("event")).await.unwrap();
        assert_eq!(marked.into_inner().first, first, "the same attempt");
    }
    let another = mark(&team, &chosen("event"));
    assert!(!f.client.mark_processed(another).await.unwrap().into_inner().first);
    f.client.mark_processed(mark(&team, "")).await.unwrap_err();
    let requests = vec![named("b1"), named("b2"), mark(&team, ""), mark(&team, &chosen("b1"))];
    f.client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await.unwrap();

    let labels = HashMap::from([(chosen("label"), chosen("value"))]);
    let request = AcquireSessionLeaseRequest {
        epic_id: chosen("epic"),
        labels,
        ..acquire(&team, &session_id, &chosen("holder"))
    };
    let lease = f.client.acquire_session_lease(request.clone()).await.unwrap();
    let lease = granted(lease.into_inner());
    for _ in 0..2 {
        held(f.client.acquire_session_lease(request.clone()).await.unwrap().into_inner());
    }
    // A stream that waits, and goes away.
    let hold = HoldSessionLeaseRequest {
        session: session(&team, &session_id),
        holder: chosen("other-holder"),
        epic_id: chosen("epic"),
        wait: seconds(60),
        ..Default::default()
    };
    let mut events = f.client.hold_session_lease(hold).await.unwrap().into_inner();
    events.message().await.unwrap();
    drop(events);
    let release = ReleaseSessionLeaseRequest {
        session: session(&team, &session_id),
        lease_id: lease.lease_id,
    };
    f.client.release_session_lease(release).await.unwrap();
    let all = CleanupRequest { team_id: team, older_than: seconds(0), ..Default::default() };
    f.client.cleanup(all).await.unwrap();
    let unknown = format!("/{SERVICE}/{}", chosen("method"));
    refusal(&channel(f).await, &unknown, &[]).await;
}

#[tokio::test]
async fn calls_are_counted_by_method_and_outcome_and_by_nothing_a_caller_chose() {
    let mut f = Fixture::postgres().await;
    let flags = ["--ops-listen", "127.0.0.1:0", "--sweep-interval", "50ms"];
    f.replica = Replica::start(&f.url, f.clock.store_clock(), &flags).await;
    f.client = f.replica.client().await;
    exercise(&mut f).await;
    // What is read of the tables is on the page as well.
    metric_is(&f.replica, "oncegate_xid_age", |age| age > 0.0).await;
    let hold = format!(r#"{{grpc_service="{SERVICE}",grpc_method="HoldSessionLease"}}"#);
    metric(&f.replica, &format!("oncegate_streams{hold} 0")).await;
    metric(&f.replica, &format!("oncegate_wait_seconds_count{hold} 1")).await;

    let call = |service: &str, method: &str| {
        format!(r#"grpc_type="unary",grpc_service="{service}",grpc_method="{method}""#)
    };
    for (method, ended) in [
        ("MarkProcessed", [("OK", 3), ("InvalidArgument", 1)].as_slice()),
        ("BatchMarkProcessed", &[("OK", 1)]),
        ("AcquireSessionLease", &[("OK", 3)]),
        ("ReleaseSessionLease", &[("OK", 1)]),
        ("Cleanup", &[("OK", 1)]),
    ] {
        let call = call(SERVICE, method);
        let begun: i32 = ended.iter().map(|(_, count)| count).sum();
        metric(&f.replica, &format!("grpc_server_started_total{{{call}}} {begun}")).await;
        // Those of alerts are there before the first error: Prometheus does not count the value with which a
        // series appears.
        let none = ["DeadlineExceeded", "FailedPrecondition", "Internal", "Unavailable"];
        for (code, count) in ended.iter().chain(&none.map(|code| (code, 0))) {
            let line = format!(r#"grpc_server_handled_total{{{call},grpc_code="{code}"}} {count}"#);
            metric(&f.replica, &line).await;
        }
        metric(&f.replica, &format!("grpc_server_handling_seconds_count{{{call}}} {begun}")).await;
    }
    let unknown = call("unknown", "unknown");
    let line = format!(r#"grpc_server_handled_total{{{unknown},grpc_code="Unimplemented"}} 1"#);
    metric(&f.replica, &line).await;

    let page = metrics_page(&f.replica).await;
    let lines: Vec<&str> = page.lines().collect();
    for line in [
        r#"oncegate_marks_total{outcome="first"} 4"#,
        r#"oncegate_marks_total{outcome="duplicate"} 2"#,
        r#"oncegate_acquires_total{outcome="granted"} 1"#,
        r#"oncegate_acquires_total{outcome="held"} 2"#,
        r#"oncegate_swept_rows_total{kind="event"} 3"#,
        r#"oncegate_swept_rows_total{kind="session"} 0"#,
        r#"oncegate_lane_queue_depth{lane="mark"} 0"#,
        "oncegate_store_up 1",
        "oncegate_session_waiters 0",
        r#"oncegate_shed_total{reason="calls"} 0"#,
    ] {
        assert!(lines.contains(&line), "no {line} in\n{page}");
    }
    assert!(!page.contains(CHOSEN), "a caller's text in\n{page}");
    for name in
        ["oncegate_table_bytes{", "process_cpu_seconds_total ", "oncegate_lane_batch_rows_sum{"]
    {
        assert!(page.contains(name), "no {name} in\n{page}");
    }
}

#[tokio::test]
async fn metrics_are_served_nowhere_unless_asked_for() {
    let f = Fixture::sqlite().await;
    assert_eq!(f.replica.server.ops_address(), None);
}

on_both_stores!(turns_are_counted_by_what_became_of_them);

/// Begins a turn of `event` that may be claimed twice, for a minute.
async fn begin(turns: &mut TurnServiceClient<Channel>, id: &str, digest: &str) -> Option<Turn> {
    let request = BeginTurnRequest {
        event: event("T1", id),
        session: session("T1", "s"),
        holder: "run".into(),
        claim_ttl: seconds(60),
        max_attempts: 2,
        payload_digest: digest.into(),
        ..Default::default()
    };
    match turns.begin_turn(request).await.ok()?.into_inner().outcome? {
        Outcome::Granted(granted) => granted.turn,
        _ => None,
    }
}

async fn turns_are_counted_by_what_became_of_them(f: Fixture) {
    let f = f.restarted(&["--ops-listen", "127.0.0.1:0"]).await;
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    let end = |turn: Turn, outcome: TurnOutcome| FinishTurnRequest {
        turn_id: turn.turn_id,
        outcome: outcome.into(),
        ..Default::default()
    };
    let stale = begin(&mut turns, "lapses", "").await.unwrap();
    f.clock.advance(Duration::from_mins(2));
    turns.finish_turn(end(stale, TurnOutcome::Succeeded)).await.unwrap_err();
    begin(&mut turns, "lapses", "").await.unwrap();
    f.clock.advance(Duration::from_mins(2));
    assert!(begin(&mut turns, "lapses", "").await.is_none());
    let failing = begin(&mut turns, "handled", "one").await.unwrap();
    turns.finish_turn(end(failing, TurnOutcome::Failed)).await.unwrap();
    let handling = begin(&mut turns, "handled", "one").await.unwrap();
    assert!(begin(&mut turns, "handled", "one").await.is_none());
    assert!(begin(&mut turns, "other", "").await.is_none());
    turns.finish_turn(end(handling, TurnOutcome::Succeeded)).await.unwrap();
    let refusing = begin(&mut turns, "refused", "").await.unwrap();
    turns.finish_turn(end(refusing, TurnOutcome::Rejected)).await.unwrap();
    for digest in ["one", "two"] {
        assert!(begin(&mut turns, "handled", digest).await.is_none());
    }
    for (outcome, count) in
        [("granted", 5), ("duplicate", 2), ("in_progress", 1), ("busy", 1), ("mismatch", 1)]
    {
        let line = format!(r#"oncegate_turns_begun_total{{outcome="{outcome}"}} {count}"#);
        metric(&f.replica, &line).await;
    }
    for (outcome, count) in [
        ("succeeded", 1),
        ("rejected", 1),
        ("failed", 1),
        ("gave_up", 1),
        ("lost", 1),
        ("lapsed", 2),
    ] {
        let line = format!(r#"oncegate_turns_finished_total{{outcome="{outcome}"}} {count}"#);
        metric(&f.replica, &line).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_a_crash_can_empty_is_counted() {
    let ops = ["--ops-listen", "127.0.0.1:0"];
    let f = Fixture::sqlite().await.restarted(&ops).await;
    metric(&f.replica, "oncegate_store_durable{reason=\"none\"} 1").await;
    let f = Fixture::memory().await.restarted(&ops).await;
    metric(&f.replica, "oncegate_store_durable{reason=\"memory\"} 0").await;
    let cluster =
        tokio::task::spawn_blocking(|| Cluster::start_with(&["fsync=off"])).await.unwrap();
    let replica = Replica::start(&cluster.url(), Clock::Store, &ops).await;
    metric(&replica, "oncegate_store_durable{reason=\"fsync\"} 0").await;
}
