//! How a testbed ends: nothing is left of it.

use std::{
    fs,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use sqlx::{Connection as _, PgConnection, query_scalar};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::{sleep, timeout},
};

use super::{PATIENCE, Testbed, testbed};
use crate::harness::postgres;

impl Testbed {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap()
    }

    /// Waits for its end.
    async fn ended(mut self) -> ExitStatus {
        drop(self.stdin);
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        let left: Vec<_> = fs::read_dir(self.folder.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        status
    }
}

fn run(processes: &[u32]) -> bool {
    // A process that has ended and is not reaped has no program.
    processes.iter().any(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok())
}

/// Waits until processes have ended.
async fn until_ended(processes: &[u32]) {
    let end = Instant::now() + PATIENCE;
    while run(processes) {
        assert!(Instant::now() < end, "{processes:?} run");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn databases() -> Vec<String> {
    let mut server = PgConnection::connect(postgres::shared_server()).await.unwrap();
    query_scalar("SELECT datname FROM pg_database").fetch_all(&mut server).await.unwrap()
}

#[tokio::test]
async fn a_testbed_ends_when_standard_input_closes_even_if_its_server_is_muted() {
    let mut testbed = Testbed::sqlite().await;
    let servers = testbed.servers();
    assert_eq!(servers.len(), 1);
    testbed.ask(json!({ "do": "mute" })).await;
    testbed.send(json!({ "do": "drain" })).await;
    testbed.send(json!({ "do": "restart" })).await;
    assert!(testbed.ended().await.success());
    assert!(!run(&servers));
}

#[tokio::test]
async fn a_testbed_drops_its_database() {
    let testbed = Testbed::start(&["--store", "postgres", "--replicas", "2"]).await;
    let servers = testbed.servers();
    assert_eq!(servers.len(), 2);
    let name = format!("oncegate_test_{}_0", testbed.child.id().unwrap());
    assert!(databases().await.contains(&name));
    assert!(testbed.ended().await.success());
    assert!(!databases().await.contains(&name));
    assert!(!run(&servers));
}

#[tokio::test]
async fn a_testbed_that_is_interrupted_ends_in_good_order() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut testbed = Testbed::sqlite().await;
        let servers = testbed.servers();
        kill_process(testbed.pid(), signal).unwrap();
        let status = timeout(PATIENCE, testbed.child.wait()).await.expect("it ends").unwrap();
        assert!(status.success());
        assert!(testbed.ended().await.success());
        assert!(!run(&servers));
    }
}

#[tokio::test]
async fn no_server_outlives_a_testbed_that_is_killed() {
    let mut testbed = Testbed::sqlite().await;
    let servers = testbed.servers();
    testbed.ask(json!({ "do": "mute" })).await;
    testbed.child.kill().await.unwrap();
    until_ended(&servers).await;
}

#[tokio::test]
async fn a_server_that_does_not_start_ends_the_testbed() {
    for (arguments, error) in [
        (&["--", "--bogus"][..], "unexpected argument '--bogus'"),
        (&["--", "--max-calls", "0"], "the server did not start, exit status: 2"),
        (&["--replicas", "2"], "--replicas 2 needs --store postgres"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = timeout(PATIENCE, testbed(folder.path(), arguments).await.output()).await;
        let output = output.expect("it ends").unwrap();
        assert!(!output.status.success());
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains(error), "{log}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_postgres_server_runs_until_standard_input_closes() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = testbed(folder.path(), &["postgres"]).await;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = super::next(&mut lines).await;
    let url = ready["ready"]["url"].as_str().unwrap();
    PgConnection::connect(url).await.unwrap().close().await.unwrap();
    drop(child.stdin.take());
    assert!(timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap().success());
    assert!(PgConnection::connect(url).await.is_err(), "it has stopped");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
