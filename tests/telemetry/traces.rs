//! Traces: which calls have spans, and what these say.

use std::{fmt::Write as _, time::Duration};

use oncegate::grpc::{
    code,
    pb::{
        AcquireSessionLeaseRequest, BatchMarkProcessedRequest, BeginTurnRequest,
        HoldSessionLeaseRequest, MarkProcessedRequest, turn_service_client::TurnServiceClient,
    },
};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use serde_json::Value;
use tokio::net::TcpSocket;
use tonic::{Code, Request, metadata::MetadataValue};

use super::{
    OPS, SERVICE,
    collector::{Collector, attributes, has_failed},
};
use crate::{
    harness::{
        Fixture, Replica, TestClock, acquire, connect, copies::until, event, granted, held, mark,
        metrics::metric_is, outsider::Outsider, postgres::new_database, process::Process, release,
        seconds, session,
    },
    on_both_stores,
};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

on_both_stores!(
    a_sampled_call_has_a_span_with_its_wait_and_its_batch,
    calls_are_sampled_as_their_callers_are_and_others_by_the_ratio,
    failed_calls_say_why,
    faults_of_the_server_are_errors,
    a_turn_has_its_attempt_and_few_of_many_waits,
    a_wait_for_a_session_is_a_span,
    a_stream_is_one_span_to_its_end
);

/// A message whose caller records its span, or does not.
fn traced<T>(message: T, is_sampled: bool) -> Request<T> {
    let parent = format!("00-{TRACE_ID}-{PARENT_ID}-0{}", u8::from(is_sampled));
    let mut request = Request::new(message);
    for (name, value) in [
        ("traceparent", parent.as_str()),
        ("tracestate", "vendor=value"),
        ("x-request-id", "request-1"),
    ] {
        request.metadata_mut().insert(name, MetadataValue::try_from(value).unwrap());
    }
    request
}

fn hex(id: &[u8]) -> String {
    let mut text = String::new();
    for byte in id {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// The same store behind a server that traces.
async fn tracing(f: Fixture, ratio: &str) -> (Fixture, Collector) {
    let (collector, url) = Collector::start().await;
    let flags = ["--otlp-endpoint", &url, "--trace-ratio", ratio];
    (f.restarted(&flags).await, collector)
}

/// Ends the server, so that every span has been sent.
async fn end(f: Fixture) {
    drop(f.client);
    f.replica.server.stop().await.unwrap();
}

fn name(method: &str) -> String {
    format!("{SERVICE}/{method}")
}

async fn a_sampled_call_has_a_span_with_its_wait_and_its_batch(f: Fixture) {
    let (mut f, collector) = tracing(f, "0").await;
    f.client.mark_processed(traced(mark("T1", "Ev1"), true)).await.unwrap();
    end(f).await;

    let resource = collector.resource();
    assert_eq!(resource["service.name"], "oncegate");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert!(!resource["service.instance.id"].is_empty());

    let spans = collector.spans();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, [&name("MarkProcessed"), "lane.wait", "store.batch"]);
    let [call, wait, batch] = &spans[..] else { unreachable!() };
    assert_eq!(call.kind(), SpanKind::Server);
    assert_eq!(
        (hex(&call.trace_id), hex(&call.parent_span_id)),
        (TRACE_ID.into(), PARENT_ID.into())
    );
    assert_eq!(call.trace_state, "vendor=value");
    let of_call = attributes(&call.attributes);
    assert_eq!(of_call["rpc.system.name"], "grpc");
    assert_eq!(of_call["rpc.method"], name("MarkProcessed"));
    assert_eq!(of_call["rpc.response.status_code"], "OK");
    assert_eq!(of_call["oncegate.request_id"], "request-1");
    // A hash: it is the caller's.
    assert_eq!(of_call["oncegate.team"].len(), 16);
    assert!(!format!("{spans:?}").contains("Ev1"));
    assert!(!has_failed(call) && !of_call.contains_key("error.type"));

    assert_eq!((&wait.trace_id, &wait.parent_span_id), (&call.trace_id, &call.span_id));
    assert_eq!(attributes(&wait.attributes)["oncegate.lane"], "mark");
    assert_eq!(attributes(&batch.attributes)["oncegate.lane"], "mark");
    assert_eq!(attributes(&batch.attributes)["oncegate.batch.rows"], "1");
    // In a trace of its own: a batch has many calls.
    assert_ne!(batch.trace_id, call.trace_id);
    assert!(batch.parent_span_id.is_empty());
    assert!(are_linked(batch, call) && are_linked(wait, batch));
    assert!(wait.end_time_unix_nano <= batch.end_time_unix_nano);
    assert!(batch.end_time_unix_nano <= call.end_time_unix_nano);
}

/// Whether the only link of a span is to another.
fn are_linked(from: &Span, to: &Span) -> bool {
    let links: Vec<_> = from.links.iter().map(|link| (&link.trace_id, &link.span_id)).collect();
    links == [(&to.trace_id, &to.span_id)]
}

async fn calls_are_sampled_as_their_callers_are_and_others_by_the_ratio(f: Fixture) {
    let (mut f, all) = tracing(f, "1").await;
    f.client.mark_processed(traced(mark("T1", "Ev1"), false)).await.unwrap();
    f.client.mark_processed(traced(mark("T1", "Ev2"), true)).await.unwrap();
    f.client.mark_processed(mark("T1", "Ev3")).await.unwrap();
    let (none, address) = Collector::start().await;
    let flags = ["--otlp-endpoint", &address, "--trace-ratio", "0"];
    let mut f = f.restarted(&flags).await;
    let calls = all.named(&name("MarkProcessed"));
    let parents: Vec<_> = calls.iter().map(|call| hex(&call.parent_span_id)).collect();
    assert_eq!(parents, [PARENT_ID, ""]);
    assert_ne!(hex(&calls[1].trace_id), TRACE_ID);

    f.client.mark_processed(mark("T1", "Ev4")).await.unwrap();
    f.client.mark_processed(traced(mark("T1", "Ev5"), false)).await.unwrap();
    end(f).await;
    assert_eq!(none.spans(), []);
}

async fn failed_calls_say_why(f: Fixture) {
    let (mut f, collector) = tracing(f, "1").await;
    f.client.mark_processed(MarkProcessedRequest::default()).await.unwrap_err();
    end(f).await;
    let spans = collector.spans();
    let [call] = &spans[..] else { panic!("{spans:?}") };
    let of_call = attributes(&call.attributes);
    assert_eq!(of_call["rpc.response.status_code"], "INVALID_ARGUMENT");
    assert_eq!(of_call["oncegate.reason"], "INVALID_FIELD");
    // The caller's fault is none of the server's.
    assert!(!has_failed(call) && !of_call.contains_key("error.type"));
}

async fn faults_of_the_server_are_errors(f: Fixture) {
    let (collector, endpoint) = Collector::start().await;
    let flags = ["--otlp-endpoint", &endpoint, "--trace-ratio", "1"];
    let flags = flags.into_iter().chain(["--store-timeout", "200ms", "--call-timeout", "5s"]);
    let mut f = f.restarted(&flags.collect::<Vec<_>>()).await;
    let outsider = Outsider::at(&f.url).await;
    let status = f.client.mark_processed(mark("T1", "Ev1")).await.unwrap_err();
    assert!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status:?}");
    drop(outsider);
    end(f).await;
    let call = collector.named(&name("MarkProcessed")).remove(0);
    let of_call = attributes(&call.attributes);
    assert_eq!(of_call["rpc.response.status_code"], code::name(status.code()));
    assert_eq!(of_call["error.type"], code::name(status.code()));
    assert!(has_failed(&call));
}

