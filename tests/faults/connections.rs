//! Connections to PostgreSQL: lost without a sign while idle, ended, or too few.

use std::time::Duration;

use futures_util::future::join_all;
use oncegate::{
    grpc::pb::{
        CloseSessionRequest, ForceReleaseSessionLeaseRequest, ForgetEventRequest,
        admin_service_client::AdminServiceClient,
    },
    server::Server,
    store::Clock,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::timeout;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{calls::call_all, follow};
use crate::harness::{
    Replica, config, connect, event, mark,
    postgres::new_database,
    proxy::{Line, Proxy},
    session,
};

/// Longer than a connection is used without a check.
const IDLE: Duration = Duration::from_millis(2_100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_lost_while_idle_fail_no_call() {
    let url = new_database().await;
    let proxy = Proxy::start_for("oncegate", &url, Line::Open).await;
    // A call that waits for the timeout of its statement comes too late, however slow all else is.
    let timeouts = ["--store-timeout", "60s", "--call-timeout", "120s"];
    let flags = ["--probe-interval", "1h", "--duplicate-cache-entries", "0"];
    let replica = Replica::start(&proxy.url, Clock::Store, &[&flags[..], &timeouts].concat()).await;
    let call = |round: &'static str| timeout(Duration::from_secs(50), call_all(&replica, round));
    for round in ["before", "between", "after"] {
        call(round).await.unwrap().unwrap();
        tokio::time::sleep(IDLE).await;
        proxy.forget();
    }
    call("at last").await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_were_ended_fail_no_call() {
    const END: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE application_name = 'oncegate' AND datname = current_database()";
    let url = new_database().await;
    let replica = Replica::start(&url, Clock::Store, &["--probe-interval", "1h"]).await;
    let mut outside = PgConnection::connect(&url).await.unwrap();
    let mut admin = AdminServiceClient::new(connect(replica.server.address()).await);
    for round in 0..9 {
        call_all(&replica, &format!("round {round}")).await.unwrap();
        let mut client = replica.client().await;
        client.mark_processed(mark("T1", "kept")).await.unwrap();
        // Until they have gone.
        while sqlx::query_scalar::<_, i64>(END).fetch_one(&mut outside).await.unwrap() > 0 {}
        let (actor, reason) = ("operator".to_owned(), "to test".to_owned());
        let session = session("T1", "kept");
        // Each of the calls that carry no request id is the first.
        match round % 3 {
            0 => {
                let forget = ForgetEventRequest { event: event("T1", "kept"), actor, reason };
                assert!(admin.forget_event(forget).await.unwrap().into_inner().event.is_some());
            }
            1 => {
                let force = ForceReleaseSessionLeaseRequest { session, actor, reason };
                admin.force_release_session_lease(force).await.unwrap();
            }
            _ => {
                let close = CloseSessionRequest { session, actor, reason };
                admin.close_session(close).await.unwrap();
            }
        }
    }
}

/// A role that may have `limit` connections, and its own new database, for which the URL is.
async fn limited(limit: i64) -> (String, String) {
    let url = new_database().await;
    let role = url.rsplit('/').next().unwrap().to_owned();
    let sql = format!(
        "CREATE ROLE {role} LOGIN CONNECTION LIMIT {limit}; ALTER DATABASE {role} OWNER TO {role};
        ALTER SCHEMA public OWNER TO {role}"
    );
    let mut outside = PgConnection::connect(&url).await.unwrap();
    outside.execute(AssertSqlSafe(sql)).await.unwrap();
    let own = url.replacen("postgres@", &format!("{role}@"), 1);
    (url, own)
}

async fn connected(outside: &mut PgConnection) -> i64 {
    const COUNT: &str = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sqlx::query_scalar(COUNT).fetch_one(outside).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_works_wholly_with_few_connections() {
    // Without a limit: the most that it takes by itself.
    for (limit, most) in [(4, 4), (5, 5), (6, 6), (8, 8), (12, 10), (-1, 10)] {
        let (url, own) = limited(limit).await;
        let replica = Replica::start(&own, Clock::Store, &["--probe-interval", "50ms"]).await;
        follow(replica.server.address(), "readiness", ServingStatus::Serving).await;
        let mut outside = PgConnection::connect(&url).await.unwrap();
        for round in 0..3 {
            let names: Vec<String> = (0..24).map(|number| format!("{round} {number}")).collect();
            let calls = join_all(names.iter().map(|name| call_all(&replica, name))).await;
            for call in calls {
                call.unwrap_or_else(|error| panic!("{limit} connections: {error:?}"));
            }
            // One more for the moment in which a listener begins.
            let count = connected(&mut outside).await;
            assert!(count <= most + i64::from(most > 9), "{limit}: {count} connections");
        }
        follow(replica.server.address(), "readiness", ServingStatus::Serving).await;
        replica.server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_connections_are_refused_at_start() {
    let (_, own) = limited(3).await;
    let Err(refused) = Server::start(config(&own, &[]), Clock::Store).await else {
        panic!("it started");
    };
    let refused = format!("{refused:#}");
    assert!(refused.contains("needs at least 4 connections"), "{refused}");
    assert!(refused.contains("the role's CONNECTION LIMIT is 3"), "{refused}");
}

/// A connection of a start that was closed counts until its backend has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_starts_with_the_last_connection() {
    let (_, own) = limited(5).await;
    let start = || Server::start(config(&own, &["--duplicate-cache-entries", "0"]), Clock::Store);
    start().await.unwrap().stop().await.unwrap();
    let held = join_all((0..4).map(|_| PgConnection::connect(&own))).await;
    assert!(held.iter().all(Result::is_ok));
    for round in 0..5 {
        let server = start().await.unwrap_or_else(|error| panic!("{round}: {error:#}"));
        server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_off_while_a_connection_that_is_needed_is_refused() {
    let (url, own) = limited(20).await;
    let flags = ["--probe-interval", "50ms", "--duplicate-cache-entries", "0", "--writers", "1"];
    let replica = Replica::start(&own, Clock::Store, &flags).await;
    let address = replica.server.address();
    let mut client = replica.client().await;
    client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    follow(address, "readiness", ServingStatus::Serving).await;
    let mut outside = PgConnection::connect(&url).await.unwrap();
    let role = url.rsplit('/').next().unwrap();
    let limit = |most: u32| AssertSqlSafe(format!("ALTER ROLE {role} CONNECTION LIMIT {most}"));
    outside.execute(limit(1)).await.unwrap();
    assert!(call_all(&replica, "refused").await.is_err());
    follow(address, "readiness", ServingStatus::NotServing).await;
    follow(address, "oncegate.v1.TurnService", ServingStatus::NotServing).await;
    // It goes on saying so, also where other connections serve.
    client.mark_processed(mark("T1", "Ev2")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    follow(address, "readiness", ServingStatus::NotServing).await;
    outside.execute(limit(20)).await.unwrap();
    follow(address, "readiness", ServingStatus::Serving).await;
    call_all(&replica, "served").await.unwrap();
}
