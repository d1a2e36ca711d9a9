//! Fencing tokens go on above those of a database that drew them from a sequence.

use std::{fs, path::Path};

use oncegate::server;
use sqlx::{Connection as _, PgConnection, SqliteConnection, migrate::Migrator};
use tempfile::{TempDir, tempdir};

use crate::harness::{
    Replica, TestClock, acquire, config, execute, granted, postgres::new_database, sqlite_url,
};

/// The migrations of a store, up to the last that drew tokens from a sequence.
async fn older(store: &str) -> (TempDir, Migrator) {
    let files = tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(store);
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        if *entry.file_name() < *"0008" {
            fs::copy(entry.path(), files.path().join(entry.file_name())).unwrap();
        }
    }
    let mut migrator = Migrator::new(files.path()).await.unwrap();
    migrator.dangerous_set_table_name("oncegate_migrations");
    (files, migrator)
}

/// The token of the next grant in a session, once the schema is up to date.
async fn next_tokens(url: &str, clock: &TestClock) -> [i64; 2] {
    server::migrate(&config(url, &[]).store).await.unwrap();
    let replica = Replica::start(url, clock.store_clock(), &[]).await;
    let mut client = replica.client().await;
    let mut tokens = [0; 2];
    for (token, id) in tokens.iter_mut().zip(["known", "swept"]) {
        let answer = client.acquire_session_lease(acquire("T1", id, "a")).await.unwrap();
        *token = granted(answer.into_inner()).fencing_token;
    }
    replica.server.stop().await.unwrap();
    tokens
}

/// What the sequence drew last, and the highest token of a row; above the clock too.
const DRAWN: [(i64, i64); 4] =
    [(1, 1), (5_000, 41), (3, 5_001), (3_000_000_000_000_000, 3_000_000_000_000_007)];

fn assert_above([known, swept]: [i64; 2], (drawn, row): (i64, i64), clock: &TestClock) {
    let last = drawn.max(row);
    assert!(known > last && swept > last, "{known}, {swept} after {drawn} and {row}");
    assert!(known >= clock.micros() && swept >= clock.micros());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_go_on_above_those_of_a_sequence() {
    for (drawn, row) in DRAWN {
        let url = new_database().await;
        let (_files, migrator) = older("postgres").await;
        migrator.run(&mut PgConnection::connect(&url).await.unwrap()).await.unwrap();
        let rows = format!(
            "SELECT setval('oncegate_fencing_tokens', {drawn});
            INSERT INTO oncegate_sessions (team_id, session_id, fencing_token, lease_id,
                request_id, holder, labels, acquired_at, expires_at)
            VALUES ('T1', 'known', {row}, gen_random_uuid(), gen_random_uuid(), '', '{{}}',
                'epoch', 'epoch')"
        );
        execute(&url, &rows).await;
        let clock = TestClock::new();
        assert_above(next_tokens(&url, &clock).await, (drawn, row), &clock);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_go_on_above_those_of_a_counter() {
    for (drawn, row) in DRAWN {
        let directory = tempdir().unwrap();
        let url = sqlite_url(&directory);
        let (_files, migrator) = older("sqlite").await;
        let mut file = SqliteConnection::connect(&format!("{url}?mode=rwc")).await.unwrap();
        migrator.run(&mut file).await.unwrap();
        file.close().await.unwrap();
        let rows = format!(
            "UPDATE oncegate_fencing_tokens SET last = {drawn};
            INSERT INTO oncegate_sessions (team_id, session_id, fencing_token, lease_id,
                request_id, holder, labels, acquired_at, expires_at)
            VALUES ('T1', 'known', {row}, hex(randomblob(16)), hex(randomblob(16)), '', '{{}}',
                0, 0)"
        );
        execute(&url, &rows).await;
        let clock = TestClock::new();
        assert_above(next_tokens(&url, &clock).await, (drawn, row), &clock);
    }
}
