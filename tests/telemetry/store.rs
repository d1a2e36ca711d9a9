//! Metrics of the store and of the process.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use oncegate::store::Clock;
use sqlx::{Connection as _, Executor as _, PgConnection, query_scalar};
use tokio::time::sleep;
use tonic::Code;

use super::OPS;
use crate::{
    harness::{
        Fixture, Replica, execute, mark,
        metrics::{metric_is, metrics_page, value},
        postgres::new_database,
        proxy::{Line, Proxy},
        sqlite_url,
    },
    on_both_stores,
};

/// Sweeps all the time.
const SWEEPS: [&str; 4] = [OPS[0], OPS[1], "--sweep-interval", "50ms"];

/// Every event that a test marks has expired by then, and has been due for longer than an hour.
const LATER: Duration = Duration::from_hours(24 * 31);

on_both_stores!(a_sweep_that_falls_behind_is_seen, the_state_of_the_schema_and_the_clock_is_read);

#[expect(clippy::disallowed_methods, reason = "what a metric is compared with")]
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Rejects deletions of events, or does so no more.
async fn keep_events(url: &str, keep: bool) {
    let sql = match (url.starts_with("sqlite:"), keep) {
        (true, true) => {
            "CREATE TRIGGER keep BEFORE DELETE ON processed_events
             BEGIN SELECT RAISE(ABORT, 'kept'); END"
        }
        (true, false) => "DROP TRIGGER keep",
        (false, true) => {
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'kept'; END $$;
             CREATE TRIGGER keep BEFORE DELETE ON processed_events
             FOR EACH ROW WHEN (OLD.team_id <> '') EXECUTE FUNCTION keep()"
        }
        (false, false) => "DROP TRIGGER keep ON processed_events",
    };
    execute(url, sql).await;
}

async fn a_sweep_that_falls_behind_is_seen(f: Fixture) {
    let mut f = f.restarted(&SWEEPS).await;
    let begun = now();
    let swept = "oncegate_last_sweep_timestamp_seconds";
    metric_is(&f.replica, swept, |at| at >= begun && at <= now()).await;
    metric_is(&f.replica, "oncegate_sweep_lag_seconds", |lag| lag == 0.0).await;
    f.client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    keep_events(&f.url, true).await;
    f.clock.advance(LATER);
    metric_is(&f.replica, "oncegate_sweep_lag_seconds", |lag| lag > 3_600.0).await;
    let last = value(&metrics_page(&f.replica).await, swept).unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(value(&metrics_page(&f.replica).await, swept), Some(last), "it has failed since");
    if !f.url.starts_with("sqlite:") {
        let other = r#"oncegate_store_errors_total{class="other"}"#;
        metric_is(&f.replica, other, |errors| errors > 0.0).await;
    }

    keep_events(&f.url, false).await;
    metric_is(&f.replica, "oncegate_sweep_lag_seconds", |lag| lag == 0.0).await;
    metric_is(&f.replica, swept, |at| at > last).await;
}

