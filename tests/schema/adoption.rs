//! A database of the older Python bots is taken over where it stands.

use std::time::Duration;

use oncegate::grpc::pb::IsProcessedRequest;
use sqlx::{Connection as _, Executor as _, PgConnection, query, query_as, query_scalar};

use crate::harness::{Client, Replica, TestClock, event, execute, mark, postgres::new_database};

/// As the older bots make it.
pub const OLDER_TABLE: &str = "
CREATE TABLE processed_events (
    team_id TEXT,
    event_id TEXT,
    processed_at TIMESTAMPTZ DEFAULT NOW(),
    PRIMARY KEY (team_id, event_id)
);
CREATE INDEX idx_processed_events_time ON processed_events (processed_at);
";

/// As the older bots mark.
const OLDER_MARK: &str =
    "INSERT INTO processed_events (team_id, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";

/// Another application that keeps its migrations in the same database.
const NEIGHBOUR: &str = "
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
    success BOOLEAN NOT NULL,
    checksum BYTEA NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
VALUES (1, 'theirs', true, 'abc', 5), (20240101000000, 'theirs too', false, 'def', 6);
";

const DAY: Duration = Duration::from_hours(24);
const MICROSECOND: Duration = Duration::from_micros(1);
/// The last moment of a day.
const ALMOST_A_DAY: Duration = Duration::from_micros(86_399_999_999);

/// Writes a row as an older bot did, `age` microseconds before `now`.
async fn older_row(database: &mut PgConnection, id: &str, now: i64, age: i64) {
    query("INSERT INTO processed_events VALUES ('T', $1, to_timestamp(0) + $2 * interval '1 microsecond')")
        .bind(id)
        .bind(now - age)
        .execute(database)
        .await
        .unwrap();
}

/// When an event was marked, in microseconds since 1970.
async fn marked_at(database: &mut PgConnection, id: &str) -> i64 {
    query_scalar("SELECT (extract(epoch FROM processed_at) * 1000000)::bigint FROM processed_events WHERE event_id = $1")
        .bind(id)
        .fetch_one(database)
        .await
        .unwrap()
}

async fn is_processed(client: &mut Client, id: &str) -> bool {
    let ask = IsProcessedRequest { event: event("T", id), ..Default::default() };
    client.is_processed(ask).await.unwrap().into_inner().processed
}

async fn is_new(client: &mut Client, id: &str) -> bool {
    client.mark_processed(mark("T", id)).await.unwrap().into_inner().first
}

#[tokio::test]
async fn rows_of_the_older_bots_count_for_a_day_from_their_mark() {
    let url = new_database().await;
    execute(&url, OLDER_TABLE).await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let clock = TestClock::new();
    let now = clock.micros();
    let day = i64::try_from(DAY.as_micros()).unwrap();
    for (id, age) in [
        ("fresh", 0),
        ("hour", day / 24),
        ("last moment", day - 1),
        ("over", day),
        ("old", 40 * day),
    ] {
        older_row(&mut database, id, now, age).await;
    }
    let rows = "SELECT team_id, event_id, processed_at::text FROM processed_events ORDER BY 2";
    let before: Vec<(String, String, String)> =
        query_as(rows).fetch_all(&mut database).await.unwrap();

    let replica = Replica::start(&url, clock.store_clock(), &[]).await;
    let mut client = replica.client().await;
    // A statement prepared before a migration is none after it.
    let mut database = PgConnection::connect(&url).await.unwrap();
    let after: Vec<(String, String, String)> =
        query_as(rows).fetch_all(&mut database).await.unwrap();
    assert_eq!(after, before, "every row as it was");
    for (id, live) in
        [("fresh", true), ("hour", true), ("last moment", true), ("over", false), ("old", false)]
    {
        assert_eq!(is_processed(&mut client, id).await, live, "{id}");
        assert_eq!(is_new(&mut client, id).await, !live, "{id}");
    }
    clock.advance(MICROSECOND);
    assert!(!is_processed(&mut client, "last moment").await);
    assert!(is_new(&mut client, "last moment").await);
    clock.set(now);
    clock.advance(ALMOST_A_DAY);
    assert!(!is_new(&mut client, "fresh").await);
    clock.advance(MICROSECOND);
    assert!(is_new(&mut client, "fresh").await);
}

#[tokio::test]
async fn a_row_without_a_time_counts_from_the_adoption() {
    let url = new_database().await;
    execute(&url, OLDER_TABLE).await;
    execute(&url, "INSERT INTO processed_events VALUES ('T', 'timeless', NULL)").await;
    let clock = TestClock::new();
    let replica = Replica::start(&url, clock.store_clock(), &[]).await;
    let mut client = replica.client().await;

    let mut database = PgConnection::connect(&url).await.unwrap();
    clock.set(marked_at(&mut database, "timeless").await);
    clock.advance(ALMOST_A_DAY);
    assert!(!is_new(&mut client, "timeless").await);
    clock.advance(MICROSECOND);
    assert!(is_new(&mut client, "timeless").await);
}

#[tokio::test]
async fn older_bots_may_go_on_writing() {
    let url = new_database().await;
    execute(&url, OLDER_TABLE).await;
    let clock = TestClock::new();
    let replica = Replica::start(&url, clock.store_clock(), &[]).await;
    let mut client = replica.client().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let mut older_mark = async |id: &str| {
        let done = query(OLDER_MARK).bind("T").bind(id).execute(&mut database).await;
        done.unwrap().rows_affected() == 1
    };

    assert!(is_new(&mut client, "ours").await);
    assert!(!older_mark("ours").await, "a mark of ours is one to them");
    assert!(older_mark("theirs").await);
    assert!(!older_mark("theirs").await);
    // They mark by the database's clock.
    clock.set(marked_at(&mut database, "theirs").await);
    assert!(!is_new(&mut client, "theirs").await);
    clock.advance(ALMOST_A_DAY);
    assert!(!is_new(&mut client, "theirs").await);
    clock.advance(MICROSECOND);
    assert!(is_new(&mut client, "theirs").await);
}

#[tokio::test]
async fn a_neighbours_migrations_are_left_alone() {
    let url = new_database().await;
    execute(&url, NEIGHBOUR).await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let theirs = "SELECT array_agg(m::text ORDER BY version) FROM _sqlx_migrations m";
    let before: Vec<String> = query_scalar(theirs).fetch_one(&mut database).await.unwrap();
    for migrate in ["true", "false"] {
        let flags = ["--migrate", migrate];
        let replica = Replica::start(&url, TestClock::new().store_clock(), &flags).await;
        assert_eq!(is_new(&mut replica.client().await, "x").await, migrate == "true");
    }
    let after: Vec<String> = query_scalar(theirs).fetch_one(&mut database).await.unwrap();
    assert_eq!(after, before);
    // Nor does theirs mind ours.
    database.execute("DROP TABLE _sqlx_migrations").await.unwrap();
    Replica::start(&url, TestClock::new().store_clock(), &[]).await;
}
