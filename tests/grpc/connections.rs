//! How many connections there are, and for how long.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use oncegate::grpc::pb::{
    BeginTurnRequest, HoldSessionLeaseRequest, IsProcessedRequest, RunTurnRequest,
    begin_turn_response, hold_session_lease_response::News, run_turn_request,
    turn_service_client::TurnServiceClient,
};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{sleep, timeout},
};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::harness::{
    Client, Fixture, Replica, acquire, connect, event, held, mark,
    metrics::page,
    raw::{Raw, framed},
    seconds, session,
};

const MARK: &str = "/oncegate.v1.IdempotencyService/MarkProcessed";
/// More than are served beyond `--max-connections`.
const MANY: usize = 100;

async fn check(replica: &Replica) -> ServingStatus {
    let mut health = HealthClient::new(connect(replica.server.address()).await);
    let asked = health.check(HealthCheckRequest { service: "readiness".into() });
    timeout(Duration::from_secs(10), asked).await.unwrap().unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_still_answers_health() {
    let mut f = Fixture::sqlite().await.restarted(&["--max-connections", "1"]).await;
    assert!(f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    let oncegate::config::Address::Tcp(address) = *f.replica.server.address() else { panic!() };
    let mut idle = Vec::new();
    for _ in 0..MANY {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(check(&f.replica).await, ServingStatus::Serving);
    let mut beyond = f.replica.client().await;
    let refused = beyond.mark_processed(mark("T1", "Ev2")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().is_some());
    assert!(f.client.mark_processed(mark("T1", "Ev2")).await.unwrap().into_inner().first);
    // The first of the idle ones made room: it was closed, or reset.
    let ended = async { while matches!(idle[0].read(&mut [0; 64]).await, Ok(1..)) {} };
    timeout(Duration::from_secs(5), ended).await.expect("it is still open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_connection_without_a_call_gives_way_where_there_is_no_room() {
    let flags = ["--max-connections", "3", "--preface-timeout", "1s"];
    let mut f = Fixture::sqlite().await.restarted(&flags).await;
    assert!(f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    // They ask for health, which takes no caller.
    let watch = async || {
        let mut health = HealthClient::new(connect(f.replica.server.address()).await);
        let asked = HealthCheckRequest { service: "readiness".into() };
        let mut watched = health.watch(asked).await.unwrap().into_inner();
        watched.message().await.unwrap().unwrap();
        watched
    };
    let watched = [watch().await, watch().await];
    // Until one of them has had its time, there is no room.
    let marked = async |event: &str| {
        let mut client = f.replica.client().await;
        let marking = async {
            while client.mark_processed(mark("T1", event)).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(30), marking).await.expect("there is no room");
        client
    };
    let mut clients = Vec::new();
    for (watched, event) in watched.into_iter().zip(["Ev2", "Ev3"]) {
        clients.push(marked(event).await);
        assert_eq!(end(watched).await.code(), Code::Unknown);
    }
    // All that are left have made calls.
    let refused = f.replica.client().await.mark_processed(mark("T1", "Ev4")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    for client in clients.iter_mut().chain([&mut f.client]) {
        assert!(!client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_few_streams_that_need_no_credential() {
    let f = Fixture::sqlite().await;
    let health = HealthClient::new(connect(f.replica.server.address()).await);
    let watch = || {
        let mut health = health.clone();
        async move { health.watch(HealthCheckRequest::default()).await }
    };
    let mut open = Vec::new();
    let refused = loop {
        match watch().await {
            Ok(stream) => open.push(stream),
            Err(status) => break status,
        }
        assert!(open.len() <= MANY, "there is no limit");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(!open.is_empty());
    let mut other = HealthClient::new(connect(f.replica.server.address()).await);
    other.watch(HealthCheckRequest::default()).await.unwrap();
    // One that ends makes room for another.
    open.pop();
    let watched = async { while watch().await.is_err() {} };
    timeout(Duration::from_secs(10), watched).await.expect("it is still refused");
    // A known caller's connection has as many as any call may have.
    let channel = connect(f.replica.server.address()).await;
    let asked = acquire("T1", "s", "a");
    Client::new(channel.clone()).acquire_session_lease(asked).await.unwrap();
    let mut known = HealthClient::new(channel);
    for _ in 0..=open.len() {
        open.push(known.watch(HealthCheckRequest::default()).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_client_is_served_by_the_same_channel_once_there_is_room() {
    let mut f = Fixture::sqlite().await.restarted(&["--max-connections", "1"]).await;
    assert!(f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    let mut refused = f.replica.client().await;
    let status = refused.mark_processed(mark("T1", "Ev2")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    drop(f.client);
    let served = async {
        while let Err(status) = refused.mark_processed(mark("T1", "Ev2")).await {
            // The library sends a call on a connection that has just been told to go, and fails it.
            let goes_away = format!("{status:?}").contains(r#"GoAway(b"", NO_ERROR, Remote)"#);
            assert!(status.code() != Code::Internal || goes_away, "{status:?}");
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), served).await.expect("it is still refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_served_however_many_connect_and_say_nothing() {
    let f = Fixture::sqlite().await.restarted(&["--ops-listen", "127.0.0.1:0"]).await;
    let address = f.replica.server.ops_address().unwrap();
    let mut idle = Vec::new();
    for _ in 0..MANY {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        assert!(page(address, path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(page(address, "/nothing").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_of_its_age_is_replaced_and_no_call_fails() {
    let flags = ["--max-connection-age", "100ms"];
    let f = Fixture::sqlite().await.restarted(&flags).await;
    let mut client = f.client.clone();
    let hold = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "a".into(),
        ttl: seconds(3),
        ..Default::default()
    };
    let mut stream = client.hold_session_lease(hold).await.unwrap().into_inner();
    // A client that opens another connection where one takes no more calls.
    let mut raw = Raw::connect(f.replica.server.address()).await;
    let (mut connections, mut calls) = (1, 0);
    while connections < 10 {
        let Some(mut call) = raw.try_begin(MARK, &[]).await else {
            raw = Raw::connect(f.replica.server.address()).await;
            connections += 1;
            continue;
        };
        call.send(framed(&mark("T1", &calls.to_string())), true);
        let status = call.status().await;
        if status.code() != Code::Ok {
            // It crossed the GOAWAY, which says that the call was not looked at: any gRPC
            // client sends it again.
            let ask =
                IsProcessedRequest { event: event("T1", &calls.to_string()), ..Default::default() };
            let seen = f.replica.client().await.is_processed(ask).await.unwrap().into_inner();
            assert!(
                !seen.processed && status.message().contains("not a result of an error"),
                "{status:?}"
            );
            continue;
        }
        calls += 1;
    }
    assert!(calls > connections, "{calls} calls");
    // What was under way on the first connection goes on there.
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(News::Renewed(_))) {
        let next = timeout(Duration::from_secs(10), stream.message()).await.unwrap();
        seen.push(next.unwrap().expect("it goes on").news.unwrap());
    }
    assert!(matches!(seen[0], News::Granted(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_past_its_grace_is_cut() {
    let flags = ["--max-connection-age", "300ms", "--max-connection-age-grace", "100ms"];
    let f = Fixture::sqlite().await.restarted(&flags).await;
    let hold = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "a".into(),
        ..Default::default()
    };
    let stream = f.client.clone().hold_session_lease(hold).await.unwrap().into_inner();
    let status = end(stream).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_details_retry_info().is_some());
    // The lease is still its holder's.
    let answer = f.replica.client().await.acquire_session_lease(acquire("T1", "s", "b")).await;
    assert_eq!(held(answer.unwrap().into_inner()).holder, "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_outlives_a_connection_that_is_cut() {
    let flags = ["--max-connection-age", "300ms", "--max-connection-age-grace", "100ms"];
    let f = Fixture::sqlite().await.restarted(&flags).await;
    let begin = BeginTurnRequest {
        event: event("T1", "Ev1"),
        holder: "a".into(),
        grace: seconds(0),
        ..Default::default()
    };
    let address = f.replica.server.address();
    let mut turns = TurnServiceClient::new(connect(address).await);
    let step = RunTurnRequest { step: Some(run_turn_request::Step::Begin(begin.clone())) };
    let steps = stream::iter([step]).chain(stream::pending());
    let status = end(turns.run_turn(steps).await.unwrap().into_inner()).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    // Another delivery does not get it.
    let other = BeginTurnRequest { holder: "b".into(), request_id: "b".into(), ..begin };
    let mut turns = TurnServiceClient::new(connect(address).await);
    let answer = turns.begin_turn(other).await.unwrap().into_inner();
    let outcome = answer.outcome.unwrap();
    assert!(matches!(outcome, begin_turn_response::Outcome::InProgress(_)), "{outcome:?}");
}

/// How a stream ends.
async fn end<T>(mut stream: Streaming<T>) -> Status {
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    };
    timeout(Duration::from_secs(10), ended).await.expect("it goes on")
}
