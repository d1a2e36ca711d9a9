//! gRPC-Web, over HTTP/1.1 and HTTP/2.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use hyper::client::conn::http1::SendRequest;
use oncegate::{
    config::Address,
    grpc::pb::{
        AcquireSessionLeaseResponse, HoldSessionLeaseRequest, HoldSessionLeaseResponse,
        MarkProcessedRequest, MarkProcessedResponse, hold_session_lease_response::News,
    },
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::{sleep, timeout},
};
use tonic::{Status, codec::CompressionEncoding};
use tonic_types::StatusExt as _;

use super::{SERVICE, channel, post};
use crate::harness::{
    Fixture, acquire, granted, held, mark,
    raw::framed,
    session,
    web::{BINARY, Body, TEXT, answer, frames, over},
};

const PATIENCE: Duration = Duration::from_secs(30);
fn path(method: &str) -> String {
    format!("/{SERVICE}/{method}")
}

fn tcp(f: &Fixture) -> std::net::SocketAddr {
    match *f.replica.server.address() {
        Address::Tcp(address) => address,
        Address::Unix(_) => panic!("not TCP"),
    }
}

/// A connection over HTTP/1.1.
async fn connect(f: &Fixture) -> SendRequest<Body> {
    over(TcpStream::connect(tcp(f)).await.unwrap()).await
}

/// Posts a request, as soon as the connection takes one.
async fn send(
    requests: &mut SendRequest<Body>,
    method: &str,
    kind: &str,
    body: impl Into<Body>,
) -> Response<Body> {
    requests.ready().await.unwrap();
    let request = Request::post(path(method)).header("host", "x").header("content-type", kind);
    let answering = requests.send_request(request.body(body.into()).unwrap());
    timeout(PATIENCE, answering).await.expect("no answer").unwrap().map(Body::new)
}

/// Marks an event. Answers whether it was the first.
async fn is_first(requests: &mut SendRequest<Body>, kind: &str, event: &str) -> bool {
    let message = framed(&mark("T1", event));
    let body = if kind == TEXT { STANDARD.encode(message).into_bytes() } else { message };
    let response = send(requests, "MarkProcessed", kind, body).await;
    assert_eq!(
        response.headers()["content-type"].to_str().unwrap().contains("-text"),
        kind == TEXT
    );
    let (answer, status) = answer::<MarkProcessedResponse>(response).await;
    assert_eq!(status.code(), tonic::Code::Ok, "{status:?}");
    answer.unwrap().first
}

