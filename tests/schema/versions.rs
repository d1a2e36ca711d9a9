//! Which schema a binary starts on, and how an older one becomes its own.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use oncegate::{grpc::pb::CheckSessionLeaseRequest, server, store::Clock};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, migrate::Migration, query,
};

use super::{execute, refusal};
use crate::harness::{Replica, config, mark, postgres::new_database, sqlite_url};

/// The migrations of a database that was made while the tables still had the names that an
/// application may have: 0001, 0005 and 0006 are as they were.
pub(super) async fn migrate_with_shared_names(url: &str) {
    const TABLE: &str = "CREATE TABLE oncegate_migrations (
        version BIGINT PRIMARY KEY, description TEXT NOT NULL,
        installed_on TIMESTAMPTZ NOT NULL DEFAULT now(), success BOOLEAN NOT NULL,
        checksum BYTEA NOT NULL, execution_time BIGINT NOT NULL)";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let today = root.join("migrations/postgres");
    let before = root.join("tests/data/migrations_with_shared_names");
    let mut database = PgConnection::connect(url).await.unwrap();
    database.execute(TABLE).await.unwrap();
    for (version, name) in [
        (1, "processed_events"),
        (2, "sessions"),
        (3, "session_queue"),
        (4, "queue_upkeep"),
        (5, "turns"),
        (6, "event_names"),
    ] {
        let file = format!("{version:04}_{name}.sql");
        let text = fs::read_to_string(before.join(&file))
            .unwrap_or_else(|_| fs::read_to_string(today.join(&file)).unwrap());
        let text = AssertSqlSafe(text);
        let migration = Migration::new(
            version,
            name.into(),
            sqlx::migrate::MigrationType::Simple,
            sqlx::SqlSafeStr::into_sql_str(text),
            false,
        );
        let mut transaction = database.begin().await.unwrap();
        transaction.execute(migration.sql.clone()).await.unwrap();
        query("INSERT INTO oncegate_migrations VALUES ($1, $2, now(), true, $3, 0)")
            .bind(version)
            .bind(name)
            .bind(&*migration.checksum)
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    }
}

#[tokio::test]
async fn a_database_with_the_tables_former_names_keeps_its_rows_and_leases() {
    let url = new_database().await;
    migrate_with_shared_names(&url).await;
    execute(
        &url,
        "INSERT INTO processed_events (team_id, event_id) VALUES ('T', 'old');
        INSERT INTO sessions (team_id, session_id, fencing_token, lease_id, request_id, holder,
            labels, acquired_at, expires_at)
        VALUES ('T', 'S', nextval('session_fencing_tokens'), gen_random_uuid(),
            gen_random_uuid(), 'pod-1', '{}', now(), now() + interval '10 minutes')",
    )
    .await;
    let why = refusal(&url, &["--migrate", "false"]).await;
    assert!(why.contains("lacks migrations [7") && why.contains("run `oncegate migrate`"), "{why}");

    for migrate in ["true", "false"] {
        let replica = Replica::start(&url, Clock::Store, &["--migrate", migrate]).await;
        let mut client = replica.client().await;
        let old = client.mark_processed(mark("T", "old")).await.unwrap().into_inner();
        assert!(!old.first, "the row is kept");
        let ask = CheckSessionLeaseRequest {
            session: crate::harness::session("T", "S"),
            fencing_token: 1,
        };
        let check = client.check_session_lease(ask).await.unwrap().into_inner();
        assert!(check.current, "the lease is kept: {check:?}");
        replica.server.stop().await.unwrap();
    }
    let mut database = PgConnection::connect(&url).await.unwrap();
    let left: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
            AND relname !~ '^(oncegate|processed_events)'",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    assert_eq!(left, Vec::<String>::new(), "nothing has a name that an application may have");
}

#[tokio::test]
async fn former_names_are_not_given_up_for_a_name_that_is_taken() {
    let url = new_database().await;
    migrate_with_shared_names(&url).await;
    execute(&url, "CREATE TABLE oncegate_sessions (id bigint)").await;
    let why = refusal(&url, &[]).await;
    assert!(why.contains("\"oncegate_sessions\" already exists"), "{why}");
    assert!(why.contains("Nothing was changed") && why.contains("--database-schema"), "{why}");
    // As it was.
    execute(&url, "SELECT lease_id FROM sessions; SELECT id FROM oncegate_sessions").await;
}

/// As the binaries before the rule left it.
#[tokio::test]
async fn a_database_without_the_column_is_used_and_given_it() {
    let directory = tempfile::tempdir().unwrap();
    for url in [new_database().await, sqlite_url(&directory)] {
        server::migrate(&config(&url, &[]).store).await.unwrap();
        execute(&url, "ALTER TABLE oncegate_migrations DROP COLUMN min_reader").await;
        for migrate in ["false", "true", "false"] {
            let replica = Replica::start(&url, Clock::Store, &["--migrate", migrate]).await;
            replica.server.stop().await.unwrap();
        }
        execute(&url, "DELETE FROM oncegate_migrations WHERE min_reader = version").await;
        let why = refusal(&url, &["--migrate", "false"]).await;
        assert!(why.contains("lacks migrations [1, 2"), "{why}");
    }
}