async fn the_state_of_the_schema_and_the_clock_is_read(f: Fixture) {
    let f = f.restarted(&SWEEPS).await;
    let kind = if f.url.starts_with("sqlite:") { "sqlite" } else { "postgres" };
    let migrations = std::fs::read_dir(Path::new("migrations").join(kind)).unwrap();
    let names = migrations.map(|file| file.unwrap().file_name().into_string().unwrap());
    let newest: f64 = names.map(|name| name[..4].parse().unwrap()).fold(0.0, f64::max);
    metric_is(&f.replica, "oncegate_schema_version", |version| version == newest).await;
    // A database that a newer binary has migrated since.
    let newer = "INSERT INTO oncegate_migrations
            (version, description, success, checksum, execution_time, min_reader)
        SELECT 9999, description, success, checksum, execution_time, 1
        FROM oncegate_migrations WHERE version = 1";
    execute(&f.url, newer).await;
    metric_is(&f.replica, "oncegate_schema_version", |version| version == 9_999.0).await;

    // The store's clock is the test's.
    let offset = "oncegate_store_clock_offset_seconds";
    for ahead in [0_u32, 90] {
        let since = Duration::from_secs_f64(now() + f64::from(ahead));
        f.clock.set(i64::try_from(since.as_micros()).unwrap());
        let ahead = f64::from(ahead);
        metric_is(&f.replica, offset, |offset| (ahead - 30.0..ahead + 1.0).contains(&offset)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tables_of_postgresql_are_measured() {
    let mut f = Fixture::postgres().await.restarted(&SWEEPS).await;
    for table in ["processed_events", "oncegate_sessions", "oncegate_waiters", "oncegate_replicas"]
    {
        let bytes = format!(r#"oncegate_table_bytes{{table="{table}"}}"#);
        metric_is(&f.replica, &bytes, |bytes| bytes > 0.0).await;
        let dead = format!(r#"oncegate_table_dead_rows{{table="{table}"}}"#);
        metric_is(&f.replica, &dead, |rows| rows >= 0.0).await;
    }
    metric_is(&f.replica, "oncegate_xid_age", |age| age > 0.0).await;
    let vacuumed = r#"oncegate_table_last_autovacuum_timestamp_seconds{table="processed_events"}"#;
    assert_eq!(value(&metrics_page(&f.replica).await, vacuumed), None);

    // Rows that are gone are dead until the next vacuum.
    for event in 0..20 {
        f.client.mark_processed(mark("T1", &format!("Ev{event}"))).await.unwrap();
    }
    let dead = r#"oncegate_table_dead_rows{table="processed_events"}"#;
    assert!(value(&metrics_page(&f.replica).await, dead).unwrap() < 20.0);
    f.clock.advance(LATER);
    metric_is(&f.replica, dead, |rows| rows >= 20.0).await;

    // As large as PostgreSQL says, with its indexes.
    let mut database = PgConnection::connect(&f.url).await.unwrap();
    let grow = "INSERT INTO processed_events (team_id, event_id)
        SELECT 'T2', n::text FROM generate_series(1, 20000) AS n";
    database.execute(grow).await.unwrap();
    let size = "SELECT pg_total_relation_size('processed_events')::float8";
    let size: f64 = query_scalar(size).fetch_one(&mut database).await.unwrap();
    assert!(size > 2e6, "{size}");
    let bytes = r#"oncegate_table_bytes{table="processed_events"}"#;
    metric_is(&f.replica, bytes, |bytes| bytes >= size).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_lost_and_opened_again_are_counted() {
    let mut f = Fixture::postgres().await.restarted(&OPS).await;
    f.client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    let open = r#"oncegate_store_connections{state="open"}"#;
    // One for marks, one for the probe, and those of both listeners.
    let before = metric_is(&f.replica, open, |open| open >= 4.0).await;
    let page = metrics_page(&f.replica).await;
    assert_eq!(value(&page, "oncegate_store_reconnects_total"), Some(0.0));
    execute(
        &f.url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await;
    metric_is(&f.replica, "oncegate_store_reconnects_total", |count| count >= 1.0).await;
    let lost = r#"oncegate_store_errors_total{class="connection"}"#;
    metric_is(&f.replica, lost, |errors| errors >= 1.0).await;
    f.client.mark_processed(mark("T1", "Ev2")).await.unwrap();
    metric_is(&f.replica, open, |open| open == before).await;
    metric_is(&f.replica, r#"oncegate_store_connections{state="connecting"}"#, |n| n == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_that_callers_do_not_learn_are_counted() {
    let proxy = Proxy::start_for("oncegate", &new_database().await, Line::Open).await;
    let flags =
        [OPS[0], OPS[1], "--store-timeout", "1s", "--probe-interval", "1h", "--writers", "1"];
    let replica = Replica::start(&proxy.url, Clock::Store, &flags).await;
    let mut client = replica.client().await;
    client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    let unknown = "oncegate_store_unknown_outcomes_total";
    assert_eq!(value(&metrics_page(&replica).await, unknown), Some(0.0));
    proxy.set(Line::Mute);
    let error = client.mark_processed(mark("T1", "Ev2")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    metric_is(&replica, unknown, |count| count == 1.0).await;
    let timeouts = r#"oncegate_store_errors_total{class="timeout"}"#;
    let before = metric_is(&replica, timeouts, |n| n >= 1.0).await;

    // A caller that has gone is answered nothing.
    let proxy = Proxy::start_for("oncegate", &new_database().await, Line::Open).await;
    let replica = Replica::start(&proxy.url, Clock::Store, &flags).await;
    let mut client = replica.client().await;
    client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    proxy.set(Line::Mute);
    let gone = tokio::spawn(async move { client.mark_processed(mark("T1", "Ev2")).await });
    sleep(Duration::from_millis(300)).await;
    gone.abort();
    metric_is(&replica, timeouts, |n| n >= before).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(value(&metrics_page(&replica).await, unknown), Some(0.0));
}

/// What a trigger of the owner's raises is no conflict, which the server would retry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_classed_as_they_are_treated() {
    let mut f = Fixture::postgres().await.restarted(&OPS).await;
    execute(
        &f.url,
        "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE unique_violation; END $$;
        CREATE TRIGGER reject BEFORE INSERT ON processed_events
        FOR EACH ROW WHEN (NEW.team_id <> '') EXECUTE FUNCTION reject()",
    )
    .await;
    let error = f.client.mark_processed(mark("T1", "Ev1")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    metric_is(&f.replica, r#"oncegate_store_errors_total{class="other"}"#, |n| n >= 1.0).await;
    let page = metrics_page(&f.replica).await;
    assert_eq!(value(&page, r#"oncegate_store_errors_total{class="conflict"}"#), Some(0.0));
}

#[tokio::test]
async fn a_server_that_is_about_to_end_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let flags = [OPS[0], OPS[1], "--lame-duck", "60s"];
    let replica = Replica::start(&sqlite_url(&directory), Clock::Store, &flags).await;
    let address = replica.server.ops_address().unwrap();
    let page = || crate::harness::metrics::page(address, "/metrics");
    assert_eq!(value(&page().await, "oncegate_draining"), Some(0.0));
    let hurry = replica.server.hurry();
    let stopping = tokio::spawn(replica.server.stop());
    let follow = async {
        while value(&page().await, "oncegate_draining") != Some(1.0) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), follow).await.unwrap();
    hurry.cancel();
    stopping.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_process_and_its_build_are_described() {
    let f = Fixture::sqlite().await.restarted(&OPS).await;
    let page = metrics_page(&f.replica).await;
    let of = |name: &str| value(&page, name).unwrap_or_else(|| panic!("no {name} in\n{page}"));
    assert!(of("process_cpu_seconds_total") > 0.0);
    assert!(of("process_resident_memory_bytes") > 1e6);
    assert!((3.0..=of("process_max_fds")).contains(&of("process_open_fds")));
    let age = now() - of("process_start_time_seconds");
    assert!((-2.0..86_400.0).contains(&age), "{age}");
    let build =
        format!(r#"oncegate_build_info{{version="{}",revision=""#, env!("CARGO_PKG_VERSION"));
    assert!(page.contains(&build), "{page}");
}