/// How a mark fails.
async fn failed(requests: &mut SendRequest<Body>, kind: &str, body: Vec<u8>) -> Status {
    let response = send(requests, "MarkProcessed", kind, body).await;
    let (answer, status) = answer::<MarkProcessedResponse>(response).await;
    assert_eq!(answer, None);
    status
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap_or_else(|| panic!("{status:?}")).reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_over_http1_and_http2() {
    let f = Fixture::sqlite().await;
    let mut http1 = connect(&f).await;
    for kind in [BINARY, "application/grpc-web", TEXT, "application/grpc-web; charset=utf-8"] {
        let event = format!("Ev of {kind}");
        assert!(is_first(&mut http1, kind, &event).await, "{kind}");
        assert!(!is_first(&mut http1, kind, &event).await, "{kind}");
    }
    let http2 = channel(&f).await;
    let response = post(&http2, &path("MarkProcessed"), BINARY, framed(&mark("T1", "Ev"))).await;
    let (first, status) = answer::<MarkProcessedResponse>(response.map(Body::new)).await;
    assert_eq!((first.unwrap().first, status.code()), (true, tonic::Code::Ok));
    // gRPC goes on beside it.
    let mut grpc = f.client.clone().accept_compressed(CompressionEncoding::Gzip);
    assert!(!grpc.mark_processed(mark("T1", "Ev")).await.unwrap().into_inner().first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_takes_it_too() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("oncegate.sock");
    let listen = format!("127.0.0.1:0,unix:{}", socket.display());
    let f = Fixture::sqlite().await.restarted(&["--listen", &listen]).await;
    let mut requests = over(UnixStream::connect(&socket).await.unwrap()).await;
    assert!(is_first(&mut requests, BINARY, "Ev1").await);
    assert!(!is_first(&mut requests, BINARY, "Ev1").await);
    drop(f);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_in_the_body_with_their_reasons() {
    let mut f = Fixture::sqlite().await.restarted(&["--max-connections", "1"]).await;
    // The fixture's own client has the place.
    f.client.mark_processed(mark("T1", "Ev0")).await.unwrap();
    let mut requests = connect(&f).await;
    let status = failed(&mut requests, BINARY, framed(&mark("T1", "Ev1"))).await;
    assert_eq!(reason(&status), "TOO_MANY_CONNECTIONS");
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "500");
    assert!(status.get_details_retry_info().is_some());

    let f = Fixture::sqlite().await;
    let mut requests = connect(&f).await;
    let long = MarkProcessedRequest { request_id: "x".repeat(2 << 20), ..mark("T1", "Ev1") };
    for (case, kind, body, expected) in [
        ("a field", BINARY, framed(&mark("", "Ev1")), "INVALID_FIELD"),
        ("no protobuf", BINARY, vec![0, 0, 0, 0, 1, 0xff], "UNREADABLE_REQUEST"),
        ("cut short", BINARY, vec![0, 0, 0, 0, 9, 1], "UNREADABLE_REQUEST"),
        ("no Base64", TEXT, b"!!!!".to_vec(), "UNREADABLE_REQUEST"),
        ("cut text", TEXT, b"AAAAA".to_vec(), "UNREADABLE_REQUEST"),
    ] {
        assert_eq!(reason(&failed(&mut requests, kind, body).await), expected, "{case}");
    }
    // Answered before it is read, and the connection goes on.
    for _ in 0..5 {
        let status = failed(&mut requests, BINARY, framed(&long)).await;
        assert_eq!(reason(&status), "MESSAGE_TOO_LARGE");
    }
    assert!(is_first(&mut requests, BINARY, "Ev2").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_call_is_refused() {
    let f = Fixture::sqlite().await;
    for (method, kind) in [
        ("POST", "application/grpc"),
        ("POST", "application/json"),
        ("POST", "application/grpc-web+json"),
        ("GET", "text/html"),
        ("OPTIONS", "text/plain"),
        ("OPTIONS", BINARY),
    ] {
        let mut requests = connect(&f).await;
        let request = Request::builder().method(method).uri(path("MarkProcessed"));
        let request = request.header("host", "x").header("content-type", kind);
        let body = Body::from(framed(&mark("T1", "Ev1")));
        let response = requests.send_request(request.body(body).unwrap()).await.unwrap();
        assert!(response.status().is_client_error(), "{method} {kind}: {response:?}");
        assert!(response.headers().contains_key("oncegate-version"), "{method} {kind}");
    }
    assert!(f.client.clone().mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
}

fn hold(holder: &str) -> Vec<u8> {
    framed(&HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: holder.to_owned(),
        ..Default::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_holds_a_lease_until_its_connection_ends() {
    let f = Fixture::sqlite().await;
    let mut requests = connect(&f).await;
    let response = send(&mut requests, "HoldSessionLease", BINARY, hold("a")).await;
    let mut pieces = response.into_body().into_data_stream();
    let piece = timeout(PATIENCE, pieces.next()).await.unwrap().unwrap().unwrap();
    let (messages, trailers) = frames(&piece);
    assert!(trailers.is_none());
    let first = HoldSessionLeaseResponse::decode(&*messages[0]).unwrap().news;
    assert!(matches!(first, Some(News::Granted(_))), "{first:?}");
    let ask = async || f.client.clone().acquire_session_lease(acquire("T1", "s", "b")).await;
    assert_eq!(held(ask().await.unwrap().into_inner()).holder, "a");
    drop((pieces, requests));
    let freed = async {
        loop {
            let answer: AcquireSessionLeaseResponse = ask().await.unwrap().into_inner();
            if matches!(
                answer.outcome,
                Some(oncegate::grpc::pb::acquire_session_lease_response::Outcome::Lease(_))
            ) {
                return granted(answer);
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, freed).await.expect("the lease is still held");
}

/// Waits until the server closes a connection; answers what it sent before.
async fn closed(peer: &mut TcpStream) -> String {
    let mut sent = Vec::new();
    let closing = peer.read_to_end(&mut sent);
    let _ = timeout(PATIENCE, closing).await.expect("it is still open");
    String::from_utf8_lossy(&sent).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_requests_are_cut() {
    let f = Fixture::sqlite().await.restarted(&["--preface-timeout", "300ms"]).await;
    let head = format!("POST {} HTTP/1.1\r\nhost: x\r\ncontent-type: {BINARY}\r\n", path("X"));
    for begun in ["", "POST", &head] {
        let mut peer = TcpStream::connect(tcp(&f)).await.unwrap();
        peer.write_all(begun.as_bytes()).await.unwrap();
        let sent = closed(&mut peer).await;
        assert!(sent.is_empty() || sent.starts_with("HTTP/1.1 408"), "{sent}");
    }
    // A body that does not come.
    let mut requests = connect(&f).await;
    let waiting = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let response = send(&mut requests, "MarkProcessed", BINARY, Body::from_stream(waiting)).await;
    let (_, status) = answer::<MarkProcessedResponse>(response).await;
    assert_eq!(reason(&status), "CALL_TIMEOUT");
    // An idle connection.
    let mut idle = TcpStream::connect(tcp(&f)).await.unwrap();
    let get = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    idle.write_all(get.as_bytes()).await.unwrap();
    assert!(closed(&mut idle).await.starts_with("HTTP/1.1 415"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_head_is_refused() {
    let f = Fixture::sqlite().await;
    let mut requests = connect(&f).await;
    for (length, expected) in
        [(20, StatusCode::OK), (100, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)]
    {
        requests.ready().await.unwrap();
        let request = Request::post(path("MarkProcessed"))
            .header("host", "x")
            .header("content-type", BINARY)
            .header("x-long", "x".repeat(length * 1024));
        let body = Body::from(framed(&mark("T1", "Ev1")));
        let response = requests.send_request(request.body(body).unwrap()).await.unwrap();
        assert_eq!(response.status(), expected, "{length} KiB");
        if expected == StatusCode::OK {
            let (_, status) = answer::<MarkProcessedResponse>(response.map(Body::new)).await;
            assert_eq!(reason(&status), "METADATA_TOO_LARGE");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_streams_and_idle_connections() {
    let f = Fixture::sqlite().await.restarted(&["--drain-timeout", "20s"]).await;
    let mut idle = connect(&f).await;
    assert!(is_first(&mut idle, BINARY, "Ev1").await);
    let mut mute = TcpStream::connect(tcp(&f)).await.unwrap();
    let mut holder = connect(&f).await;
    let response = send(&mut holder, "HoldSessionLease", BINARY, hold("a")).await;
    let begun = std::time::Instant::now();
    let (_, (granted, status)) =
        tokio::join!(f.replica.server.stop(), answer::<HoldSessionLeaseResponse>(response));
    assert!(granted.is_some());
    assert_eq!(reason(&status), "DRAINING");
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "500");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(idle.ready().await.is_err(), "it is still open");
    assert_eq!(closed(&mut mute).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_is_closed_between_requests() {
    let f = Fixture::sqlite().await.restarted(&["--max-connection-age", "300ms"]).await;
    let mut requests = connect(&f).await;
    assert!(is_first(&mut requests, BINARY, "Ev1").await);
    let closed = async {
        while requests.ready().await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, closed).await.expect("it is still open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_is_refused() {
    let f = Fixture::sqlite().await;
    let mut http1 = connect(&f).await;
    for kind in [BINARY, TEXT] {
        http1.ready().await.unwrap();
        let request = Request::post(path("MarkProcessed")).header("host", "x");
        let request = request.header("origin", "http://x").header("content-type", kind);
        let request = request.body(Body::from(framed(&mark("T1", "Ev1")))).unwrap();
        let refused = timeout(PATIENCE, http1.send_request(request)).await.unwrap().unwrap();
        assert_eq!(refused.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        http1 = connect(&f).await;
    }
    assert!(is_first(&mut http1, BINARY, "Ev1").await);
}