async fn a_turn_has_its_attempt_and_few_of_many_waits(f: Fixture) {
    let (mut f, collector) = tracing(f, "0").await;
    let begin = BeginTurnRequest {
        event: event("T1", "Ev1"),
        session: session("T1", "s"),
        holder: "a".into(),
        ..Default::default()
    };
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    turns.begin_turn(traced(begin, true)).await.unwrap();
    drop(turns);
    // Each of its teams is a part of its own.
    let requests = (0..40).map(|team| mark(&format!("T{team}"), "Ev1")).collect();
    let batch = BatchMarkProcessedRequest { requests };
    f.client.batch_mark_processed(traced(batch, true)).await.unwrap();
    end(f).await;
    let turn = collector.named("oncegate.v1.TurnService/BeginTurn").remove(0);
    assert_eq!(attributes(&turn.attributes)["oncegate.attempt"], "1");
    let batch = collector.named(&name("BatchMarkProcessed")).remove(0);
    assert_eq!(attributes(&batch.attributes)["oncegate.waits"], "40");
    let mut waits = collector.named("lane.wait");
    waits.retain(|wait| wait.parent_span_id == batch.span_id);
    assert_eq!(waits.len(), 32);
}

async fn a_wait_for_a_session_is_a_span(f: Fixture) {
    let (mut f, collector) = tracing(f, "0").await;
    granted(f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap().into_inner());
    let request = AcquireSessionLeaseRequest { wait: seconds(1), ..acquire("T1", "s", "b") };
    held(f.client.acquire_session_lease(traced(request, true)).await.unwrap().into_inner());
    end(f).await;
    let call = collector.named(&name("AcquireSessionLease")).remove(0);
    let waits = collector.named("session.wait");
    let is_of_call = |wait: &Span| wait.parent_span_id == call.span_id;
    assert!(!waits.is_empty() && waits.iter().all(is_of_call), "{waits:?}");
    let nanos = waits.iter().map(|wait| wait.end_time_unix_nano - wait.start_time_unix_nano);
    let waited = Duration::from_nanos(nanos.sum());
    assert!(waited > Duration::from_millis(500), "{waited:?}");
    let took = Duration::from_nanos(call.end_time_unix_nano - call.start_time_unix_nano);
    assert!(waited <= took, "{waited:?} of {took:?}");
}

