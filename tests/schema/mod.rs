//! The schema: how it comes to be, whom it refuses, and that every statement
//! fits it.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
};

use futures_util::future::join_all;
use oncegate::{
    server::{self, Server},
    store::{Clock, postgres, sqlite},
};
use sqlx::{
    Connection as _, Executor as _, PgConnection, SqlStr, SqliteConnection,
    sqlite::SqliteConnectOptions,
};
use tempfile::TempDir;

use crate::harness::{Fixture, Replica, config, execute, mark, postgres::new_database, sqlite_url};

mod adoption;
mod autovacuum;
mod fence;
mod installs;
mod plans;
mod roles;
mod shapes;
mod single;
mod start;
mod sweep;
mod versions;

/// Why a server does not start on the database at `url`.
async fn refusal(url: &str, flags: &[&str]) -> String {
    match Server::start(config(url, flags), Clock::Store).await {
        Ok(_) => panic!("a server started on {url} with {flags:?}"),
        Err(error) => format!("{error:#}"),
    }
}

/// How many constants of text the files below `place` hold.
fn texts_in(place: &Path) -> usize {
    if place.is_dir() {
        let entries = std::fs::read_dir(place).unwrap();
        return entries.map(|entry| texts_in(&entry.unwrap().path())).sum();
    }
    let source = std::fs::read_to_string(place).unwrap();
    source.lines().filter(|line| line.contains("const ") && line.contains(": &str =")).count()
}

fn source(place: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store").join(place)
}

#[tokio::test]
async fn every_statement_can_be_prepared() {
    let f = Fixture::postgres().await;
    let mut database = PgConnection::connect(&f.url).await.unwrap();
    for statement in postgres::STATEMENTS.iter().flat_map(|text| text.split(";\n")) {
        let prepared = database.prepare(SqlStr::from_static(statement)).await;
        assert!(prepared.is_ok(), "{:?} in {statement}", prepared.err());
    }
    assert_eq!(postgres::STATEMENTS.len(), texts_in(&source("postgres")), "one is not listed");

    let f = Fixture::sqlite().await;
    let options = SqliteConnectOptions::from_str(&f.url).unwrap();
    let mut file = SqliteConnection::connect_with(&options).await.unwrap();
    for statement in sqlite::STATEMENTS.iter().flat_map(|text| text.split("; ")) {
        let prepared = (&mut file).prepare(SqlStr::from_static(statement)).await;
        assert!(prepared.is_ok(), "{:?} in {statement}", prepared.err());
    }
    assert_eq!(sqlite::STATEMENTS.len(), texts_in(&source("sqlite")), "one is not listed");
}

/// Starts four replicas at once, which must come up and be of one mind.
async fn four_come_up(url: &str) {
    let starting = [(); 4].map(|()| Replica::start(url, Clock::Store, &[]));
    let replicas = join_all(starting).await;
    let marks = replicas.iter().map(async |replica| {
        let marked = replica.client().await.mark_processed(mark("T", "x")).await;
        marked.unwrap().into_inner().first
    });
    let firsts = join_all(marks).await.into_iter().filter(|first| *first).count();
    assert_eq!(firsts, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_on_an_empty_database_all_come_up() {
    four_come_up(&new_database().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_on_the_older_bots_table_all_come_up() {
    let url = new_database().await;
    execute(&url, adoption::OLDER_TABLE).await;
    four_come_up(&url).await;
}

/// An empty database of each kind.
async fn empty_databases() -> (TempDir, [String; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let urls = [new_database().await, sqlite_url(&directory)];
    (directory, urls)
}

#[tokio::test]
async fn without_migrating_a_server_needs_a_schema_and_says_how_to_get_it() {
    let (_directory, urls) = empty_databases().await;
    for url in urls {
        let flags = ["--migrate", "false"];
        let why = refusal(&url, &flags).await;
        assert!(why.contains("run `oncegate migrate`"), "{why}");
        server::migrate(&config(&url, &[]).store).await.unwrap();
        let replica = Replica::start(&url, Clock::Store, &flags).await;
        replica.client().await.mark_processed(mark("T", "x")).await.unwrap();
    }
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let (_directory, urls) = empty_databases().await;
    for url in urls {
        let store = config(&url, &[]).store;
        for _ in 0..2 {
            server::migrate(&store).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_schema_newer_than_the_binary_is_refused() {
    const NEWER: &str = "INSERT INTO oncegate_migrations
        (version, description, success, checksum, execution_time) VALUES (99, 'newer', true, '', 0)";
    let (_directory, urls) = empty_databases().await;
    for url in urls {
        server::migrate(&config(&url, &[]).store).await.unwrap();
        execute(&url, NEWER).await;
        for migrate in ["true", "false"] {
            let why = refusal(&url, &["--migrate", migrate]).await;
            assert!(why.contains("99") && why.contains("older than its database"), "{why}");
        }
    }
}
