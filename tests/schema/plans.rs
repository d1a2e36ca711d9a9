//! How PostgreSQL finds rows. A plan is kept for as long as its connection, so it is to be
//! right whatever the planner thought of the tables when it made it.

use oncegate::{server, store::postgres::STATEMENTS};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use crate::harness::{config, postgres::new_database};

/// As the connections set it that run statements for callers.
const SETTINGS: &str = "SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan;
    SET jit = off";

/// Of the statement for metrics, which is planned each time.
const OLDEST: &str = "min(sweep_after)";

const TABLES: [&str; 4] =
    ["processed_events", "oncegate_sessions", "oncegate_waiters", "oncegate_fence"];

/// One team has so many rows in each table, and the planner knows.
async fn fill(database: &mut PgConnection, rows: u32) {
    let fill = format!(
        "TRUNCATE processed_events, oncegate_sessions, oncegate_waiters;
        INSERT INTO processed_events (team_id, event_id, processed_at, expires_at)
            SELECT 'T', n, now(), now() FROM generate_series(1, {rows}) AS n;
        INSERT INTO oncegate_sessions (team_id, session_id, fencing_token, lease_id, request_id, holder,
                labels, acquired_at, expires_at)
            SELECT 'T', n, 1, gen_random_uuid(), gen_random_uuid(), '', '{{}}', now(), now()
            FROM generate_series(1, {rows}) AS n;
        INSERT INTO oncegate_waiters (team_id, session_id, lease_id, request_id, holder, labels,
                ttl_micros, replica)
            SELECT 'T', n, gen_random_uuid(), gen_random_uuid(), '', '{{}}', 1, gen_random_uuid()
            FROM generate_series(1, {rows}) AS n"
    );
    database.execute(AssertSqlSafe(fill)).await.unwrap();
    for table in TABLES {
        let analyze = format!("VACUUM ANALYZE {table}");
        database.execute(AssertSqlSafe(analyze)).await.unwrap();
    }
}

/// The plan that a statement has for as long as its connection.
async fn plan(database: &mut PgConnection, statement: &str) -> Vec<String> {
    let count = (1..40).rev().find(|number| statement.contains(&format!("${number}")));
    let nulls = vec!["NULL"; count.unwrap_or(0)].join(", ");
    let prepare = format!("PREPARE it AS {statement}");
    database.execute(AssertSqlSafe(prepare)).await.unwrap();
    let arguments = if nulls.is_empty() { nulls } else { format!("({nulls})") };
    let explain = sqlx::raw_sql(AssertSqlSafe(format!("EXPLAIN EXECUTE it{arguments}")));
    let lines = explain.fetch_all(&mut *database).await.unwrap();
    database.execute("DEALLOCATE it").await.unwrap();
    lines.iter().map(|line| line.get(0)).collect()
}

/// Whether a statement reads a whole table, as those do that list, count and sweep.
fn reads_many(statement: &str) -> bool {
    const COUNT: &str = "SELECT count(*) FROM oncegate_sessions";
    const HIGHEST: &str = "SELECT max(fencing_token) FROM oncegate_sessions";
    ["LIMIT $", "AS all_rows", OLDEST, COUNT, HIGHEST]
        .iter()
        .any(|spelled| statement.contains(spelled))
}

#[tokio::test]
async fn every_row_is_found_by_its_whole_key() {
    let url = new_database().await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    let mut database = PgConnection::connect(&url).await.unwrap();
    database.execute(SETTINGS).await.unwrap();
    for rows in [0, 1, 20, 1_000] {
        fill(&mut database, rows).await;
        let statements = STATEMENTS.iter().flat_map(|text| text.split(";\n"));
        let has_plan = |statement: &&str| {
            let has_none = |begin: &&str| statement.starts_with(begin);
            !["BEGIN", "ROLLBACK", "SET LOCAL", "LOCK TABLE"].iter().any(has_none)
        };
        for statement in statements.filter(has_plan).filter(|statement| !reads_many(statement)) {
            let plan = plan(&mut database, statement).await;
            for (place, line) in plan.iter().enumerate() {
                // HEARTBEAT's, which is by the replica alone.
                let is_scan = line.contains("Scan") && !line.contains("_by_replica");
                if !is_scan || !TABLES.iter().any(|table| line.contains(&format!(" on {table}"))) {
                    continue;
                }
                let found = plan.get(place + 1).filter(|next| next.contains("Index Cond"));
                let by = |column| found.is_some_and(|found| found.contains(column));
                let whole = ["event_id", "session_id"].into_iter().any(by);
                let is_floor = line.contains(" on oncegate_fence") && by("(id = true)");
                assert!(
                    by("team_id") && whole || is_floor,
                    "{rows} rows: {line} {found:?} in {statement}\n{}",
                    plan.join("\n")
                );
            }
        }
    }
}

#[tokio::test]
async fn the_oldest_event_is_found_without_reading_the_table() {
    let url = new_database().await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    let mut database = PgConnection::connect(&url).await.unwrap();
    // Sequential scans are allowed where it runs.
    database.execute("SET jit = off").await.unwrap();
    fill(&mut database, 10_000).await;
    let statement = STATEMENTS.iter().find(|statement| statement.contains(OLDEST)).unwrap();
    let plan = plan(&mut database, statement).await;
    let of_events = |line: &&String| line.contains(" on processed_events");
    let scans: Vec<_> = plan.iter().filter(of_events).collect();
    let [scan] = scans[..] else { panic!("{plan:#?}") };
    assert!(scan.contains("using processed_events_sweep_after"), "{plan:#?}");
}
