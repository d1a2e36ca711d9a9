//! The server and the role.

use super::{command, doctor, migrate};
use crate::harness::{copies::until, execute, postgres::Cluster};

const CHECKS: [&str; 15] = [
    "reachable",
    "tls",
    "version",
    "connections",
    "settings",
    "prepared statements",
    "schema",
    "privileges",
    "writable",
    "durability",
    "clock",
    "vacuum",
    "transaction ids",
    "fence",
    "listen",
];

async fn cluster(settings: &'static [&'static str]) -> Cluster {
    tokio::task::spawn_blocking(|| Cluster::start_with(settings)).await.unwrap()
}

async fn create(cluster: &Cluster, name: &str) -> String {
    execute(&cluster.url(), &format!("CREATE DATABASE {name}")).await;
    cluster.url_of(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_database_is_well_and_what_makes_it_lose_is_named() {
    let cluster = cluster(&[]).await;
    let url = cluster.url();
    migrate(&url).await;
    let secret = url.replace("postgres@", "postgres:open-sesame@");
    let diagnosis = doctor(&secret, &["--migrate", "false"]).await;
    diagnosis.is_all_well(&CHECKS);
    diagnosis.has("reachable", "ok", &["127.0.0.1:"]);
    diagnosis.has("version", "ok", &["PostgreSQL 1"]);
    diagnosis.has("schema", "ok", &["up to date"]);
    diagnosis.has("durability", "ok", &["synchronous_commit on", "0 standbys"]);
    assert!(!diagnosis.printed.contains("open-sesame"), "{}", diagnosis.printed);

    // For a person: one line a check.
    let ran = command(&url, &[]).output().unwrap();
    let text = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(text.lines().count(), CHECKS.len(), "{text}");
    for (line, check) in text.lines().zip(CHECKS) {
        assert!(line.starts_with(&format!("ok      {check}: ")), "{line}");
    }

    execute(&url, "ALTER DATABASE postgres SET synchronous_commit = off").await;
    doctor(&url, &[]).await.has("durability", "failed", &["synchronous_commit is off", "= on"]);
    execute(&url, "ALTER DATABASE postgres RESET synchronous_commit").await;

    // Statements that roll back do not show it.
    let sets_standby = async |names: &str| {
        execute(&url, &format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await;
        execute(&url, "SELECT pg_reload_conf()").await;
        let is_set = format!("SELECT current_setting('synchronous_standby_names') = '{names}'");
        until(&url, &is_set).await;
    };
    sets_standby("elsewhere").await;
    let waits = ["0 standbys", "every commit waits"];
    doctor(&url, &[]).await.has("durability", "failed", &waits);
    sets_standby("").await;

    // A backup that follows the log is no standby.
    let backup = tempfile::tempdir().unwrap();
    let mut follows = cluster.follow_log(backup.path());
    until(&url, "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'").await;
    let diagnosis = doctor(&url, &[]).await;
    follows.kill().unwrap();
    follows.wait().unwrap();
    diagnosis.has("durability", "ok", &["0 standbys"]);
    until(&url, "SELECT count(*) = 0 FROM pg_stat_replication").await;

    // Neither synchronous nor on the primary alone.
    let standby = cluster.start_standby(&[]);
    until(&url, "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'").await;
    let lossy = ["1 standbys (walreceiver)", "a failover can lose"];
    doctor(&url, &[]).await.has("durability", "warning", &lossy);
    sets_standby("*").await;
    doctor(&url, &[]).await.has("durability", "ok", &["1 standbys", "'*'"]);
    execute(&url, "ALTER DATABASE postgres SET synchronous_commit = local").await;
    doctor(&url, &[]).await.has("durability", "warning", &lossy);

    let diagnosis = doctor(&standby.url(), &[]).await;
    diagnosis.has("writable", "failed", &["read-only", "connect to the primary"]);
    diagnosis.has("schema", "ok", &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_the_server_that_lose_data_or_let_tables_grow_are_named() {
    let no_fsync = cluster(&["fsync=off", "autovacuum=off"]).await;
    migrate(&no_fsync.url()).await;
    let diagnosis = doctor(&no_fsync.url(), &[]).await;
    diagnosis.has("durability", "failed", &["fsync is off", "set fsync = on"]);
    diagnosis.has("vacuum", "warning", &["autovacuum is off"]);
    let torn = cluster(&["full_page_writes=off"]).await;
    let damage = ["full_page_writes is off", "set full_page_writes = on", "ZFS"];
    doctor(&torn.url(), &[]).await.has("durability", "warning", &damage);
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_ends_the_checks() {
    let diagnosis = doctor("postgres://u:open-sesame@127.0.0.1:1/bots", &[]).await;
    diagnosis.has("reachable", "failed", &["store unavailable"]);
    assert_eq!((diagnosis.checks.len(), diagnosis.code), (1, Some(1)), "{}", diagnosis.printed);
    assert!(!diagnosis.printed.contains("open-sesame"), "{}", diagnosis.printed);

    let cluster = cluster(&["fsync=off"]).await;
    let unknown = doctor(&cluster.url_of("nowhere"), &[]).await;
    unknown.has("reachable", "failed", &["\"nowhere\" does not exist"]);
    let ran = command("mysql://db/bots", &[]).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let ran = command("memory:", &["--writers", "0"]).output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_lacks_a_privilege_is_found() {
    let cluster = cluster(&["fsync=off"]).await;
    let (served, empty) = (create(&cluster, "served").await, create(&cluster, "empty").await);
    migrate(&served).await;
    execute(&served, "CREATE ROLE bot LOGIN").await;
    execute(&empty, "REVOKE CREATE ON SCHEMA public FROM PUBLIC").await;
    let of = |url: &str| url.replace("postgres@", "bot@");
    doctor(&of(&served), &[]).await.has(
        "schema",
        "failed",
        &["GRANT SELECT ON oncegate_migrations"],
    );
    for grant in [
        "SELECT ON oncegate_migrations",
        "SELECT, INSERT, UPDATE, DELETE ON processed_events, oncegate_sessions, oncegate_replicas",
        "SELECT, INSERT, UPDATE ON oncegate_waiters",
        "SELECT, UPDATE ON oncegate_fence",
        "USAGE ON SEQUENCE oncegate_tickets",
    ] {
        execute(&served, &format!("GRANT {grant} TO bot")).await;
    }
    let diagnosis = doctor(&of(&served), &[]).await;
    diagnosis.has("schema", "ok", &[]);
    diagnosis.has("privileges", "failed", &["GRANT DELETE ON oncegate_waiters TO bot"]);
    diagnosis.has("writable", "failed", &["permission denied for table oncegate_waiters"]);
    execute(&served, "GRANT DELETE ON oncegate_waiters TO bot").await;
    let diagnosis = doctor(&of(&served), &[]).await;
    diagnosis.has("privileges", "ok", &[]);
    diagnosis.has("writable", "ok", &[]);

    // Before a migration the role needs other rights.
    let (bot, denied) = (of(&empty), ["may not create tables in the schema \"public\"", "owner"]);
    doctor(&bot, &[]).await.has("privileges", "failed", &denied);
    execute(&empty, "GRANT CREATE ON SCHEMA public TO bot").await;
    doctor(&bot, &[]).await.has("privileges", "ok", &["may migrate"]);
    execute(&served, "DELETE FROM oncegate_migrations WHERE version >= 14").await;
    let not_owned = ["does not own oncegate_fence", "processed_events"];
    doctor(&of(&served), &[]).await.has("privileges", "failed", &not_owned);
    doctor(&served, &[]).await.has("privileges", "ok", &["may migrate"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_or_shows_another_time_is_found() {
    let cluster = cluster(&["fsync=off"]).await;
    let url = create(&cluster, "bots").await;
    migrate(&url).await;
    doctor(&url, &[]).await.has("clock", "ok", &[" ms "]);
    execute(
        &url,
        "CREATE SCHEMA slow;
        CREATE FUNCTION slow.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$
            SELECT pg_catalog.clock_timestamp() - interval '10 seconds' $$;
        ALTER DATABASE bots SET search_path = public, slow, pg_catalog",
    )
    .await;
    doctor(&url, &[]).await.has("clock", "warning", &["behind this machine", "NTP"]);
    execute(&url, "ALTER DATABASE bots SET default_transaction_read_only = on").await;
    let diagnosis = doctor(&url, &[]).await;
    diagnosis.has("writable", "failed", &["read-only", "connect to the primary"]);

    // Where there is no schema yet, too.
    let empty = create(&cluster, "empty").await;
    execute(&empty, "ALTER DATABASE empty SET default_transaction_read_only = on").await;
    let diagnosis = doctor(&empty, &[]).await;
    diagnosis.has("writable", "failed", &["read-only", "connect to the primary"]);
}
