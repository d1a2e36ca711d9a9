//! The schema and its tables.

use std::time::Duration;

use oncegate::{
    domain::FencingToken,
    server,
    store::{Clock, Fence},
};
use sqlx::{Connection as _, Executor as _, PgConnection, query_as};
use tempfile::tempdir;

use super::{doctor, migrate};
use crate::harness::{
    Replica, config, execute,
    postgres::{Cluster, new_database},
    sqlite_url,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_behind_or_ahead_is_found_on_both_stores() {
    let directory = tempdir().unwrap();
    let file = sqlite_url(&directory);
    Replica::start(&file, Clock::Store, &[]).await.server.stop().await.unwrap();
    for url in [new_database().await, file] {
        if url.starts_with("postgres") {
            let none = ["no tables of oncegate", "oncegate migrate"];
            doctor(&url, &[]).await.has("schema", "warning", &none);
            doctor(&url, &["--migrate", "false"]).await.has("schema", "failed", &none);
            migrate(&url).await;
        }
        doctor(&url, &["--migrate", "false"]).await.has("schema", "ok", &["up to date"]);

        execute(&url, "DELETE FROM oncegate_migrations WHERE version >= 13").await;
        let behind = ["behind: migrations [13, 14] are missing", "oncegate migrate"];
        let diagnosis = doctor(&url, &[]).await;
        diagnosis.has("schema", "warning", &behind);
        diagnosis.has("writable", "warning", &["not checked"]);
        doctor(&url, &["--migrate", "false"]).await.has("schema", "failed", &behind);
        migrate(&url).await;

        let newer = "INSERT INTO oncegate_migrations
            (version, description, success, checksum, execution_time, min_reader)
            VALUES (1001, 'newer', true, 'x', 0, ";
        execute(&url, &format!("{newer} 1)")).await;
        let diagnosis = doctor(&url, &[]).await;
        diagnosis.has("schema", "warning", &["ahead: migration 1001"]);
        diagnosis.has("writable", "ok", &[]);
        execute(&url, "UPDATE oncegate_migrations SET min_reader = 1001 WHERE version = 1001")
            .await;
        doctor(&url, &[]).await.has("schema", "failed", &["older than its database", "1001"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_a_server_would_make_is_no_failure() {
    let url = new_database().await;
    let named = ["--database-schema", "bots"];
    let diagnosis = doctor(&url, &named).await;
    diagnosis.has("schema", "warning", &["the schema \"bots\" does not exist", "oncegate migrate"]);
    diagnosis.has("privileges", "ok", &["may make the schema"]);
    // The server of the tests has `fsync` off.
    let failed = diagnosis.printed.lines().filter(|line| line.contains(r#""result":"failed""#));
    assert!(failed.clone().all(|line| line.contains("durability")), "{}", diagnosis.printed);
    let checked = [named.as_slice(), &["--migrate", "false"]].concat();
    doctor(&url, &checked).await.has(
        "schema",
        "failed",
        &["has no schema that exists", "oncegate migrate"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_database_of_the_server_decides_the_age() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start_with(&["fsync=off"])).await;
    let cluster = cluster.unwrap();
    let url = cluster.url();
    let mut database = PgConnection::connect(&url).await.unwrap();
    let call = "DO $$ BEGIN FOR n IN 1..3000 LOOP PERFORM txid_current(); COMMIT; END LOOP; END $$";
    database.execute(call).await.unwrap();
    // Of this database alone it is young.
    database.execute("VACUUM (FREEZE)").await.unwrap();
    let ages = "SELECT min(age(datfrozenxid))::bigint, max(age(datfrozenxid))::bigint
        FROM pg_database";
    let (youngest, oldest): (i64, i64) = query_as(ages).fetch_one(&mut database).await.unwrap();
    assert!(youngest < 1_000 && oldest >= 3_000, "{youngest} {oldest}");
    let found = [&*format!("{oldest} since"), "database \"template", "multixact"];
    doctor(&url, &[]).await.has("transaction ids", "ok", &found);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_rows_that_vacuum_does_not_remove_are_found() {
    let url = new_database().await;
    migrate(&url).await;
    doctor(&url, &[]).await.has("vacuum", "ok", &["dead rows"]);
    execute(
        &url,
        "ALTER TABLE processed_events SET (autovacuum_enabled = off);
        INSERT INTO processed_events (team_id, event_id)
            SELECT 'T', n::text FROM generate_series(1, 110000) AS n;
        DELETE FROM processed_events",
    )
    .await;
    let late = ["processed_events 1100", "run VACUUM"];
    doctor(&url, &[]).await.has("vacuum", "warning", &late);
    execute(&url, "VACUUM processed_events").await;
    let off = ["autovacuum is off for processed_events", "RESET (autovacuum_enabled)"];
    doctor(&url, &[]).await.has("vacuum", "warning", &off);
    execute(&url, "ALTER TABLE processed_events RESET (autovacuum_enabled)").await;
    doctor(&url, &[]).await.has("vacuum", "ok", &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_ahead_of_the_clock_are_found() {
    let directory = tempdir().unwrap();
    for url in [new_database().await, sqlite_url(&directory)] {
        let settings = config(&url, &[]).store;
        migrate(&url).await;
        doctor(&url, &[]).await.has("fence", "ok", &["no fencing token is ahead"]);
        let Fence { floor, now, .. } = server::fence(&settings).await.unwrap();
        assert!(floor.0 < now.as_micros());
        let ahead = FencingToken(now.plus(Duration::from_hours(2)).as_micros());
        server::raise_fence(&settings, ahead).await.unwrap();
        let parts = ["1h 59m", "ahead of the clock", "oncegate fence raise"];
        doctor(&url, &[]).await.has("fence", "warning", &parts);
        execute(&url, "DELETE FROM oncegate_fence").await;
        let parts = ["oncegate_fence has no row", "INSERT INTO oncegate_fence"];
        doctor(&url, &[]).await.has("fence", "failed", &parts);
    }
}
