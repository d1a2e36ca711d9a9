//! A guard against getting slower that no noisy machine can set off: how many
//! statements the work takes, counted by the database itself.

use oncegate::{
    grpc::pb::{
        AcquireSessionLeaseRequest, BatchMarkProcessedRequest, BeginTurnRequest, CleanupRequest,
        FinishTurnRequest, IsProcessedRequest, RenewTurnRequest, TurnOutcome as Ends,
        begin_turn_response::Outcome, turn_service_client::TurnServiceClient,
    },
    store::Clock,
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tonic::transport::Channel;

use crate::harness::{
    Client, Replica, acquire, connect, event, granted, held, mark, postgres::new_database, release,
    renew, seconds, session,
};

/// Counts every statement that writes: an upsert counts twice, as the insert
/// and the update that it may be.
const COUNT: &str = "
CREATE SEQUENCE statements MINVALUE 0 START 0;
SELECT nextval('statements');
CREATE FUNCTION count_statement() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN PERFORM nextval('statements'); RETURN NULL; END $$;
CREATE TRIGGER counted AFTER INSERT OR UPDATE OR DELETE ON processed_events
    FOR EACH STATEMENT EXECUTE FUNCTION count_statement();
CREATE TRIGGER counted AFTER INSERT OR UPDATE ON oncegate_sessions
    FOR EACH STATEMENT EXECUTE FUNCTION count_statement();
";

/// One lane for each kind of work, and no probe, which writes too.
const ONE_LANE: [&str; 8] = [
    "--workers",
    "1",
    "--writers",
    "1",
    "--duplicate-cache-entries",
    "0",
    "--probe-interval",
    "1h",
];

async fn counted(database: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT last_value FROM statements").fetch_one(database).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_marks_and_free_sessions_take_one_statement_each_batch() {
    let url = new_database().await;
    let replica = Replica::start(&url, Clock::Store, &ONE_LANE).await;
    let mut client = replica.client().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    database.execute(COUNT).await.unwrap();

    assert!(client.mark_processed(mark("T1", "lone")).await.unwrap().into_inner().first);
    assert_eq!(counted(&mut database).await, 1, "a lone mark");

    let requests = (0..1_000).map(|number| mark("T1", &format!("Ev{number}"))).collect();
    let batch = BatchMarkProcessedRequest { requests };
    client.batch_mark_processed(batch.clone()).await.unwrap();
    assert_eq!(counted(&mut database).await, 2, "a thousand marks");

    // The insert finds them taken; then they are read, and nothing is written.
    client.batch_mark_processed(batch).await.unwrap();
    assert_eq!(counted(&mut database).await, 3, "a thousand duplicates");

    let lease = client.acquire_session_lease(acquire("T1", "s", "bot")).await.unwrap();
    assert_eq!(counted(&mut database).await, 5, "a free session's lease: one upsert");
    client.release_session_lease(release(&granted(lease.into_inner()))).await.unwrap();
    assert_eq!(counted(&mut database).await, 6, "its release");
}

/// A plan lives as long as its connection, and is made while the tables are
/// small: then the planner would read them whole, for ever after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_found_by_key_even_where_the_tables_were_empty() {
    const READ_WHOLE: &str = "SELECT sum(seq_scan)::bigint FROM pg_stat_user_tables
        WHERE relname IN ('processed_events', 'oncegate_sessions', 'oncegate_waiters')";
    const FOUND: &str = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes
        WHERE relname IN ('processed_events', 'oncegate_sessions', 'oncegate_waiters')";
    const FILL: [&str; 3] = [
        "INSERT INTO processed_events (team_id, event_id, processed_at, expires_at)
            SELECT 'T1', n, now(), now() + interval '1 day' FROM generate_series(1, 10000) AS n",
        "INSERT INTO oncegate_sessions (team_id, session_id, fencing_token, lease_id, request_id,
                holder, labels, acquired_at, expires_at)
            SELECT 'T1', n, 1, gen_random_uuid(), gen_random_uuid(), '', '{}', now(), now()
            FROM generate_series(1, 10000) AS n",
        "INSERT INTO oncegate_waiters (team_id, session_id, lease_id, request_id, holder, labels,
                ttl_micros, replica)
            SELECT 'T1', n, gen_random_uuid(), gen_random_uuid(), '', '{}', 1, gen_random_uuid()
            FROM generate_series(1, 10000) AS n",
    ];
    const ALONE: &str = "SELECT count(*) = 1 FROM pg_stat_activity
        WHERE datname = current_database()";
    let url = new_database().await;
    let replica = Replica::start(&url, Clock::Store, &ONE_LANE).await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    database.execute("VACUUM ANALYZE processed_events").await.unwrap();
    database.execute("VACUUM ANALYZE oncegate_sessions").await.unwrap();
    database.execute("VACUUM ANALYZE oncegate_waiters").await.unwrap();
    let before: i64 = sqlx::query_scalar(READ_WHOLE).fetch_one(&mut database).await.unwrap();

    let mut client = replica.client().await;
    let mut turns = TurnServiceClient::new(connect(replica.server.address()).await);
    // PostgreSQL keeps a plan from the sixth time on.
    for round in 0..20 {
        if round == 10 {
            for fill in FILL {
                database.execute(fill).await.unwrap();
            }
        }
        let lone = mark("T1", &format!("lone{round}"));
        client.mark_processed(lone.clone()).await.unwrap();
        client.mark_processed(lone.clone()).await.unwrap();
        client
            .is_processed(IsProcessedRequest { event: lone.event, ..Default::default() })
            .await
            .unwrap();
        let lease = client.acquire_session_lease(acquire("T1", "s", "bot")).await.unwrap();
        let lease = granted(lease.into_inner());
        held(client.acquire_session_lease(acquire("T1", "s", "other")).await.unwrap().into_inner());
        client.renew_session_lease(renew(&lease)).await.unwrap();
        // One who waits in vain, and one who does not.
        let brief = prost_types::Duration { seconds: 0, nanos: 1 };
        let waiting = |wait| AcquireSessionLeaseRequest { wait, ..acquire("T1", "s", "waiter") };
        let vain = client.acquire_session_lease(waiting(Some(brief))).await.unwrap();
        held(vain.into_inner());
        let mut waiter = client.clone();
        let request = waiting(seconds(60));
        let waiter = tokio::spawn(async move { waiter.acquire_session_lease(request).await });
        while queue(&mut client).await == 0 {}
        client.release_session_lease(release(&lease)).await.unwrap();
        let lease = granted(waiter.await.unwrap().unwrap().into_inner());
        client.release_session_lease(release(&lease)).await.unwrap();
        client.release_session_lease(release(&lease)).await.unwrap();
        for outcome in [Ends::Succeeded, Ends::Failed] {
            take_turn(&mut turns, &format!("turn{round}"), outcome).await;
            take_turn(&mut turns, &format!("turn{round}"), outcome).await;
        }
    }
    drop((client, turns));
    replica.server.stop().await.unwrap();
    // A backend tells its counts at the latest when it ends.
    while !sqlx::query_scalar::<_, bool>(ALONE).fetch_one(&mut database).await.unwrap() {
        tokio::task::yield_now().await;
    }
    let after: i64 = sqlx::query_scalar(READ_WHOLE).fetch_one(&mut database).await.unwrap();
    assert_eq!(after, before, "reads of a whole table");
    let found: i64 = sqlx::query_scalar(FOUND).fetch_one(&mut database).await.unwrap();
    assert!(found < 10_000, "{found} entries of an index were read");
}

