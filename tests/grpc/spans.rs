//! What the log says of calls.

use oncegate::grpc::pb::{
    BeginTurnRequest, BindEpicRequest, HoldSessionLeaseRequest, admin_service_client,
    turn_service_client::TurnServiceClient,
};
use serde_json::Value;
use tonic::{Request, metadata::MetadataValue};
use tonic_types::StatusExt as _;

use crate::harness::{
    Client, connect, event, execute, mark, postgres, process::Process, session, sqlite_url,
};

const SERVICE: &str = "oncegate.v1.IdempotencyService";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";
const SPANS: [&str; 4] = ["--log", "info,oncegate::call=debug", "--log-format", "json"];

fn with<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, MetadataValue::try_from(*value).unwrap());
    }
    request
}

/// The lines of a log, each an object.
fn lines(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The span of a call that has ended, by its request id. The line is written a moment after the
/// caller has its answer.
async fn ended(process: &Process, request_id: &str) -> Value {
    for _ in 0..1_000 {
        let found = lines(&process.log()).into_iter().find(|line| {
            line["message"] == "call ended" && line["span"]["request_id"] == request_id
        });
        if let Some(line) = found {
            return line["span"].clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("no {request_id} in {}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_has_a_span_from_its_callers() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(&sqlite_url(&directory), &SPANS).await;
    let mut client = process.client().await;
    let parent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    let metadata = [("x-request-id", "mine-1"), ("traceparent", parent.as_str())];
    client.mark_processed(with(mark("T1", "Ev1"), &metadata)).await.unwrap();
    let span = ended(&process, "mine-1").await;
    assert_eq!(span["method"], format!("{SERVICE}/MarkProcessed"));
    assert_eq!((&span["trace_id"], &span["parent_id"]), (&TRACE_ID.into(), &PARENT_ID.into()));
    assert_eq!(span["outcome"], "OK");
    let team = span["team"].as_str().unwrap();
    assert!(team.len() == 16 && !team.contains("T1"), "{team}");

    let invalid = [("x-request-id", "mine-2"), ("traceparent", "00-0-0-01")];
    client.mark_processed(with(mark("", "Ev1"), &invalid)).await.unwrap_err();
    let span = ended(&process, "mine-2").await;
    assert_eq!(span["outcome"], "INVALID_FIELD");
    assert!(span.get("trace_id").is_none() && span.get("parent_id").is_none(), "{span}");

    let begin =
        BeginTurnRequest { event: event("T1", "Ev2"), holder: "a".into(), ..Default::default() };
    let mut turns = TurnServiceClient::new(connect(&process.address).await);
    turns.begin_turn(with(begin, &[("x-request-id", "mine-3")])).await.unwrap();
    assert_eq!(ended(&process, "mine-3").await["attempt"], 1);

    // One that cannot stand in a line is replaced.
    client.mark_processed(with(mark("T1", "Ev3"), &[("x-request-id", "a b")])).await.unwrap();
    assert!(!process.log().contains("a b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streams_span_ends_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(&sqlite_url(&directory), &SPANS).await;
    let hold = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "a".into(),
        ..Default::default()
    };
    let call = with(hold, &[("x-request-id", "stream")]);
    let mut events = process.client().await.hold_session_lease(call).await.unwrap().into_inner();
    events.message().await.unwrap();
    assert!(!process.log().contains("\"stream\""), "{}", process.log());
    drop(events);
    let span = ended(&process, "stream").await;
    assert_eq!((&span["outcome"], span["team"].is_string()), (&"CANCELLED".into(), true), "{span}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_a_call_has_its_request_id_and_no_other_is_written() {
    let url = postgres::new_database().await;
    let process = Process::start(&url, &["--log-format", "json"]).await;
    let mut client: Client = process.client().await;
    client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    let bind = BindEpicRequest {
        session: session("T1", "s"),
        epic_id: "PROJ-1".into(),
        actor: "ops".into(),
        ..Default::default()
    };
    let mut admin = admin_service_client::AdminServiceClient::new(connect(&process.address).await);
    admin.bind_epic(with(bind, &[("x-request-id", "bind-1")])).await.unwrap();
    execute(&url, "ALTER TABLE processed_events RENAME COLUMN request_id TO other").await;
    let parent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    let metadata = [("x-request-id", "mark-1"), ("traceparent", parent.as_str())];
    let refused = client.mark_processed(with(mark("T1", "Ev2"), &metadata)).await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "INTERNAL");
    assert!(refused.message().contains("mark-1"), "{}", refused.message());
    let refused = client.mark_processed(mark("T1", "Ev3")).await.unwrap_err();

    let lines = lines(&process.log());
    let of = |message: &str| {
        let found = lines.iter().filter(|line| line["message"] == message);
        found.map(|line| line["span"].clone()).collect::<Vec<_>>()
    };
    let audit = of("bind epic");
    assert_eq!(audit[0]["request_id"], "bind-1");
    let [first, second] = &of("internal error")[..] else { panic!("{lines:#?}") };
    assert_eq!((&first["request_id"], &first["trace_id"]), (&"mark-1".into(), &TRACE_ID.into()));
    assert_eq!(first["method"], format!("{SERVICE}/MarkProcessed"));
    let id = second["request_id"].as_str().unwrap();
    assert!(refused.message().contains(id), "{id}: {}", refused.message());
    assert!(of("call ended").is_empty());
    // A line has its span once.
    assert!(lines.iter().all(|line| line["spans"].is_null()), "{lines:#?}");
}
