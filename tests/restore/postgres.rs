//! PostgreSQL, set back with its own tools.

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, query_scalar};

use super::{Bots, LOST_ROUNDS, OLD_TEAMS, Service, TEAMS};
use crate::harness::{
    acquire,
    copies::until,
    held,
    postgres::{Cluster, directory},
    renew,
};

/// A small cluster, of which nothing has to outlive a power cut.
const SMALL: [&str; 4] =
    ["fsync=off", "shared_buffers=16MB", "max_connections=50", "log_min_messages=fatal"];

async fn ask(url: &str, question: &'static str) -> String {
    let mut database = PgConnection::connect(url).await.unwrap();
    query_scalar(question).fetch_one(&mut database).await.unwrap()
}

async fn execute(url: &str, statement: &str) {
    let mut database = PgConnection::connect(url).await.unwrap();
    database.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_after_a_point_in_time_recovery() {
    let archive = directory();
    let files = archive.path().display();
    let archive_command = format!("archive_command=cp %p {files}/%f");
    let settings = [&SMALL[..], &["archive_mode=on", &archive_command]].concat();
    let mut primary = Cluster::start_with(&settings);
    let mut bots = Bots::new();
    let mut service = Service::start(&primary.url()).await;
    bots.live(&mut service, 1, OLD_TEAMS).await;
    let backup = primary.back_up();
    bots.live(&mut service, 1, OLD_TEAMS).await;
    let target = ask(&primary.url(), "SELECT clock_timestamp()::text").await;

    bots.live(&mut service, LOST_ROUNDS, &TEAMS).await;
    let lost = service.acquire("Kept", "held", "lost").await;
    let segment = ask(&primary.url(), "SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    execute(&primary.url(), "SELECT pg_switch_wal()").await;
    let archived = format!("SELECT last_archived_wal >= '{segment}' IS TRUE FROM pg_stat_archiver");
    until(&primary.url(), &archived).await;
    service.kill();
    primary.stop();

    let restore_command = format!("restore_command=cp {files}/%f %p");
    let target = format!("recovery_target_time={target}");
    let recovery = [&restore_command, &target, "recovery_target_action=promote"];
    let restored = Cluster::recover(backup, &[&SMALL[..], &recovery].concat());
    until(&restored.url(), "SELECT NOT pg_is_in_recovery()").await;
    let mut service = Service::start(&restored.url()).await;
    bots.live_on(&mut service).await;
    let next = service.acquire("Kept", "held", "next").await;
    assert!(next.fencing_token > lost.fencing_token, "{lost:?}, and then {next:?}");
}

/// What the standby has received is replayed by its promotion; what it has not is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_after_a_standby_that_lags_is_promoted() {
    let mut primary = Cluster::start_with(&SMALL);
    let mut bots = Bots::new();
    let mut service = Service::start(&primary.url()).await;
    bots.live(&mut service, 1, OLD_TEAMS).await;
    let standby = primary.start_standby(&SMALL);
    bots.live(&mut service, 1, OLD_TEAMS).await;
    let caught_up = |primary: String| format!("SELECT pg_last_wal_receive_lsn() >= '{primary}'");
    let written = "SELECT pg_current_wal_lsn()::text";
    until(&standby.url(), &caught_up(ask(&primary.url(), written).await)).await;

    // Received, but not replayed.
    execute(&standby.url(), "SELECT pg_wal_replay_pause()").await;
    bots.live(&mut service, 1, OLD_TEAMS).await;
    until(&standby.url(), &caught_up(ask(&primary.url(), written).await)).await;
    let lags = "SELECT pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn()";
    until(&standby.url(), lags).await;
    // Not received: the startup process restarts a receiver, but not while it is paused.
    execute(&primary.url(), "SELECT pg_terminate_backend(pid) FROM pg_stat_replication").await;
    let alone = "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)";
    until(&standby.url(), alone).await;
    bots.live(&mut service, LOST_ROUNDS, &TEAMS).await;
    let lost = service.acquire("Kept", "held", "lost").await;

    service.kill();
    primary.stop();
    standby.promote();
    let mut service = Service::start(&standby.url()).await;
    bots.live_on(&mut service).await;
    let next = service.acquire("Kept", "held", "next").await;
    assert!(next.fencing_token > lost.fencing_token, "{lost:?}, and then {next:?}");
}

/// Logical replication copies rows, and no sequences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_after_a_move_by_logical_replication() {
    let logical = [&SMALL[..], &["wal_level=logical"]].concat();
    let source = Cluster::start_with(&logical);
    let target = Cluster::start_with(&SMALL);
    let mut bots = Bots::new();
    let mut service = Service::start(&source.url()).await;
    bots.live(&mut service, 1, OLD_TEAMS).await;
    target.load("postgres", &source.dump(&["--schema-only"]));
    execute(&source.url(), "CREATE PUBLICATION oncegate FOR ALL TABLES").await;
    let url = source.url();
    let subscribe = format!("CREATE SUBSCRIPTION oncegate CONNECTION '{url}' PUBLICATION oncegate");
    execute(&target.url(), &subscribe).await;
    bots.live(&mut service, LOST_ROUNDS, &TEAMS).await;
    let kept = service.acquire("Kept", "held", "kept").await;

    service.kill();
    let copied = "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel";
    until(&target.url(), copied).await;
    let written = ask(&source.url(), "SELECT pg_current_wal_lsn()::text").await;
    let confirmed =
        format!("SELECT bool_and(confirmed_flush_lsn >= '{written}') FROM pg_replication_slots");
    until(&source.url(), &confirmed).await;
    execute(&target.url(), "DROP SUBSCRIPTION oncegate").await;
    let mut service = Service::start(&target.url()).await;
    bots.live_on(&mut service).await;
    // A lease is a row: its holder goes on.
    let asked = service.leases.acquire_session_lease(acquire("Kept", "held", "next")).await;
    assert_eq!(held(asked.unwrap().into_inner()).holder, "kept");
    let renewed = service.leases.renew_session_lease(renew(&kept)).await.unwrap().into_inner();
    assert_eq!(renewed.lease.unwrap().fencing_token, kept.fencing_token);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_after_an_older_dump_is_restored() {
    let cluster = Cluster::start_with(&SMALL);
    let mut bots = Bots::new();
    let mut service = Service::start(&cluster.url()).await;
    bots.live(&mut service, 1, OLD_TEAMS).await;
    let dump = cluster.dump(&[]);
    bots.live(&mut service, LOST_ROUNDS, &TEAMS).await;
    service.kill();

    execute(&cluster.url(), "CREATE DATABASE restored").await;
    cluster.load("restored", &dump);
    let mut service = Service::start(&cluster.url_of("restored")).await;
    bots.live_on(&mut service).await;
}