/// Begins a turn if it may, renews and ends it.
async fn take_turn(turns: &mut TurnServiceClient<Channel>, id: &str, outcome: Ends) {
    let begin = BeginTurnRequest {
        event: event("T1", &format!("{id}{outcome:?}")),
        session: session("T1", "turns"),
        holder: "run".into(),
        ..Default::default()
    };
    let answer = turns.begin_turn(begin).await.unwrap().into_inner();
    if let Some(Outcome::Granted(granted)) = answer.outcome {
        let turn_id = granted.turn.unwrap().turn_id;
        let renew = RenewTurnRequest { turn_id: turn_id.clone(), ..Default::default() };
        turns.renew_turn(renew).await.unwrap();
        let finish = FinishTurnRequest { turn_id, outcome: outcome.into(), ..Default::default() };
        turns.finish_turn(finish).await.unwrap();
    }
}

/// How many wait.
async fn queue(client: &mut Client) -> i32 {
    let answer = client.acquire_session_lease(acquire("T1", "s", "other")).await.unwrap();
    held(answer.into_inner()).queue_length
}

/// A sweep takes small bites where a replica has other work for the database, and
/// large ones where none has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_leaves_room_for_other_work() {
    const FILL: &str = "INSERT INTO processed_events
            (team_id, event_id, processed_at, expires_at, sweep_after)
        SELECT 'T1', 'old' || n, now() - interval '2 days', now() - interval '1 day', now()
        FROM generate_series(1, 10000) AS n";
    let url = new_database().await;
    let replica = Replica::start(&url, Clock::Store, &["--probe-interval", "1h"]).await;
    let mut client = replica.client().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let mut statements = async |client: &mut Client| {
        database.execute(FILL).await.unwrap();
        let before = counted(&mut database).await;
        let swept = client.cleanup(CleanupRequest::default()).await.unwrap().into_inner();
        assert_eq!(swept.deleted_events, 10_000);
        counted(&mut database).await - before
    };
    let mut other = PgConnection::connect(&url).await.unwrap();
    other.execute(COUNT).await.unwrap();

    let alone = statements(&mut client).await;
    assert!(alone < 20, "{alone} statements, and nobody else had work");

    other.execute("SET application_name = 'oncegate'").await.unwrap();
    let work = tokio::spawn(async move { other.execute("SELECT pg_sleep(600)").await.is_ok() });
    let shared = statements(&mut client).await;
    assert!(shared >= 20, "{shared} statements beside others' work");
    work.abort();
}
