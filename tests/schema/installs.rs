//! Two installs in one database do not meet.

use std::time::Duration;

use oncegate::{
    domain::{SessionKey, Team},
    grpc::pb::{
        AcquireSessionLeaseResponse, CleanupRequest, acquire_session_lease_response::Outcome,
    },
    store::Clock,
};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgListener, query_scalar,
};

use super::{execute, refusal};
use crate::harness::{Replica, acquire, mark, postgres::new_database};

fn fence(answer: AcquireSessionLeaseResponse) -> Option<i64> {
    match answer.outcome {
        Some(Outcome::Lease(lease)) => Some(lease.fencing_token),
        _ => None,
    }
}

/// Deletes what the team has, whatever its age.
fn all_of_the_team() -> CleanupRequest {
    let older_than = Some(prost_types::Duration::default());
    CleanupRequest { team_id: "T".to_owned(), older_than, ..CleanupRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_leases_and_sweeps_of_two_schemas_do_not_meet() {
    let url = new_database().await;
    let public = Replica::start(&url, Clock::Store, &[]).await;
    let own = Replica::start(&url, Clock::Store, &["--database-schema", "bots"]).await;
    let (mut public, mut own) = (public.client().await, own.client().await);
    for client in [&mut public, &mut own] {
        let marked = client.mark_processed(mark("T", "x")).await.unwrap().into_inner();
        assert!(marked.first);
        let granted = client.acquire_session_lease(acquire("T", "S", "pod")).await.unwrap();
        assert!(fence(granted.into_inner()).is_some());
    }
    let sweep = all_of_the_team();
    own.cleanup(sweep).await.unwrap();
    assert!(own.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);
    assert!(!public.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);

    let mut database = PgConnection::connect(&url).await.unwrap();
    let tables = "SELECT string_agg(DISTINCT schemaname, ',' ORDER BY schemaname) FROM pg_tables
        WHERE tablename = ANY ('{processed_events,oncegate_sessions,oncegate_migrations}')";
    let schemas: String = query_scalar(tables).fetch_one(&mut database).await.unwrap();
    assert_eq!(schemas, "bots,public");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_of_two_schemas_are_others() {
    let url = new_database().await;
    let public = Replica::start(&url, Clock::Store, &[]).await;
    let own = Replica::start(&url, Clock::Store, &["--database-schema", "bots"]).await;
    // All advisory locks that a call takes in `public` are held by somebody else.
    let key = SessionKey { team: Team::stored("T"), session: "S".into() }.lock_key();
    let mut database = PgConnection::connect(&url).await.unwrap();
    for lock in [key, 0x6f6e_6365_6761_7465] {
        let hold = format!("SELECT pg_advisory_lock({lock})");
        database.execute(AssertSqlSafe(hold)).await.unwrap();
    }
    let granted = own.client().await.acquire_session_lease(acquire("T", "S", "pod")).await;
    assert!(fence(granted.unwrap().into_inner()).is_some());
    // While the other one waits for its own.
    let mut client = public.client().await;
    let waiting = client.acquire_session_lease(acquire("T", "S", "pod"));
    assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err());
    database.execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    let granted = client.acquire_session_lease(acquire("T", "S", "pod")).await.unwrap();
    assert!(fence(granted.into_inner()).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_schema_has_channels_of_its_own() {
    let url = new_database().await;
    let public = Replica::start(&url, Clock::Store, &[]).await;
    let own = Replica::start(&url, Clock::Store, &["--database-schema", "bots"]).await;
    let mut heard = PgListener::connect(&url).await.unwrap();
    heard.listen_all(["oncegate_invalidations", "oncegate_invalidations_bots"]).await.unwrap();
    for (replica, channel) in
        [(&own, "oncegate_invalidations_bots"), (&public, "oncegate_invalidations")]
    {
        let mut client = replica.client().await;
        client.mark_processed(mark("T", "x")).await.unwrap();
        let sweep = all_of_the_team();
        client.cleanup(sweep).await.unwrap();
        let notified = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await;
        assert_eq!(notified.unwrap().unwrap().channel(), channel);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_in_a_schema_hear_each_other() {
    let url = new_database().await;
    let flags = ["--database-schema", "bots"];
    let one = Replica::start(&url, Clock::Store, &flags).await;
    let two = Replica::start(&url, Clock::Store, &flags).await;
    let (mut here, mut there) = (one.client().await, two.client().await);
    assert!(here.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);
    assert!(!there.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);
    let held = here.acquire_session_lease(acquire("T", "S", "one")).await.unwrap().into_inner();
    assert!(fence(held).is_some());
    let busy = there.acquire_session_lease(acquire("T", "S", "two")).await.unwrap().into_inner();
    assert!(fence(busy).is_none());
}

#[tokio::test]
async fn a_schema_that_cannot_be_made_or_used_is_named() {
    let url = new_database().await;
    let flags = ["--database-schema", "bots", "--migrate", "false"];
    let why = refusal(&url, &flags).await;
    assert!(why.contains("has no schema that exists") && why.contains("oncegate migrate"), "{why}");

    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    execute(&url, &format!("CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET search_path = public"))
        .await;
    let (scheme, rest) = url.split_once("://").unwrap();
    let limited = format!("{scheme}://{role}@{}", rest.split_once('@').unwrap().1);
    let why = refusal(&limited, &flags[..2]).await;
    assert!(why.contains("cannot create the schema \"bots\": permission denied"), "{why}");
    execute(&url, &format!("DROP ROLE {role}")).await;

    // The name leaves no room for that of a channel.
    let long = "a".repeat(41);
    execute(&url, &format!("CREATE SCHEMA {long}")).await;
    let why = refusal(&format!("{url}?options=-c%20search_path={long}"), &[]).await;
    assert!(why.contains("at most 40 bytes"), "{why}");
}