/// A migration of a later version, which has run.
async fn newer_migration(url: &str, version: u32, min_reader: u32, change: &str) {
    execute(
        url,
        &format!(
            "{change}; INSERT INTO oncegate_migrations
                (version, description, success, checksum, execution_time, min_reader)
            VALUES ({version}, 'newer', true, 'x', 0, {min_reader})"
        ),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_schema_is_used_if_it_says_so_and_refused_if_not() {
    const EXPAND: &str = "ALTER TABLE processed_events ADD COLUMN newer text";
    let directory = tempfile::tempdir().unwrap();
    for url in [new_database().await, sqlite_url(&directory)] {
        server::migrate(&config(&url, &[]).store).await.unwrap();
        newer_migration(&url, 1001, 1, EXPAND).await;
        for (number, migrate) in ["true", "false"].into_iter().enumerate() {
            let replica = Replica::start(&url, Clock::Store, &["--migrate", migrate]).await;
            let mut client = replica.client().await;
            let event = format!("Ev{number}");
            assert!(client.mark_processed(mark("T", &event)).await.unwrap().into_inner().first);
            replica.server.stop().await.unwrap();
        }
        newer_migration(&url, 1002, 1002, "SELECT 1").await;
        for migrate in ["true", "false"] {
            let why = refusal(&url, &["--migrate", migrate]).await;
            for part in
                ["older than its database", "1002", env!("CARGO_PKG_VERSION"), "Run a newer"]
            {
                assert!(why.contains(part), "{part:?} is not in {why}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compatible_migration_runs_while_a_replica_serves() {
    let url = new_database().await;
    let old = Replica::start(&url, Clock::Store, &[]).await;
    let mut clients = join_all((0..4).map(|_| old.client())).await;
    let (marks, is_done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let load = clients.iter_mut().enumerate().map(async |(caller, client)| {
        // Before the migration, during it, and once after it.
        let mut is_last = false;
        for number in 0.. {
            let event = format!("Ev{caller}-{number}");
            let marked = client.mark_processed(mark("T", &event)).await;
            assert!(marked.unwrap().into_inner().first, "{event}");
            marks.fetch_add(1, Ordering::Relaxed);
            if is_last {
                break;
            }
            is_last = is_done.load(Ordering::Relaxed);
        }
    });
    let expand = async {
        while marks.load(Ordering::Relaxed) < 40 {
            tokio::task::yield_now().await;
        }
        let change = "ALTER TABLE processed_events ADD COLUMN newer text";
        newer_migration(&url, 1001, 1, change).await;
        is_done.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(load), expand);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_migrate_at_once_and_none_fails() {
    let url = new_database().await;
    let settings = config(&url, &[]).store;
    let done = join_all((0..12).map(|_| server::migrate(&settings))).await;
    for result in done {
        result.unwrap();
    }
    let mut database = PgConnection::connect(&url).await.unwrap();
    let locks: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database =
            (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .fetch_one(&mut database)
    .await
    .unwrap();
    assert_eq!(locks, 0, "no lock outlives its migration");
}

/// A role of the test's own, and the URL by which it connects.
async fn new_role(url: &str, grants: &str) -> (String, String) {
    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    execute(url, &format!("CREATE ROLE {role} LOGIN; {}", grants.replace("ROLE", &role))).await;
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, host) = rest.split_once('@').unwrap();
    (format!("{scheme}://{role}@{host}"), role)
}

#[tokio::test]
async fn a_role_that_may_not_read_the_migrations_is_named() {
    let url = new_database().await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    let (limited, role) = new_role(&url, "").await;
    for migrate in ["true", "false"] {
        let why = refusal(&limited, &["--migrate", migrate]).await;
        let grant = format!("GRANT SELECT ON oncegate_migrations TO \"{role}\"");
        assert!(why.contains("may not read oncegate_migrations") && why.contains(&grant), "{why}");
    }
    execute(&url, &format!("GRANT SELECT ON oncegate_migrations TO \"{role}\"")).await;
    // An up-to-date schema needs no further privilege to migrate.
    server::migrate(&config(&limited, &[]).store).await.unwrap();
    let data = "SELECT, INSERT, UPDATE, DELETE ON processed_events, oncegate_sessions, \
        oncegate_waiters, oncegate_replicas";
    let others = "SELECT, UPDATE ON oncegate_fence";
    for grant in [data, others, "USAGE ON SEQUENCE oncegate_tickets"] {
        execute(&url, &format!("GRANT {grant} TO \"{role}\"")).await;
    }
    Replica::start(&limited, Clock::Store, &[]).await;
    execute(&url, &format!("DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\"")).await;
}

#[tokio::test]
async fn a_role_that_may_not_migrate_changes_nothing_and_says_so() {
    let url = new_database().await;
    execute(&url, super::adoption::OLDER_TABLE).await;
    let (limited, role) = new_role(&url, "GRANT ALL ON SCHEMA public TO ROLE").await;
    let why = refusal(&limited, &[]).await;
    assert!(why.contains("denied for table processed_events"), "{why}");
    assert!(why.contains("Nothing was changed"), "{why}");
    execute(&url, "SELECT 1 / (to_regclass('oncegate_migrations') IS NULL)::integer").await;
    execute(&url, &format!("DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\"")).await;
}
