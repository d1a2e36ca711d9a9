//! The column by which PostgreSQL's sweeps find rows: how seldom it changes, how late it may be, and
//! rows that were written without it.

use std::time::Duration;

use futures_util::future::join_all;
use oncegate::{
    grpc::pb::{
        BeginTurnRequest, BeginTurnResponse, CleanupRequest, EventKey, FinishTurnRequest,
        MarkProcessedRequest, RenewTurnRequest, TurnOutcome, begin_turn_response::Outcome,
        event_key::Key, turn_service_client::TurnServiceClient,
    },
    server,
    store::Clock,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tonic::transport::Channel;

use super::execute;
use crate::harness::{
    Fixture, Replica, config, connect, event, mark, postgres::new_database, seconds, session,
};

const DAY: i64 = 86_400;

/// Begins a turn of the event, in a session of its own, and answers its id if it is granted.
async fn begin(
    turns: &mut TurnServiceClient<Channel>,
    event: Option<EventKey>,
    claim_ttl: i64,
) -> Option<String> {
    let Some(Key::EventId(id)) = event.as_ref().and_then(|event| event.key.clone()) else {
        panic!("an event without an id");
    };
    let request = BeginTurnRequest {
        event,
        session: session("T", &id),
        holder: "run".into(),
        claim_ttl: seconds(claim_ttl),
        lease_ttl: seconds(900),
        ..Default::default()
    };
    let BeginTurnResponse { outcome, .. } = turns.begin_turn(request).await.unwrap().into_inner();
    match outcome {
        Some(Outcome::Granted(granted)) => Some(granted.turn.unwrap().turn_id),
        _ => None,
    }
}

async fn renew(turns: &mut TurnServiceClient<Channel>, turn_id: &str) {
    let request = RenewTurnRequest {
        turn_id: turn_id.to_owned(),
        claim_ttl: seconds(3_600),
        lease_ttl: seconds(900),
    };
    turns.renew_turn(request).await.unwrap();
}

async fn finish(
    turns: &mut TurnServiceClient<Channel>,
    turn_id: &str,
    outcome: TurnOutcome,
    ttl: Option<i64>,
) {
    let request = FinishTurnRequest {
        turn_id: turn_id.to_owned(),
        outcome: outcome.into(),
        ttl: ttl.and_then(seconds),
        ..Default::default()
    };
    turns.finish_turn(request).await.unwrap();
}

async fn turns(f: &Fixture) -> TurnServiceClient<Channel> {
    TurnServiceClient::new(connect(f.replica.server.address()).await)
}

/// Updates that stayed within their page and wrote to no index ("heap-only"), of all updates of a table.
async fn heap_only(database: &mut PgConnection, table: &str) -> (i64, i64) {
    const UPDATES: &str = "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables
        WHERE relname = $1";
    let row = sqlx::query(UPDATES).bind(table).fetch_one(database).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn most_turns_that_go_on_and_end_write_to_no_index() {
    const ALONE: &str = "SELECT count(*) = 1 FROM pg_stat_activity
        WHERE datname = current_database()";
    const TURNS: i64 = 128;
    let f = Fixture::postgres().await.restarted(&["--probe-interval", "1h"]).await;
    let clients = join_all((0..8).map(|_| turns(&f))).await;
    let client = |number: i64| clients[usize::try_from(number).unwrap() % clients.len()].clone();
    // A batch that begins together and ends together needs the most room in its pages.
    let begun = (0..TURNS).map(async |number| {
        begin(&mut client(number), event("T", &format!("Ev{number}")), 60).await.unwrap()
    });
    let begun = join_all(begun).await;
    f.clock.advance(Duration::from_secs(1));
    let ended = begun.iter().zip(0..).map(async |(id, number)| {
        finish(&mut client(number), id, TurnOutcome::Succeeded, None).await;
    });
    join_all(ended).await;
    // One that is kept for long.
    let mut turns = client(0);
    let id = begin(&mut turns, event("T", "long"), 60).await.unwrap();
    for _ in 0..50 {
        f.clock.advance(Duration::from_secs(1));
        renew(&mut turns, &id).await;
    }
    drop((clients, turns));
    let url = f.url.clone();
    drop(f.client);
    f.replica.server.stop().await.unwrap();
    // A backend reports its counts at the latest when it ends.
    let mut database = PgConnection::connect(&url).await.unwrap();
    while !sqlx::query_scalar::<_, bool>(ALONE).fetch_one(&mut database).await.unwrap() {
        tokio::task::yield_now().await;
    }
    for table in ["processed_events", "oncegate_sessions"] {
        let (heap_only, updates) = heap_only(&mut database, table).await;
        assert!(updates >= TURNS, "{table}: {updates} updates");
        // Some of such a batch find no room.
        assert!(heap_only * 2 >= updates, "{table}: {heap_only} of {updates} updates");
    }
}

/// Rows that a sweep would find too early or too late.
async fn out_of_bounds(url: &str) -> Vec<String> {
    const ROWS: &str = "SELECT concat_ws(' ', event_id, expires_at, sweep_after)
        FROM processed_events
        WHERE (sweep_after > expires_at AND sweep_after <= expires_at + CASE
            WHEN expires_at - processed_at < interval '24 hours' THEN interval '1 minute'
            ELSE interval '1 hour' END) IS NOT TRUE";
    let mut database = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(ROWS).fetch_all(&mut database).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_swept_within_an_hour_or_a_minute_of_its_end() {
    let mut f = Fixture::postgres().await;
    let mut turns = turns(&f).await;
    let named = |id: &str| {
        let aliases = vec![format!("{id}, alias")];
        Some(EventKey { aliases, ..event("T", id).unwrap() })
    };
    let bounds = async |f: &Fixture, what: &str| {
        assert_eq!(out_of_bounds(&f.url).await, Vec::<String>::new(), "{what}");
        // Away from every whole minute.
        f.clock.advance(Duration::from_millis(7 * 60_000 + 123));
    };
    for ttl in [1, 59, 60, DAY - 1, DAY, 30 * DAY] {
        for (number, event) in
            [event("T", &format!("m{ttl}")), named(&format!("n{ttl}"))].into_iter().enumerate()
        {
            let request = MarkProcessedRequest { event, ttl: seconds(ttl), ..Default::default() };
            f.client.mark_processed(request).await.unwrap();
            bounds(&f, &format!("a mark for {ttl} s, {number}")).await;
        }
        for (kind, alias) in [("t", false), ("u", true)] {
            for outcome in [TurnOutcome::Succeeded, TurnOutcome::Rejected, TurnOutcome::Failed] {
                let id = format!("{kind}{ttl}{outcome:?}");
                let key = if alias { named(&id) } else { event("T", &id) };
                let turn = begin(&mut turns, key, 3_600).await.unwrap();
                bounds(&f, "a claim").await;
                renew(&mut turns, &turn).await;
                bounds(&f, "a renewal").await;
                let kept = (outcome == TurnOutcome::Succeeded).then_some(ttl);
                finish(&mut turns, &turn, outcome, kept).await;
                bounds(&f, &format!("{outcome:?} for {ttl} s")).await;
            }
        }
    }
    // A failed event is claimed again; and a claim that ends too late, for the clock was stepped back.
    let turn = begin(&mut turns, event("T", "t60Failed"), 3_600).await.unwrap();
    bounds(&f, "a second claim").await;
    f.clock.step_back(Duration::from_hours(5));
    assert!(begin(&mut turns, event("T", "t60Failed"), 3_600).await.is_none(), "it is claimed");
    bounds(&f, "a claim that was shortened").await;
    finish(&mut turns, &turn, TurnOutcome::Succeeded, None).await;
    bounds(&f, "its end").await;
}

/// The ids of events on record.
async fn on_record(url: &str) -> Vec<String> {
    let mut database = PgConnection::connect(url).await.unwrap();
    let ids = "SELECT event_id FROM processed_events ORDER BY event_id";
    sqlx::query_scalar(ids).fetch_all(&mut database).await.unwrap()
}

/// Sets rows to what a binary leaves that does not know the column, in seconds from now.
async fn written_without_it(f: &Fixture, rows: &[(&str, i64, i64)]) {
    for (id, expires, sweep_after) in rows {
        let now = format!("'epoch'::timestamptz + {} * interval '1 microsecond'", f.clock.micros());
        let row = format!(
            "INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, sweep_after)
            VALUES ('T', '{id}', {now} - interval '2 days', {now} + {expires} * interval '1 second',
                {now} + {sweep_after} * interval '1 second')"
        );
        execute(&f.url, &row).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cleanup_takes_every_expired_row_at_once_whoever_wrote_it() {
    let mut f = Fixture::postgres().await;
    let request = MarkProcessedRequest { ttl: seconds(1), ..mark("T", "ours") };
    f.client.mark_processed(request).await.unwrap();
    f.client.mark_processed(mark("T", "ours, live")).await.unwrap();
    f.clock.advance(Duration::from_secs(1));
    written_without_it(&f, &[("late", -1, DAY), ("early", DAY, -1), ("live", DAY, DAY)]).await;
    let dry = CleanupRequest { dry_run: true, ..Default::default() };
    for (request, left) in
        [(dry, 5), (CleanupRequest::default(), 3), (CleanupRequest::default(), 3)]
    {
        f.client.cleanup(request).await.unwrap();
        assert_eq!(on_record(&f.url).await.len(), left);
    }
    assert_eq!(on_record(&f.url).await, ["early", "live", "ours, live"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_corrects_rows_that_it_finds_too_early_and_goes_on() {
    // More of them than the first batch has, before the one that has expired.
    const EARLY: &str = "INSERT INTO processed_events
            (team_id, event_id, processed_at, expires_at, sweep_after)
        SELECT 'T', n, to_timestamp(1790000000), to_timestamp(1790000000 + 172800),
            '-infinity' FROM generate_series(1, 2000) AS n";
    const CORRECTED: &str = "SELECT count(*) FROM processed_events
        WHERE sweep_after > to_timestamp(1790000000 + 172800)
            AND sweep_after <= to_timestamp(1790000000 + 172800 + 3600)";
    let f = Fixture::postgres().await;
    execute(&f.url, EARLY).await;
    written_without_it(&f, &[("expired", -1, -1)]).await;
    let f = f.restarted(&["--sweep-interval", "10ms"]).await;
    let mut database = PgConnection::connect(&f.url).await.unwrap();
    let swept = async {
        while on_record(&f.url).await.len() != 2_000 {
            tokio::task::yield_now().await;
        }
    };
    let swept = tokio::time::timeout(Duration::from_secs(30), swept).await;
    assert!(swept.is_ok(), "the row that has expired is left");
    let corrected: i64 = sqlx::query_scalar(CORRECTED).fetch_one(&mut database).await.unwrap();
    assert_eq!(corrected, 2_000);
    f.clock.advance(Duration::from_hours(49));
    let swept = async {
        while !on_record(&f.url).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let swept = tokio::time::timeout(Duration::from_secs(30), swept).await;
    assert!(swept.is_ok(), "they are left, although they have expired");
}

/// As the version before left it, with rows.
async fn database_before(rows: u32) -> String {
    let url = new_database().await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    let before = format!(
        "DROP INDEX processed_events_sweep_after;
        ALTER TABLE processed_events DROP COLUMN sweep_after;
        ALTER TABLE processed_events RESET (fillfactor);
        CREATE INDEX processed_events_expires_at ON processed_events (expires_at);
        DELETE FROM oncegate_migrations WHERE version = 13;
        INSERT INTO processed_events (team_id, event_id, processed_at, expires_at)
        SELECT 'T', n, now(), now() + interval '1 day' FROM generate_series(1, {rows}) AS n"
    );
    execute(&url, &before).await;
    url
}

/// What a migration must leave alone, and the indexes after it.
async fn table(url: &str) -> (String, String) {
    const TABLE: &str = "SELECT concat_ws(' ', pg_relation_filenode('processed_events'),
            to_regclass('processed_events_sweep_after')::oid),
        (SELECT string_agg(concat_ws(' ', indexrelid::regclass, indisvalid), ', '
            ORDER BY indexrelid::regclass::text)
        FROM pg_index WHERE indrelid = 'processed_events'::regclass)";
    let mut database = PgConnection::connect(url).await.unwrap();
    let row = sqlx::query(TABLE).fetch_one(&mut database).await.unwrap();
    (row.get(0), row.get(1))
}

const INDEXES: &str = "processed_events_pkey t, processed_events_sweep_after t";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_column_comes_without_a_rewrite_and_a_day_ahead() {
    let url = database_before(100).await;
    let (before, _) = table(&url).await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    let (after, indexes) = table(&url).await;
    assert_eq!(after.split(' ').next(), before.split(' ').next(), "the table was rewritten");
    assert_eq!(indexes, INDEXES);
    // A binary of the version before goes on.
    execute(
        &url,
        "INSERT INTO processed_events (team_id, event_id, processed_at, expires_at)
        VALUES ('T', 'theirs', now(), now() + interval '1 day')",
    )
    .await;
    assert_eq!(out_of_bounds(&url).await, Vec::<String>::new());
}

/// An operator of a large table prepares it, as the documentation says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn column_and_index_may_be_made_before_the_migration() {
    let page = include_str!("../../docs/operations/upgrade.md");
    let prepare: Vec<&str> = page
        .split("```sql\n")
        .filter_map(|block| block.split("```").next())
        .filter(|block| block.contains("sweep_after"))
        .flat_map(|block| block.split(";\n"))
        .filter(|statement| !statement.trim().is_empty())
        .collect();
    assert_eq!(prepare.len(), 4);
    let url = database_before(100).await;
    for statement in &prepare {
        execute(&url, statement).await;
    }
    let (before, _) = table(&url).await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    assert_eq!(table(&url).await, (before, INDEXES.to_owned()));

    // The index could not be finished.
    let url = database_before(100).await;
    for statement in &prepare {
        execute(&url, statement).await;
    }
    execute(
        &url,
        "SET allow_system_table_mods = on; UPDATE pg_index SET indisvalid = false
        WHERE indexrelid = 'processed_events_sweep_after'::regclass",
    )
    .await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    assert_eq!(table(&url).await.1, INDEXES);
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let marked = replica.client().await.mark_processed(mark("T", "1")).await.unwrap();
    assert!(!marked.into_inner().first);
}

#[tokio::test]
async fn a_sweep_finds_its_rows_by_the_index() {
    let url = new_database().await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    let mut database = PgConnection::connect(&url).await.unwrap();
    let sweeps = oncegate::store::postgres::STATEMENTS;
    let sweep = sweeps.iter().find(|text| text.contains("AS looked")).unwrap();
    database.execute(AssertSqlSafe(format!("PREPARE it AS {sweep}"))).await.unwrap();
    let fill = "INSERT INTO processed_events (team_id, event_id, processed_at, expires_at)
        SELECT 'T', n, now(), now() + interval '1 day' FROM generate_series(1, 20000) AS n";
    database.execute(fill).await.unwrap();
    database.execute("VACUUM ANALYZE processed_events").await.unwrap();
    for mode in ["force_generic_plan", "force_custom_plan"] {
        database.execute(AssertSqlSafe(format!("SET plan_cache_mode = {mode}"))).await.unwrap();
        let explain = "EXPLAIN EXECUTE it(NULL, 0, NULL, 1, 500)";
        let lines = sqlx::raw_sql(explain).fetch_all(&mut database).await.unwrap();
        let plan: Vec<String> = lines.iter().map(|line| line.get(0)).collect();
        let plan = plan.join("\n");
        assert!(plan.contains("Index Scan using processed_events_sweep_after"), "{mode}: {plan}");
        assert!(!plan.contains("Seq Scan on processed_events"), "{mode}: {plan}");
        assert_eq!(plan.matches("Tid Scan on processed_events").count(), 2, "{mode}: {plan}");
    }
}