async fn a_stream_is_one_span_to_its_end(f: Fixture) {
    let (mut f, collector) = tracing(f, "0").await;
    let hold = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "a".into(),
        ..Default::default()
    };
    let mut stream = f.client.hold_session_lease(traced(hold, true)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let mut other = f.replica.client().await;
    other.mark_processed(mark("T1", "Ev1")).await.unwrap();
    drop(stream);
    // The lease is given back: then the stream has ended.
    let request = AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "s", "b") };
    let lease = other.acquire_session_lease(request).await.unwrap().into_inner();
    other.release_session_lease(release(&granted(lease))).await.unwrap();
    drop(other);
    end(f).await;
    let calls = collector.named(&name("HoldSessionLease"));
    let [call] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!(attributes(&call.attributes)["rpc.response.status_code"], "CANCELLED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_linked_to_each_of_its_calls_once() {
    let url = new_database().await;
    let (collector, endpoint) = Collector::start().await;
    let flags = ["--otlp-endpoint", &endpoint, "--trace-ratio", "1", "--writers", "1"];
    let flags: Vec<_> = flags.into_iter().chain(OPS).collect();
    let replica = Replica::start(&url, TestClock::new().store_clock(), &flags).await;
    let client = replica.client().await;
    // Of two teams: two parts of one call.
    let of_two = |n: usize| vec![mark("T1", &format!("Ev{n}")), mark("T2", &format!("Ev{n}"))];
    let call = |n: usize| {
        let mut client = client.clone();
        let request = BatchMarkProcessedRequest { requests: of_two(n) };
        tokio::spawn(async move { client.batch_mark_processed(request).await.unwrap() })
    };
    let outsider = Outsider::at(&url).await;
    let mut calls = vec![call(0)];
    until(
        &url,
        "SELECT count(*) > 0 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
         WHERE NOT l.granted AND d.datname = current_database()",
    )
    .await;
    calls.extend((1..=3).map(call));
    metric_is(&replica, r#"oncegate_lane_queue_depth{lane="mark"}"#, |n| n == 8.0).await;
    drop(outsider);
    for call in calls {
        call.await.unwrap();
    }
    drop(client);
    replica.server.stop().await.unwrap();

    let batches = collector.named("store.batch");
    let rows: Vec<_> = batches
        .iter()
        .map(|batch| attributes(&batch.attributes)["oncegate.batch.rows"].clone())
        .collect();
    assert_eq!(rows, ["2", "6"]);
    let calls = collector.named(&name("BatchMarkProcessed"));
    let mut linked: Vec<_> =
        batches.iter().flat_map(|batch| &batch.links).map(|link| link.span_id.clone()).collect();
    let mut ids: Vec<_> = calls.iter().map(|call| call.span_id.clone()).collect();
    linked.sort();
    ids.sort();
    assert_eq!((batches[0].links.len(), batches[1].links.len()), (1, 3));
    assert_eq!(linked, ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_names_the_process_and_a_slow_call_is_logged_with_the_ids_of_its_span() {
    let url = new_database().await;
    let (collector, endpoint) = Collector::start().await;
    let flags = [
        "--otlp-endpoint",
        &endpoint,
        "--trace-ratio",
        "1",
        "--log-format",
        "json",
        "--slow-call",
        "1ns",
    ];
    let environment = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=key-1"),
        ("OTEL_SERVICE_NAME", "gate"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    let process = Process::start_in(&environment, &url, &flags).await;
    process.client().await.mark_processed(mark("T1", "Ev1")).await.unwrap();
    process.terminate();
    let (status, log) = process.end(Duration::from_mins(1)).await;
    assert!(status.success(), "{log}");
    assert_eq!(collector.header("api-key").as_deref(), Some("key-1"));
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "gate");
    assert_eq!(resource["deployment.environment.name"], "test");
    let calls = collector.named(&name("MarkProcessed"));
    let [call] = &calls[..] else { panic!("{calls:?}") };
    let mut lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.find(|line| line["message"] == "slow call").expect(&log);
    assert_eq!(line["span"]["trace_id"], hex(&call.trace_id));
    assert_eq!(line["span"]["span_id"], hex(&call.span_id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_collector_is_logged_once() {
    let url = new_database().await;
    // Nothing else can listen there.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", closed.local_addr().unwrap());
    let flags = ["--otlp-endpoint", &endpoint, "--trace-ratio", "1"];
    let process = Process::start(&url, &flags).await;
    process.client().await.mark_processed(mark("T1", "Ev1")).await.unwrap();
    process.terminate();
    let (status, log) = process.end(Duration::from_mins(1)).await;
    assert!(status.success(), "{log}");
    let lines = log.lines().filter(|line| line.contains("cannot send traces to --otlp-endpoint"));
    assert_eq!(lines.count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_are_counted_as_they_are_sent() {
    let (_collector, endpoint) = Collector::start().await;
    let flags = ["--otlp-endpoint", &endpoint, "--trace-ratio", "1"];
    let flags: Vec<_> = flags.into_iter().chain(OPS).collect();
    let f = Fixture::memory().await.restarted(&flags).await;
    f.client.clone().mark_processed(mark("T1", "Ev1")).await.unwrap();
    let series = r#"oncegate_trace_spans_total{outcome="exported"}"#;
    metric_is(&f.replica, series, |n| n == 3.0).await;
}
