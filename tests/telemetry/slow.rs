//! The log of slow calls.

use std::{fs, time::Duration};

use oncegate::{
    auth::token::{self, Digest},
    grpc::pb::AcquireSessionLeaseRequest,
};
use serde_json::Value;
use tokio::time::sleep;
use tonic::{Request, metadata::MetadataValue};

use super::SERVICE;
use crate::harness::{
    acquire, execute, held, mark,
    postgres::new_database,
    process::Process,
    raw::{Raw, framed},
    seconds,
    secrets::plant,
    sqlite_url,
};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Marks take this long here: `--slow-call` and a second.
const SLOWED: &str = "
CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(2); RETURN NEW; END $$;
CREATE TRIGGER delay BEFORE INSERT ON processed_events
FOR EACH ROW WHEN (NEW.team_id <> '') EXECUTE FUNCTION delay()";

/// The lines about slow calls.
fn lines(log: &str) -> Vec<Value> {
    // The last one may not be whole yet.
    let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["message"] == "slow call").collect()
}

fn with<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, MetadataValue::try_from(*value).unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_call_is_logged_with_what_it_was() {
    let url = new_database().await;
    let token = plant(token::generate().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("auth.toml");
    let digest = Digest::of(token.as_bytes()).to_hex();
    let policy = format!(
        "[[principal]]\nname = \"bots-acme\"\nrole = \"bot\"\nteams = [\"T1\"]\ntoken_sha256 = [\"{digest}\"]\n"
    );
    fs::write(&file, policy).unwrap();
    let flags = ["--log-format", "json", "--auth", file.to_str().unwrap()];
    let process = Process::start(&url, &flags).await;
    execute(&url, SLOWED).await;
    let mut client = process.client().await;
    let bearer = format!("Bearer {token}");
    let parent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    let metadata = [
        ("authorization", bearer.as_str()),
        ("x-request-id", "slow-1"),
        ("traceparent", parent.as_str()),
    ];
    client.mark_processed(with(mark("T1", "Ev1"), &metadata)).await.unwrap();

    // A call that only waits is not slow.
    let authorized = &metadata[..1];
    client.acquire_session_lease(with(acquire("T1", "s", "a"), authorized)).await.unwrap();
    let waits = AcquireSessionLeaseRequest { wait: seconds(2), ..acquire("T1", "s", "b") };
    let answer = client.acquire_session_lease(with(waits, authorized)).await.unwrap();
    held(answer.into_inner());

    let mut found = lines(&process.log());
    for _ in 0..1_000 {
        if !found.is_empty() {
            break;
        }
        sleep(Duration::from_millis(10)).await;
        found = lines(&process.log());
    }
    let [line] = &found[..] else { panic!("{found:#?}") };
    assert_eq!((&line["level"], &line["code"]), (&"WARN".into(), &"OK".into()));
    let elapsed = line["elapsed_ms"].as_u64().unwrap();
    assert!((2_000..60_000).contains(&elapsed), "{line}");
    assert_eq!((&line["wait_ms"], &line["left_out"]), (&0.into(), &0.into()));
    assert_eq!(line["principal"], "bots-acme");
    let team = line["team"].as_str().unwrap();
    assert!(team.len() == 16 && !team.contains("T1"), "{team}");
    let span = &line["span"];
    assert_eq!(span["method"], format!("{SERVICE}/MarkProcessed"));
    assert_eq!((&span["request_id"], &span["trace_id"]), (&"slow-1".into(), &TRACE_ID.into()));
}

/// The time that an answer waits for its caller is the caller's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_does_not_read_is_not_a_slow_call() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(&sqlite_url(&directory), &["--log-format", "json"]).await;
    let mut mute = h2::client::Builder::new();
    mute.initial_window_size(0);
    let mut raw = Raw::connect_as(mute, &process.address).await;
    let mut call = raw.begin(&format!("/{SERVICE}/MarkProcessed"), &[]).await;
    call.send(framed(&mark("T1", "Ev1")), true);
    sleep(Duration::from_millis(1_500)).await;
    drop((call, raw));
    // It was marked, and long ago.
    let again = process.client().await.mark_processed(mark("T1", "Ev1")).await.unwrap();
    assert!(!again.into_inner().first);
    process.terminate();
    let (_, log) = process.end(Duration::from_mins(1)).await;
    assert!(lines(&log).is_empty(), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_slow_call_is_logged_without_a_limit() {
    let url = new_database().await;
    let flags = ["--log-format", "json", "--slow-call", "0s"];
    let process = Process::start(&url, &flags).await;
    execute(&url, SLOWED).await;
    let mut client = process.client().await;
    client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    process.terminate();
    let (_, log) = process.end(Duration::from_mins(1)).await;
    assert!(lines(&log).is_empty(), "{log}");
}
