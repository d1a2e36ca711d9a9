//! The real process, and how it ends: what is under way is answered, and no
//! peer can hold it up.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use oncegate::{
    config::Address,
    grpc::pb::{AcquireSessionLeaseRequest, MarkProcessedResponse},
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::{
    acquire, connect, granted, held, mark, postgres::new_database, process::Process, sqlite_url,
};

mod lame_duck;
mod unix;

/// Well below the drain timeout of 10 s, well above a slow machine's exit.
const SOON: Duration = Duration::from_secs(4);

struct Served {
    process: Process,
    _directory: TempDir,
}

async fn serve(flags: &[&str]) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(&sqlite_url(&directory), flags).await;
    Served { process, _directory: directory }
}

fn tcp(process: &Process) -> SocketAddr {
    match process.address {
        Address::Tcp(address) => address,
        Address::Unix(_) => panic!("not a TCP server"),
    }
}

fn waiting(seconds: i64) -> AcquireSessionLeaseRequest {
    AcquireSessionLeaseRequest {
        wait: crate::harness::seconds(seconds),
        ..acquire("T1", "s", "waiter")
    }
}

#[tokio::test]
async fn an_idle_server_ends_soon_whatever_idle_and_mute_peers_do() {
    let served = serve(&[]).await;
    let mut idle = served.process.client().await;
    assert!(idle.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    let mut mute = TcpStream::connect(tcp(&served.process)).unwrap();

    served.process.terminate();
    let status = served.process.exit(SOON).await;
    assert!(status.success(), "{status}");
    // Whoever was still connected has been told.
    mute.read_to_end(&mut Vec::new()).unwrap();
    assert!(idle.mark_processed(mark("T1", "Ev2")).await.is_err());
}

#[tokio::test]
async fn a_call_under_way_is_answered_before_the_end() {
    let served = serve(&[]).await;
    let mut holder = served.process.client().await;
    let lease = holder.acquire_session_lease(acquire("T1", "s", "holder")).await.unwrap();
    let lease = granted(lease.into_inner());

    let mut client = served.process.client().await;
    let call = tokio::spawn(async move { client.acquire_session_lease(waiting(1)).await });
    queued(&mut holder).await;
    served.process.terminate();
    let answer = held(call.await.unwrap().unwrap().into_inner());
    assert_eq!(answer.holder, lease.holder);
    assert!(served.process.exit(SOON).await.success());
}

#[tokio::test]
async fn a_waiter_is_not_kept_until_the_drain_ends() {
    let served = serve(&[]).await;
    let mut holder = served.process.client().await;
    holder.acquire_session_lease(acquire("T1", "s", "holder")).await.unwrap();

    let mut client = served.process.client().await;
    let call = tokio::spawn(async move { client.acquire_session_lease(waiting(60)).await });
    queued(&mut holder).await;
    served.process.terminate();
    held(call.await.unwrap().unwrap().into_inner());
    assert!(served.process.exit(SOON).await.success());
}

/// A mark that is under way, on a row that this test has locked.
struct StuckMark {
    process: Process,
    call: JoinHandle<Result<Response<MarkProcessedResponse>, Status>>,
    locking: PgConnection,
}

impl StuckMark {
    async fn begin(flags: &[&str]) -> Self {
        let url = new_database().await;
        let flags = [flags, &["--store-timeout", "20s", "--call-timeout", "30s"]].concat();
        let process = Process::start(&url, &flags).await;
        let mut locking = PgConnection::connect(&url).await.unwrap();
        locking
            .execute(
                "BEGIN; INSERT INTO processed_events (team_id, event_id) VALUES ('T1', 'locked')",
            )
            .await
            .unwrap();
        let mut client = process.client().await;
        let call = tokio::spawn(async move { client.mark_processed(mark("T1", "locked")).await });
        // Another connection: within a transaction, activity is read only once.
        let mut watching = PgConnection::connect(&url).await.unwrap();
        let stuck = async {
            const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let mut waiting = 0_i64;
            while waiting == 0 {
                waiting = sqlx::query_scalar(WAITING).fetch_one(&mut watching).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), stuck).await.unwrap();
        Self { process, call, locking }
    }
}

#[tokio::test]
async fn a_call_that_would_outlast_the_drain_is_cut() {
    let stuck = StuckMark::begin(&["--drain-timeout", "800ms"]).await;
    let begun = Instant::now();
    stuck.process.terminate();
    let refused = stuck.call.await.unwrap().unwrap_err();
    assert!(begun.elapsed() >= Duration::from_millis(500), "it had its time");
    assert!(matches!(refused.code(), Code::Unavailable | Code::Cancelled | Code::Unknown));
    assert!(stuck.process.exit(SOON).await.success());
}

#[tokio::test]
async fn while_it_drains_it_is_not_ready_and_takes_no_connection() {
    let mut stuck = StuckMark::begin(&[]).await;
    let mut health = HealthClient::new(connect(&stuck.process.address).await);
    let watch = HealthCheckRequest { service: "readiness".into() };
    let mut states = health.watch(watch).await.unwrap().into_inner();
    let told = |state: tonic_health::pb::HealthCheckResponse| state.status();
    assert_eq!(states.message().await.unwrap().map(told), Some(ServingStatus::Serving));

    stuck.process.terminate();
    assert_eq!(states.message().await.unwrap().map(told), Some(ServingStatus::NotServing));
    // The port is closed by now, or will be in a moment.
    let address = tcp(&stuck.process);
    let refused = async {
        while TcpStream::connect(address).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(1), refused).await.unwrap();
    stuck.locking.execute("ROLLBACK").await.unwrap();
    assert!(stuck.call.await.unwrap().unwrap().into_inner().first);
    assert!(stuck.process.exit(SOON).await.success());
}

/// Returns once a caller queues for the session.
async fn queued(client: &mut crate::harness::Client) {
    let look = async {
        loop {
            let answer = client.acquire_session_lease(acquire("T1", "s", "look")).await.unwrap();
            if held(answer.into_inner()).queue_length > 0 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), look).await.unwrap();
}
