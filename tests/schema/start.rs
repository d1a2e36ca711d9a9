//! What a server does while its database is not ready for it.

use std::{cell::Cell, time::Duration};

use oncegate::{
    server::{self, Server},
    store::Clock,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::refusal;
use crate::harness::{
    Replica, config,
    copies::until,
    execute, mark,
    metrics::page,
    postgres::{Cluster, new_database},
};

/// Far more than a start takes that is bounded.
const BOUND: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_succeed_while_a_migration_waits_for_a_long_reader() {
    for tables in ["processed_events", "processed_events, oncegate_sessions, oncegate_migrations"] {
        let url = new_database().await;
        let replica = Replica::start(&url, Clock::Store, &[]).await;
        let mut client = replica.client().await;
        execute(&url, "DELETE FROM oncegate_migrations WHERE version = 9").await;
        let mut reader = PgConnection::connect(&url).await.unwrap();
        let read = format!("BEGIN; SELECT count(*) FROM {tables}");
        reader.execute(AssertSqlSafe(read)).await.unwrap();

        let done = Cell::new(false);
        let migration = async {
            let why = refusal(&url, &["--connect-timeout", "1s"]).await;
            done.set(true);
            why
        };
        let calls = async {
            let mut number = 0;
            while !done.get() || number == 0 {
                let event = format!("Ev{number}");
                assert!(client.mark_processed(mark("T", &event)).await.unwrap().into_inner().first);
                number += 1;
            }
        };
        let both = async { tokio::join!(migration, calls).0 };
        let why = timeout(BOUND, Box::pin(both)).await.expect("the start has a bound");
        assert!(why.contains("timed out waiting for a lock on the tables"), "{why}");

        // Without the reader the migration runs, and finds that it ran before.
        reader.execute("COMMIT").await.unwrap();
        let why = refusal(&url, &[]).await;
        assert!(why.contains("migration 9 failed") && why.contains("resumed_by"), "{why}");
    }
}

/// Autovacuum gives its lock up for a statement that waits longer than `deadlock_timeout`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_ends_an_autovacuum() {
    let settings = &["fsync=off", "autovacuum_naptime=1s"];
    let cluster = tokio::task::spawn_blocking(|| Cluster::start_with(settings)).await.unwrap();
    let url = cluster.url();
    let settings = config(&url, &["--connect-timeout", "15s"]).store;
    server::migrate(&settings).await.unwrap();
    // So slow that it would take minutes.
    execute(
        &url,
        "DELETE FROM oncegate_migrations WHERE version = 14;
        ALTER TABLE processed_events
            SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);
        INSERT INTO processed_events (team_id, event_id)
            SELECT 'T', n::text FROM generate_series(1, 150000) AS n;
        DELETE FROM processed_events",
    )
    .await;
    let vacuums = "SELECT count(*) > 0 FROM pg_stat_activity
        WHERE backend_type = 'autovacuum worker' AND query LIKE '%public.processed_events%'";
    until(&url, vacuums).await;
    server::migrate(&settings).await.unwrap();
    let applied = "SELECT count(*) = 1 FROM oncegate_migrations WHERE version = 14";
    until(&url, applied).await;
}

#[tokio::test]
async fn another_migration_is_waited_for_within_the_connect_timeout() {
    let url = new_database().await;
    let mut other = PgConnection::connect(&url).await.unwrap();
    let lock = "SELECT pg_advisory_lock(hashtextextended('oncegate migrations public', 0))";
    other.execute(lock).await.unwrap();
    let refused = refusal(&url, &["--connect-timeout", "100ms"]);
    let why = timeout(BOUND, refused).await.expect("the start has a bound");
    assert!(why.contains("timed out waiting for another migration"), "{why}");
    let settings = config(&url, &[]).store;
    let (migrated, ()) = tokio::join!(server::migrate(&settings), async {
        sleep(Duration::from_millis(100)).await;
        other.close().await.unwrap();
    });
    migrated.unwrap();
}

#[tokio::test]
async fn a_database_that_does_not_answer_ends_the_start() {
    let url = new_database().await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    let mut other = PgConnection::connect(&url).await.unwrap();
    other.execute("BEGIN; LOCK TABLE oncegate_migrations").await.unwrap();
    for migrate in ["true", "false"] {
        let flags =
            ["--migrate", migrate, "--store-timeout", "500ms", "--connect-timeout", "500ms"];
        let why = timeout(BOUND, refusal(&url, &flags)).await.expect("the start has a bound");
        assert!(why.contains("timed out waiting for the database"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_alive_and_not_ready_until_its_store_is_open() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let listen = address.to_string();
    let flags = ["--ops-listen", &listen, "--connect-timeout", "1h"];
    let start = Server::start(config("postgres://u@127.0.0.1:1/bots", &flags), Clock::Store);
    let probes = async {
        while TcpStream::connect(address).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(page(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(page(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        assert!(page(address, "/metrics").await.contains("oncegate_store_up 0"));
    };
    let start = Box::pin(start);
    tokio::select! {
        _ = start => panic!("it started, or ended"),
        answered = timeout(BOUND, probes) => answered.expect("it answers before its store is open"),
    }
}
