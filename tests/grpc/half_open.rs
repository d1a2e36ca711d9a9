//! Calls that begin and do not go on: they take nothing from those that do.

use std::time::Duration;

use oncegate::grpc::pb::{AcquireSessionLeaseRequest, HoldSessionLeaseRequest, IsProcessedRequest};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::{
    Client, Fixture, acquire, event, granted, held, mark,
    metrics::metric,
    raw::{Raw, RawCall, framed},
    release, seconds, session,
};

const MARK: &str = "/oncegate.v1.IdempotencyService/MarkProcessed";
const HOLD: &str = "/oncegate.v1.IdempotencyService/HoldSessionLease";
const STATS: &str = "/oncegate.v1.AdminService/GetStats";
const RUN: &str = "/oncegate.v1.TurnService/RunTurn";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Begins `count` calls and sends no message.
async fn begin(raw: &mut Raw, path: &str, count: usize) -> Vec<RawCall> {
    let mut calls = Vec::new();
    for _ in 0..count {
        calls.push(raw.begin(path, &[]).await);
    }
    calls
}

/// The median of how long calls take, each on an event of its own.
async fn latency(client: &mut Client, prefix: &str) -> Duration {
    let mut took = Vec::new();
    for number in 0..101 {
        let begun = Instant::now();
        let answer = client.mark_processed(mark("T1", &format!("{prefix}-{number}"))).await;
        assert!(answer.expect("not refused").into_inner().first);
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    took[took.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_message_take_nothing_from_a_neighbour() {
    let mut f = Fixture::sqlite().await.restarted(&["--max-calls", "64"]).await;
    let before = latency(&mut f.client, "before").await;
    let mut attackers = Vec::new();
    for path in [MARK, HOLD, STATS, RUN] {
        let mut raw = Raw::connect(f.replica.server.address()).await;
        let calls = begin(&mut raw, path, 1_000).await;
        attackers.push((raw, calls));
    }
    let during = latency(&mut f.client, "during").await;
    // Twice, or what a busy machine may take away for a moment.
    assert!(during < before * 2 + Duration::from_millis(10), "{before:?}, then {during:?}");
}

/// What a call may send without ever sending a whole message: a name, bytes, and
/// what follows them again and again.
type Shape = (&'static str, Vec<u8>, Option<Vec<u8>>);

fn shapes(message: &[u8]) -> [Shape; 5] {
    let part = message[..message.len() - 1].to_vec();
    [
        ("nothing", Vec::new(), None),
        ("half a prefix", vec![0, 0], None),
        ("half a message", part, None),
        ("empty frames", Vec::new(), Some(Vec::new())),
        ("a byte at a time", vec![0, 0, 0, 0xff, 0xff], Some(vec![0])),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_does_not_become_whole_ends_its_call() {
    let flags = ["--preface-timeout", "300ms", "--ops-listen", "127.0.0.1:0"];
    let f = Fixture::sqlite().await.restarted(&flags).await;
    let mut raw = Raw::connect(f.replica.server.address()).await;
    let message = framed(&mark("T1", "Ev1"));
    for path in [MARK, HOLD, STATS, RUN, HEALTH, REFLECTION] {
        for (shape, bytes, again) in shapes(&message) {
            let mut call = raw.begin(path, &[]).await;
            call.send(bytes, false);
            let until = Instant::now() + Duration::from_millis(200);
            while let Some(bytes) = again.clone()
                && Instant::now() < until
            {
                call.send(bytes, false);
                sleep(Duration::from_millis(20)).await;
            }
            let status = call.status().await;
            assert_eq!(status.code(), Code::DeadlineExceeded, "{path} {shape}: {status:?}");
        }
    }
    // A whole message of a request that does not end.
    let mut call = raw.begin(MARK, &[]).await;
    call.send(message, false);
    assert_eq!(call.status().await.code(), Code::DeadlineExceeded);
    let ask = IsProcessedRequest { event: event("T1", "Ev1"), ..Default::default() };
    assert!(!f.client.clone().is_processed(ask).await.unwrap().into_inner().processed);
    metric(&f.replica, r#"oncegate_shed_total{reason="calls"} 0"#).await;
    // Six methods in five shapes, and the last.
    metric(&f.replica, r#"oncegate_shed_total{reason="slow"} 31"#).await;
}

#[tokio::test]
async fn a_stream_whose_first_message_has_come_goes_on() {
    let f = Fixture::sqlite().await.restarted(&["--preface-timeout", "1s"]).await;
    let mut raw = Raw::connect(f.replica.server.address()).await;
    let mut client = f.client.clone();
    let lease =
        granted(client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap().into_inner());
    let mut waiting = raw.begin(HOLD, &[]).await;
    let hold = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "b".into(),
        wait: seconds(2),
        ..Default::default()
    };
    waiting.send(framed(&hold), true);
    // It outlives the bound on its message; when its wait ends it has been served.
    let status = waiting.status().await;
    assert_ne!(status.code(), Code::DeadlineExceeded, "{status:?}");
    client.release_session_lease(release(&lease)).await.unwrap();
}

#[tokio::test]
async fn of_too_many_calls_without_a_message_the_oldest_gives_way() {
    let flags = ["--max-calls", "2", "--workers", "1", "--preface-timeout", "1h"];
    let mut f = Fixture::sqlite().await.restarted(&flags).await;
    let mut raw = Raw::connect(f.replica.server.address()).await;
    let mut calls = begin(&mut raw, MARK, 3).await.into_iter();
    let oldest = calls.next().unwrap().status().await;
    assert_eq!(oldest.code(), Code::ResourceExhausted, "{oldest:?}");
    assert!(oldest.get_details_retry_info().is_some());
    for (number, mut call) in calls.enumerate() {
        call.send(framed(&mark("T1", &format!("late-{number}"))), true);
        let status = call.status().await;
        assert_eq!(status.code(), Code::Ok, "{status:?}");
    }
    assert!(f.client.mark_processed(mark("T1", "x")).await.unwrap().into_inner().first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_messages_take_bounded_memory() {
    let flags = ["--workers", "1", "--preface-timeout", "1h"];
    let f = Fixture::sqlite().await.restarted(&flags).await;
    let mut raw = Raw::connect(f.replica.server.address()).await;
    let mut calls = Vec::new();
    // A little more than 64 MiB in all, of messages that lack their last byte.
    let part = [vec![0, 0, 16, 0, 0], vec![0; 1024 * 1024 - 1]].concat();
    for _ in 0..66 {
        let mut call = raw.begin(MARK, &[]).await;
        call.send(part.clone(), false);
        calls.push(call);
    }
    let oldest = calls.remove(0).status().await;
    assert_eq!(oldest.code(), Code::ResourceExhausted, "{oldest:?}");
    let mut newest = calls.pop().unwrap();
    newest.send(vec![0], true);
    assert_eq!(newest.status().await.code(), Code::InvalidArgument, "it was read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_reads_keeps_no_place() {
    let flags = ["--max-calls", "1", "--ops-listen", "127.0.0.1:0"];
    let mut f = Fixture::sqlite().await.restarted(&flags).await;
    let mut client = h2::client::Builder::new();
    client.initial_window_size(0);
    let mut raw = Raw::connect_as(client, f.replica.server.address()).await;
    let mut unread = Vec::new();
    for number in 0..3 {
        let mut call = raw.begin(MARK, &[]).await;
        call.send(framed(&mark("T1", &format!("unread-{number}"))), true);
        unread.push(call);
        metric(&f.replica, &format!(r#"oncegate_marks_total{{outcome="first"}} {}"#, number + 1))
            .await;
    }
    assert!(f.client.mark_processed(mark("T1", "x")).await.unwrap().into_inner().first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_end_nobody_reads_keeps_no_place() {
    let flags = ["--max-calls", "1", "--ops-listen", "127.0.0.1:0"];
    let mut f = Fixture::sqlite().await.restarted(&flags).await;
    f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
    let mut client = h2::client::Builder::new();
    client.initial_window_size(0);
    let mut raw = Raw::connect_as(client, f.replica.server.address()).await;
    let hold = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "b".into(),
        ..Default::default()
    };
    let mut unread = Vec::new();
    for number in 1..=3 {
        let mut call = raw.begin(HOLD, &[]).await;
        call.send(framed(&hold), true);
        unread.push(call);
        metric(&f.replica, &format!(r#"oncegate_acquires_total{{outcome="held"}} {number}"#)).await;
        let freed = async {
            while let Err(status) = f.client.mark_processed(mark("T1", "x")).await {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(5), freed).await.expect("its place is taken");
    }
}

#[tokio::test]
async fn a_request_that_is_not_one_message_is_its_senders_fault() {
    let f = Fixture::sqlite().await;
    let mut raw = Raw::connect(f.replica.server.address()).await;
    let message = framed(&mark("T1", "Ev1"));
    for (case, bytes) in [
        ("none", Vec::new()),
        ("half", message[..message.len() - 1].to_vec()),
        ("two", [message.clone(), message.clone()].concat()),
    ] {
        let mut call = raw.begin(MARK, &[]).await;
        call.send(bytes, true);
        let status = call.status().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{case}: {status:?}");
    }
    let ask = IsProcessedRequest { event: event("T1", "Ev1"), ..Default::default() };
    assert!(!f.client.clone().is_processed(ask).await.unwrap().into_inner().processed);
}

#[tokio::test]
async fn too_much_metadata_ends_its_call_and_no_other() {
    let mut f = Fixture::sqlite().await;
    let lease = f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
    let lease = granted(lease.into_inner());
    let mut raw = Raw::connect(f.replica.server.address()).await;
    let mut waiting = raw.begin("/oncegate.v1.IdempotencyService/AcquireSessionLease", &[]).await;
    let wait = AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "s", "b") };
    waiting.send(framed(&wait), true);
    for length in [20, 64, 100] {
        let value = "x".repeat(length * 1024);
        for metadata in [&[("x-one", value.as_str())][..], &[("x-one", &value[..8192]); 20]] {
            let call = raw.begin(MARK, metadata).await;
            let status = call.status().await;
            assert_eq!(status.code(), Code::ResourceExhausted, "{length} KiB: {status:?}");
            assert!(status.message().contains("metadata"), "{status:?}");
        }
    }
    f.client.release_session_lease(release(&lease)).await.unwrap();
    assert_eq!(waiting.status().await.code(), Code::Ok);
    let answer = f.client.acquire_session_lease(acquire("T1", "s", "c")).await.unwrap();
    assert_eq!(held(answer.into_inner()).holder, "b");
}
