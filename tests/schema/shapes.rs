//! Which older tables are adopted, and that any other is refused before it is changed.

use oncegate::store::Clock;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, query_scalar};

use super::{execute, refusal};
use crate::harness::{Replica, TestClock, mark, postgres::new_database};

const KEY: &str = "PRIMARY KEY (team_id, event_id)";

/// All that a database's own relations are, as one text.
async fn shape(url: &str) -> String {
    let describe = "SELECT concat_ws(E'\n',
        (SELECT string_agg(concat_ws(' ', c.relname, c.relkind, c.relpersistence, a.attname,
                format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef, a.attcollation),
                E'\n' ORDER BY c.relname, a.attnum)
            FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
            WHERE c.relnamespace = 'public'::regnamespace),
        (SELECT string_agg(pg_get_constraintdef(oid), E'\n' ORDER BY conname) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace))";
    let mut database = PgConnection::connect(url).await.unwrap();
    query_scalar(describe).fetch_one(&mut database).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_be_adopted_is_refused_untouched_and_the_difference_named() {
    let columns = |team: &str, event: &str, at: &str, more: &str| {
        format!(
            "CREATE TABLE processed_events (team_id {team}, event_id {event}, processed_at {at}{more})"
        )
    };
    let keyed = |more: &str| columns("text", "text", "timestamptz", &format!(", {KEY}{more}"));
    let plain = keyed("");
    for (table, named) in [
        (columns("text", "bigint", "timestamptz", &format!(", {KEY}")), "event_id is of type bigint"),
        (columns("text", "uuid", "timestamptz", &format!(", {KEY}")), "event_id is of type uuid"),
        (columns("integer", "text", "timestamptz", &format!(", {KEY}")), "team_id is of type integer"),
        (columns("text", "jsonb", "timestamptz", &format!(", {KEY}")), "event_id is of type jsonb"),
        (columns("text", "bytea", "timestamptz", &format!(", {KEY}")), "event_id is of type bytea"),
        (columns("text", "text", "bigint", &format!(", {KEY}")), "processed_at is of type bigint"),
        (columns("text", "text", "date", &format!(", {KEY}")), "processed_at is of type date"),
        (columns("text", "text", "text", &format!(", {KEY}")), "processed_at is of type text"),
        (columns("text", "text", "timestamptz", ", PRIMARY KEY (event_id)"), "primary key is (event_id)"),
        (
            columns("text", "text", "timestamptz", ", PRIMARY KEY (event_id, team_id)"),
            "primary key is (event_id, team_id)",
        ),
        (
            columns("text", "text", "timestamptz", ", PRIMARY KEY (team_id, event_id, processed_at)"),
            "primary key is (team_id, event_id, processed_at)",
        ),
        (columns("text", "text", "timestamptz", ""), "it has no primary key"),
        (columns("text", "text", "timestamptz", ", UNIQUE (team_id, event_id)"), "it has no primary key"),
        (
            columns("text", "text", "timestamptz", &format!(", {KEY} DEFERRABLE")),
            "is DEFERRABLE",
        ),
        (keyed(", UNIQUE (event_id)"), "the unique index processed_events_event_id_key"),
        (keyed(", UNIQUE (team_id, event_id) DEFERRABLE"), "the unique index processed_events_team_id"),
        (
            format!("{plain}; CREATE UNIQUE INDEX folded ON processed_events (team_id, lower(event_id))"),
            "the unique index folded",
        ),
        (
            format!("{plain}; CREATE UNIQUE INDEX covering ON processed_events (event_id) INCLUDE (team_id)"),
            "the unique index covering",
        ),
        (keyed(", kind text NOT NULL"), "column kind is NOT NULL and has no default"),
        (keyed(", holder text"), "column \"holder\" of relation \"processed_events\" already exists"),
        (keyed(", expires_at timestamptz"), "column \"expires_at\" of relation"),
        (format!("CREATE TABLE processed_events (team_id text, event_id text, {KEY})"), "no column processed_at"),
        ("CREATE TABLE processed_events (event_id text PRIMARY KEY, processed_at timestamptz)".to_owned(), "no column team_id"),
        (format!("{plain} PARTITION BY HASH (team_id)"), "it is a partitioned table"),
        (plain.replace("TABLE", "UNLOGGED TABLE"), "it is unlogged"),
        ("CREATE VIEW processed_events AS SELECT 'T' AS team_id, 'x' AS event_id, now() AS processed_at".to_owned(), "it is a view"),
        (
            format!("{}; CREATE TABLE processed_events () INHERITS (base)", plain.replace("processed_events", "base")),
            "inherits",
        ),
        (
            format!("{plain}; CREATE TABLE notes (t text, e text, FOREIGN KEY (t, e) REFERENCES processed_events)"),
            "a foreign key of notes",
        ),
        (
            format!("{plain}; CREATE VIEW recent AS SELECT event_id FROM processed_events"),
            "used by a view",
        ),
        (format!("{plain}; CREATE TABLE oncegate_sessions (sid text)"), "\"oncegate_sessions\" already exists"),
        (format!("{plain}; CREATE SEQUENCE oncegate_tickets"), "\"oncegate_tickets\" already exists"),
        (format!("{plain}; CREATE TABLE oncegate_migrations (id text)"), "oncegate_migrations is not one of oncegate's"),
    ] {
        let url = new_database().await;
        execute(&url, &table).await;
        let before = shape(&url).await;
        for migrate in ["true", "false"] {
            let why = refusal(&url, &["--migrate", migrate]).await;
            assert!(why.contains(named) || migrate == "false", "{table}: {named:?} is not in {why}");
        }
        assert_eq!(shape(&url).await, before, "{table}: it is as it was");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_with_a_unique_index_that_contains_the_key_is_adopted() {
    for columns in ["team_id, event_id", "event_id, team_id", "event_id, processed_at, team_id"] {
        let url = new_database().await;
        let table = format!(
            "CREATE TABLE processed_events (team_id text, event_id text, processed_at timestamptz,
                {KEY}, UNIQUE ({columns}))"
        );
        execute(&url, &table).await;
        let replica = Replica::start(&url, Clock::Store, &["--duplicate-cache-entries", "0"]).await;
        let mut client = replica.client().await;
        for first in [true, false] {
            let marked = client.mark_processed(mark("T", "Ev1")).await.unwrap();
            assert_eq!(marked.into_inner().first, first, "{columns}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_other_spelling_is_adopted_and_its_times_without_a_zone_are_utc() {
    let clock = TestClock::new();
    for (keys, at) in [
        ("text", "timestamp DEFAULT now()"),
        ("varchar(255)", "timestamp(3) without time zone NOT NULL"),
        ("varchar", "timestamptz(0) DEFAULT now()"),
        ("char(20)", "timestamptz NOT NULL DEFAULT now()"),
        (
            "text COLLATE \"C\"",
            "timestamp DEFAULT (now() AT TIME ZONE 'utc'), note text, id bigserial",
        ),
    ] {
        // A server whose zone is far from UTC.
        let url = new_database().await;
        let name = url.rsplit('/').next().unwrap().split('?').next().unwrap();
        execute(&url, &format!("ALTER DATABASE {name} SET TimeZone = 'Asia/Tokyo'")).await;
        let table = format!(
            "SET TimeZone = 'UTC'; CREATE TABLE processed_events
                (team_id {keys}, event_id {keys}, processed_at {at}, {KEY});
            CREATE INDEX ON processed_events (processed_at);
            INSERT INTO processed_events (team_id, event_id, processed_at) VALUES
                ('T', 'live', to_timestamp({now}) - interval '23 hours'),
                ('T', 'over', to_timestamp({now}) - interval '25 hours')",
            now = clock.micros() / 1_000_000
        );
        execute(&url, &table).await;
        let replica = Replica::start(&url, clock.store_clock(), &[]).await;
        let mut client = replica.client().await;
        for (event, first) in [("live", false), ("over", true), ("new", true), ("new", false)] {
            let marked = client.mark_processed(mark("T", event)).await.unwrap().into_inner();
            assert_eq!(marked.first, first, "{keys}, {at}: {event}");
        }
        // The older bots may go on writing.
        let mut database = PgConnection::connect(&url).await.unwrap();
        let write = "INSERT INTO processed_events (team_id, event_id) VALUES ('T', 'theirs')
            RETURNING processed_at BETWEEN now() AND now() AND expires_at > now() + interval '23 hours'";
        let right: bool =
            query_scalar(AssertSqlSafe(write)).fetch_one(&mut database).await.unwrap();
        assert!(right, "{keys}, {at}");
    }
}

/// One that the binary before this one had adopted as it was: every answer failed.
#[tokio::test]
async fn a_table_that_was_adopted_without_a_time_zone_is_converted() {
    let url = new_database().await;
    execute(&url, super::adoption::OLDER_TABLE).await;
    Replica::start(&url, Clock::Store, &[]).await.server.stop().await.unwrap();
    execute(
        &url,
        "ALTER TABLE processed_events ALTER COLUMN processed_at TYPE timestamp
            USING processed_at AT TIME ZONE 'UTC';
        DELETE FROM oncegate_migrations WHERE version = 7",
    )
    .await;
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let mut client = replica.client().await;
    for first in [true, false] {
        let marked = client.mark_processed(mark("T", "x")).await.unwrap().into_inner();
        assert_eq!(marked.first, first);
    }
}

#[tokio::test]
async fn tables_of_another_application_are_no_hindrance() {
    let url = new_database().await;
    for table in ["sessions", "replicas", "session_waiters"] {
        execute(&url, &format!("CREATE TABLE {table} (sid text PRIMARY KEY, data jsonb)")).await;
    }
    let before = shape(&url).await;
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let marked = replica.client().await.mark_processed(mark("T", "x")).await;
    assert!(marked.unwrap().into_inner().first);
    let after = shape(&url).await;
    let theirs = |shape: &str| {
        let lines = shape.lines().filter(|line| !line.contains("oncegate"));
        lines
            .filter(|line| line.contains("sid") || line.contains("data"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(theirs(&after), theirs(&before));
}
