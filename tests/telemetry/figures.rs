//! What the page shows of the store while it cannot be read, and of sweeps that others do.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oncegate::{grpc::pb::CleanupRequest, store::Clock};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::time::sleep;

use super::OPS;
use crate::harness::{
    Fixture, Replica, execute, mark,
    metrics::{metric_is, metric_is_gone, metrics_page, value},
    postgres::new_database,
    proxy::{Line, Proxy},
};

const LAST_SWEEP: &str = "oncegate_last_sweep_timestamp_seconds";
const SWEEPS: [&str; 4] = [OPS[0], OPS[1], "--sweep-interval", "50ms"];
/// What a sweep reads.
const FIGURES: [&str; 7] = [
    "oncegate_leases_held",
    "oncegate_store_clock_offset_seconds",
    "oncegate_sweep_lag_seconds",
    r#"oncegate_table_bytes{table="processed_events"}"#,
    r#"oncegate_table_dead_rows{table="processed_events"}"#,
    "oncegate_schema_version",
    "oncegate_xid_age",
];

#[expect(clippy::disallowed_methods, reason = "what a metric is compared with")]
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_that_cannot_be_read_are_not_shown() {
    let proxy = Proxy::start_for("oncegate", &new_database().await, Line::Open).await;
    let replica = Replica::start(&proxy.url, Clock::Store, &SWEEPS).await;
    for figure in FIGURES {
        metric_is(&replica, figure, |_| true).await;
    }
    proxy.set(Line::Cut);
    for figure in FIGURES {
        metric_is_gone(&replica, figure).await;
    }
    proxy.set(Line::Open);
    for figure in FIGURES {
        metric_is(&replica, figure, |_| true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_figure_that_cannot_be_read_is_missing_alone() {
    let f = Fixture::postgres().await.restarted(&SWEEPS).await;
    metric_is(&f.replica, "oncegate_schema_version", |_| true).await;
    execute(&f.url, "ALTER TABLE oncegate_migrations RENAME TO moved").await;
    metric_is_gone(&f.replica, "oncegate_schema_version").await;
    // Those that are read after it, too.
    sleep(Duration::from_millis(300)).await;
    let page = metrics_page(&f.replica).await;
    for figure in FIGURES.iter().filter(|figure| **figure != "oncegate_schema_version") {
        assert!(value(&page, figure).is_some(), "no {figure} in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_that_another_replica_does_is_none_of_this_one() {
    let begun = now();
    let mut f = Fixture::postgres().await.restarted(&SWEEPS).await;
    metric_is(&f.replica, LAST_SWEEP, |at| at > begun + 0.05).await;
    // As the replica that sweeps holds it.
    let mut other = PgConnection::connect(&f.url).await.unwrap();
    other.execute("SELECT pg_advisory_lock(x'6f6e636567617465'::bigint)").await.unwrap();
    f.client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    let last = value(&metrics_page(&f.replica).await, LAST_SWEEP).unwrap();
    sleep(Duration::from_millis(500)).await;
    let page = metrics_page(&f.replica).await;
    assert_eq!(value(&page, LAST_SWEEP), Some(last), "another one sweeps");
    other.close().await.unwrap();
    metric_is(&f.replica, LAST_SWEEP, |at| at > last).await;
}

#[tokio::test]
async fn before_its_first_sweep_a_replica_counts_from_its_start() {
    let begun = now();
    let flags = [OPS[0], OPS[1], "--sweep-interval", "10h"];
    let f = Fixture::sqlite().await.restarted(&flags).await;
    let page = metrics_page(&f.replica).await;
    let last = value(&page, LAST_SWEEP).unwrap_or_else(|| panic!("none in\n{page}"));
    assert!((begun..=now()).contains(&last), "{last}");
    assert_eq!(value(&page, "oncegate_sweep_interval_seconds"), Some(36_000.0));
}

/// A wait for the connection is no part of reading the clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_is_read_beside_long_scans() {
    let f = Fixture::postgres().await.restarted(&SWEEPS).await;
    let offset = "oncegate_store_clock_offset_seconds";
    metric_is(&f.replica, offset, |_| true).await;
    execute(
        &f.url,
        "CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
        CREATE TRIGGER delay AFTER DELETE ON processed_events
        FOR EACH STATEMENT EXECUTE FUNCTION delay();
        CREATE TRIGGER delay AFTER DELETE ON oncegate_sessions
        FOR EACH STATEMENT EXECUTE FUNCTION delay()",
    )
    .await;
    // Each sweep and each of these calls has the connection for longer than a reading may take.
    let mut calls = Vec::new();
    for _ in 0..2 {
        let mut client = f.client.clone();
        calls.push(tokio::spawn(async move {
            loop {
                client.cleanup(CleanupRequest::default()).await.unwrap();
            }
        }));
    }
    sleep(Duration::from_secs(2)).await;
    let ahead = Duration::from_secs_f64(now() + 90.0);
    f.clock.set(i64::try_from(ahead.as_micros()).unwrap());
    metric_is(&f.replica, offset, |offset| (60.0..91.0).contains(&offset)).await;
    assert!(calls.iter().all(|call| !call.is_finished()), "a call has failed");
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}
