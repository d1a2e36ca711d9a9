//! The roles of `docs/security.md`, with the SQL of the document itself: the role of the service can do
//! what the service does, and nothing to the schema.

use std::{fs, path::Path, time::Duration};

use futures_util::stream;
use oncegate::{
    domain::FencingToken,
    grpc::pb::{
        BatchMarkProcessedRequest, BeginTurnRequest, BindEpicRequest, CheckSessionLeaseRequest,
        CleanupRequest, CloseSessionRequest, FinishTurnRequest, ForceReleaseSessionLeaseRequest,
        ForgetEventRequest, GetSessionRequest, GetStatsRequest, HoldSessionLeaseRequest,
        IsProcessedRequest, ListEventsRequest, ListSessionsRequest, RenewTurnRequest,
        RunTurnRequest, TurnEnd, TurnOutcome, admin_service_client::AdminServiceClient,
        begin_turn_response::Outcome, hold_session_lease_response::News as HoldNews,
        run_turn_request::Step, run_turn_response::News as RunNews,
        turn_service_client::TurnServiceClient,
    },
    server,
    store::Clock,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use super::refusal;
use crate::harness::{
    Replica, acquire, config, connect, event, execute, granted, mark, metrics::metric,
    postgres::Cluster, release, renew, seconds, session,
};

const FLAGS: [&str; 4] = ["--migrate", "false", "--database-schema", "oncegate"];

/// The block of SQL in the document after a comment that names it.
fn block(name: &str) -> String {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let document = fs::read_to_string(document).unwrap();
    let (_, rest) = document.split_once(&format!("<!-- roles: {name} -->\n```sql\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// The URL for a role.
fn of_role(url: &str, role: &str) -> String {
    url.replace("postgres@", &format!("oncegate_{role}@"))
}

/// A cluster with the roles of the document, and the tables.
async fn prepared() -> (Cluster, String) {
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let url = cluster.url();
    execute(&url, &block("before")).await;
    let owner = of_role(&url, "owner");
    let schema = ["--database-schema", "oncegate"];
    server::migrate(&config(&owner, &schema).store).await.unwrap();
    execute(&owner, &block("after")).await;
    (cluster, url)
}

/// The SQLSTATE that a statement fails with; none if it succeeds.
async fn refused(database: &mut PgConnection, sql: &str) -> Option<String> {
    let error = database.execute(AssertSqlSafe(sql.to_owned())).await.err()?;
    Some(error.as_database_error().unwrap().code().unwrap().into_owned())
}

/// Every kind of operation, each of which must succeed, over two replicas.
async fn operate(here: &Replica, there: &Replica) {
    let (mut client, mut other) = (here.client().await, there.client().await);
    // Marks.
    assert!(client.mark_processed(mark("T", "e1")).await.unwrap().into_inner().first);
    assert!(!other.mark_processed(mark("T", "e1")).await.unwrap().into_inner().first);
    let requests = (0..20).map(|number| mark("T", &format!("b{number}"))).collect();
    let batch = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await.unwrap();
    let results = batch.into_inner().results;
    assert!(results.iter().all(|one| format!("{one:?}").contains("first: true")), "{results:?}");
    let asked = IsProcessedRequest { event: event("T", "b1"), ..Default::default() };
    assert!(client.is_processed(asked).await.unwrap().into_inner().processed);

    // Leases, and a waiter on another replica, which is notified.
    let lease =
        granted(client.acquire_session_lease(acquire("T", "s", "a")).await.unwrap().into_inner());
    let mut waiting = acquire("T", "s", "b");
    waiting.wait = seconds(60);
    let waiter = tokio::spawn(async move {
        let answer = other.acquire_session_lease(waiting).await.unwrap();
        let lease = granted(answer.into_inner());
        other.release_session_lease(release(&lease)).await.unwrap();
    });
    metric(there, "oncegate_session_waiters 1").await;
    client.renew_session_lease(renew(&lease)).await.unwrap();
    let check =
        CheckSessionLeaseRequest { session: session("T", "s"), fencing_token: lease.fencing_token };
    assert!(client.check_session_lease(check).await.unwrap().into_inner().current);
    client.release_session_lease(release(&lease)).await.unwrap();
    tokio::time::timeout(Duration::from_mins(1), waiter).await.unwrap().unwrap();

    // Turns.
    let mut turns = TurnServiceClient::new(connect(here.server.address()).await);
    for (id, end) in
        [("t1", TurnOutcome::Succeeded), ("t2", TurnOutcome::Failed), ("t3", TurnOutcome::Rejected)]
    {
        let begin = BeginTurnRequest {
            event: event("T", id),
            session: session("T", "turns"),
            holder: "a".into(),
            ..Default::default()
        };
        let outcome = turns.begin_turn(begin).await.unwrap().into_inner().outcome.unwrap();
        let Outcome::Granted(granted) = outcome else { panic!("{outcome:?}") };
        let turn_id = granted.turn.unwrap().turn_id;
        let renewal = RenewTurnRequest { turn_id: turn_id.clone(), ..Default::default() };
        turns.renew_turn(renewal).await.unwrap();
        let outcome = end.into();
        let finish = FinishTurnRequest { turn_id, outcome, ..Default::default() };
        turns.finish_turn(finish).await.unwrap();
    }

    hold_and_run(here).await;
    administer(here).await;
    for older_than in [None, seconds(0)] {
        let sweep = CleanupRequest { team_id: "T".into(), older_than, ..Default::default() };
        client.cleanup(sweep).await.unwrap();
    }
}

/// A lease and a turn that live as long as their calls.
async fn hold_and_run(here: &Replica) {
    let mut client = here.client().await;
    let hold = HoldSessionLeaseRequest {
        session: session("T", "held"),
        holder: "a".into(),
        ..Default::default()
    };
    let mut stream = client.hold_session_lease(hold).await.unwrap().into_inner();
    let news = stream.message().await.unwrap().unwrap().news;
    assert!(matches!(news, Some(HoldNews::Granted(_))), "{news:?}");
    drop(stream);
    // The server releases it, which the next one waits for.
    let mut waiting = acquire("T", "held", "b");
    waiting.wait = seconds(60);
    granted(client.acquire_session_lease(waiting).await.unwrap().into_inner());

    let begin = BeginTurnRequest {
        event: event("T", "run"),
        session: session("T", "run"),
        holder: "a".into(),
        ..Default::default()
    };
    let end = TurnEnd { outcome: TurnOutcome::Succeeded.into(), ..Default::default() };
    let steps = [Step::Begin(begin), Step::End(end)];
    let steps = steps.map(|step| RunTurnRequest { step: Some(step) });
    let mut turns = TurnServiceClient::new(connect(here.server.address()).await);
    let mut run = turns.run_turn(stream::iter(steps)).await.unwrap().into_inner();
    let mut news = Vec::new();
    while let Some(message) = run.message().await.unwrap() {
        news.push(message.news.unwrap());
    }
    assert!(matches!(news[..], [RunNews::Granted(_), RunNews::Finished(_)]), "{news:?}");
}

async fn administer(here: &Replica) {
    let mut client = here.client().await;
    client.acquire_session_lease(acquire("T", "admin", "a")).await.unwrap();
    let mut admin = AdminServiceClient::new(connect(here.server.address()).await);
    let found = || session("T", "admin");
    let (actor, reason) = (|| "ops".to_owned(), || "test".to_owned());
    admin.get_session(GetSessionRequest { session: found() }).await.unwrap();
    admin.list_sessions(ListSessionsRequest::default()).await.unwrap();
    admin.list_events(ListEventsRequest::default()).await.unwrap();
    admin.get_stats(GetStatsRequest::default()).await.unwrap();
    let bind = BindEpicRequest {
        session: found(),
        epic_id: "PROJ-1".into(),
        actor: actor(),
        reason: reason(),
    };
    admin.bind_epic(bind).await.unwrap();
    let force =
        ForceReleaseSessionLeaseRequest { session: found(), actor: actor(), reason: reason() };
    admin.force_release_session_lease(force).await.unwrap();
    let close = CloseSessionRequest { session: found(), actor: actor(), reason: reason() };
    admin.close_session(close).await.unwrap();
    let forget = ForgetEventRequest { event: event("T", "e1"), actor: actor(), reason: reason() };
    admin.forget_event(forget).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_does_all_its_work_with_the_privileges_of_the_document() {
    let (_cluster, url) = prepared().await;
    let service = of_role(&url, "service");
    let sweep = ["--sweep-interval", "50ms", "--ops-listen", "127.0.0.1:0"];
    let flags = [&FLAGS[..], &sweep].concat();
    let here = Replica::start(&service, Clock::Store, &flags).await;
    let there = Replica::start(&service, Clock::Store, &flags).await;
    // They listen to each other.
    metric(&here, "oncegate_duplicate_cache_in_use 1").await;
    metric(&there, "oncegate_duplicate_cache_in_use 1").await;
    operate(&here, &there).await;

    // The sweeper deletes what has expired by then.
    let mut database = PgConnection::connect(&of_role(&url, "owner")).await.unwrap();
    let gone = "INSERT INTO oncegate.processed_events (team_id, event_id, processed_at, expires_at,
        sweep_after) VALUES ('T', 'old', now() - interval '3 days', now() - interval '2 days',
        now() - interval '1 day')";
    database.execute(gone).await.unwrap();
    let left = "SELECT count(*) FROM oncegate.processed_events WHERE event_id = 'old'";
    let swept = async {
        while sqlx::query_scalar::<_, i64>(left).fetch_one(&mut database).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), swept).await.unwrap();
    metric(&here, "oncegate_store_up 1").await;

    let settings = config(&service, &FLAGS).store;
    let fence = server::fence(&settings).await.unwrap();
    let floor = FencingToken(fence.floor.0 + 1);
    assert_eq!(server::raise_fence(&settings, floor).await.unwrap().floor, floor);
    let monitor = config(&of_role(&url, "monitor"), &FLAGS).store;
    assert_eq!(server::fence(&monitor).await.unwrap().floor, floor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_role_but_the_owner_can_change_the_schema() {
    let (_cluster, url) = prepared().await;
    let mut service = PgConnection::connect(&of_role(&url, "service")).await.unwrap();
    service.execute("SET search_path = oncegate").await.unwrap();
    for sql in [
        "ALTER TABLE processed_events ADD COLUMN x text",
        "ALTER TABLE oncegate_sessions DISABLE TRIGGER ALL",
        "DROP TABLE oncegate_waiters",
        "DROP SCHEMA oncegate CASCADE",
        "TRUNCATE processed_events",
        "TRUNCATE oncegate_sessions",
        "CREATE TABLE x (y text)",
        "CREATE TABLE public.x (y text)",
        "CREATE INDEX x ON processed_events (team_id)",
        "CREATE FUNCTION x() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE TRIGGER x BEFORE INSERT ON processed_events EXECUTE FUNCTION pg_notify()",
        "UPDATE oncegate_migrations SET success = false",
        "INSERT INTO oncegate_migrations SELECT * FROM oncegate_migrations",
        "DELETE FROM oncegate_migrations",
        "DELETE FROM oncegate_fence",
        "INSERT INTO oncegate_fence (floor) VALUES (0)",
        "SELECT setval('oncegate_tickets', 1)",
        "ALTER SEQUENCE oncegate_tickets RESTART",
        "GRANT SELECT ON processed_events TO oncegate_service",
        "SET ROLE oncegate_owner",
    ] {
        let state = refused(&mut service, sql).await;
        let is_refused = matches!(state.as_deref(), Some("42501" | "42883"));
        // Without the right to grant, GRANT is a warning and grants nothing.
        let is_void = sql.starts_with("GRANT") && state.is_none();
        assert!(is_refused || is_void, "{sql}: {state:?}");
    }

    // What the next migration creates, the service can use.
    let mut owner = PgConnection::connect(&of_role(&url, "owner")).await.unwrap();
    owner.execute("CREATE TABLE oncegate.next (id bigserial, x text)").await.unwrap();
    for sql in ["INSERT INTO next (x) VALUES ('a')", "DELETE FROM next"] {
        assert_eq!(refused(&mut service, sql).await, None, "{sql}");
    }
    assert_eq!(refused(&mut service, "TRUNCATE next").await.as_deref(), Some("42501"));

    let mut monitor = PgConnection::connect(&of_role(&url, "monitor")).await.unwrap();
    monitor.execute("SET search_path = oncegate").await.unwrap();
    for sql in [
        "SELECT count(*) FROM processed_events",
        "SELECT session_id, holder FROM oncegate_sessions",
        "SELECT ticket FROM oncegate_waiters",
        "SELECT floor FROM oncegate_fence",
    ] {
        assert_eq!(refused(&mut monitor, sql).await, None, "{sql}");
    }
    for sql in [
        "SELECT result FROM processed_events",
        "SELECT request_id FROM processed_events",
        "SELECT lease_id FROM oncegate_sessions",
        "SELECT labels FROM oncegate_sessions",
        "SELECT lease_id FROM oncegate_waiters",
        "DELETE FROM processed_events",
        "UPDATE oncegate_fence SET floor = 0",
        "TRUNCATE oncegate_waiters",
    ] {
        assert_eq!(refused(&mut monitor, sql).await.as_deref(), Some("42501"), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_is_missing_is_named_at_startup() {
    let (_cluster, url) = prepared().await;
    let (owner, service) = (of_role(&url, "owner"), of_role(&url, "service"));
    for privilege in [
        "SELECT ON processed_events",
        "INSERT ON processed_events",
        "UPDATE ON oncegate_sessions",
        "DELETE ON oncegate_waiters",
        "INSERT ON oncegate_replicas",
        "UPDATE ON oncegate_fence",
        "USAGE ON SEQUENCE oncegate_tickets",
        "SELECT ON oncegate_migrations",
    ] {
        let change = |verb: &str, whom: &str| {
            format!("SET search_path = oncegate; {verb} {privilege} {whom} oncegate_service")
        };
        execute(&owner, &change("REVOKE", "FROM")).await;
        let why = refusal(&service, &FLAGS).await;
        let grant = format!("GRANT {privilege} TO ");
        assert!(why.contains(&grant) && why.contains("oncegate_service"), "{privilege}: {why}");
        execute(&owner, &change("GRANT", "TO")).await;
    }
    // The schema itself.
    execute(&owner, "REVOKE USAGE ON SCHEMA oncegate FROM oncegate_service").await;
    let why = refusal(&service, &FLAGS).await;
    assert!(why.contains("GRANT USAGE ON SCHEMA"), "{why}");
    execute(&owner, "GRANT USAGE ON SCHEMA oncegate TO oncegate_service").await;
    Replica::start(&service, Clock::Store, &FLAGS).await;
}
