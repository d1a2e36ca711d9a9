//! Who gets past the handshake, and what those cost who do not.

use std::time::Duration;

use http::Request;
use hyper_util::rt::TokioIo;
use oncegate::{config::Address, store::Clock};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::rustls::{
    HandshakeKind, ProtocolVersion,
    version::{TLS12, TLS13},
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{call, call_over, serve};
use crate::harness::{
    Client, Replica,
    certs::{Connector, Files, port},
    mark,
    metrics::metric,
    raw::framed,
};

const PATIENCE: Duration = Duration::from_secs(10);
const H2: &[&[u8]] = &[b"h2"];

async fn tcp(address: &Address) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port(address))).await.unwrap()
}

/// What a peer still sends until it closes the connection.
async fn rest(mut peer: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, peer.read_to_end(&mut bytes)).await.expect("it is still open");
    bytes
}

fn handshakes(outcome: &str, count: u64) -> String {
    format!("oncegate_tls_handshakes_total{{listener=\"grpc\",outcome=\"{outcome}\"}} {count}")
}

/// The first message of a client that knows no newer version than `minor`: 2 is TLS 1.1.
fn client_hello(minor: u8) -> Vec<u8> {
    // Version, random, no session, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    let body = [&[3, minor][..], &[7; 32], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0]].concat();
    // Groups, formats of points, algorithms of signatures; ALPN h2.
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 4, 0, 2, 4, 3],
        &[0, 16, 0, 5, 0, 3, 2, b'h', b'2'],
    ]
    .concat();
    let length = u8::try_from(extensions.len()).unwrap();
    let body = [&body[..], &[0, length], &extensions].concat();
    let length = u8::try_from(body.len()).unwrap();
    let message = [&[1, 0, 0, length][..], &body].concat();
    let length = u8::try_from(message.len()).unwrap();
    [&[22, 3, 1, 0, length][..], &message].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_and_both_protocols_are_served() {
    let files = Files::new();
    let replica = serve(&files.flags(), &[]).await;
    call(&files, &replica, None).await.unwrap();
    for (version, expected) in
        [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)]
    {
        let connector = Connector::new(&files.servers, &[b"http/1.1"], None, &[version]);
        let stream = connector.connect(replica.server.address()).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        // gRPC-Web over HTTP/1.1.
        let (mut requests, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("/oncegate.v1.IdempotencyService/MarkProcessed")
            .header("host", "localhost")
            .header("content-type", "application/grpc-web+proto")
            .body(axum::body::Body::from(framed(&mark("T1", "Ev1"))))
            .unwrap();
        let answer = requests.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let body = axum::body::to_bytes(axum::body::Body::new(answer.into_body()), 1 << 16);
        let body = body.await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("grpc-status:0"), "{body:?}");
    }
    metric(&replica, &handshakes("completed", 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_resumed_and_no_early_data_is_taken() {
    let files = Files::new();
    let replica = serve(&files.flags(), &[]).await;
    let connector = Connector::new(&files.servers, &[b"http/1.1"], None, &[&TLS13]);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut stream = connector.connect(replica.server.address()).await.unwrap();
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
        assert!(!stream.get_ref().1.is_early_data_accepted());
        // The tickets are read with the answer.
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 415"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_on_a_port_with_tls_is_closed() {
    let files = Files::new();
    let replica = serve(&files.flags(), &["--preface-timeout", "30s"]).await;
    let address = replica.server.address();
    for (number, first) in
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], b"GET / HTTP/1.1\r\n\r\n"]
            .into_iter()
            .enumerate()
    {
        let mut peer = tcp(address).await;
        peer.write_all(first).await.unwrap();
        let answer = rest(peer).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        metric(&replica, &handshakes("not_tls", u64::try_from(number).unwrap() + 1)).await;
    }
    call(&files, &replica, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_on_a_port_without_is_refused_and_harms_nobody() {
    let files = Files::new();
    let replica = serve(&[], &[]).await;
    let refused = timeout(PATIENCE, call(&files, &replica, None)).await.expect("it waits");
    assert!(refused.unwrap_err().contains("InvalidContentType"));
    replica.client().await.mark_processed(mark("T1", "Ev1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_1_is_refused() {
    let files = Files::new();
    let replica = serve(&files.flags(), &["--preface-timeout", "30s"]).await;
    for minor in [1, 2] {
        let mut peer = tcp(replica.server.address()).await;
        peer.write_all(&client_hello(minor)).await.unwrap();
        let answer = rest(peer).await;
        // A fatal alert: protocol_version.
        assert_eq!(answer.first(), Some(&21), "{answer:?}");
        assert!(answer.ends_with(&[2, 70]), "{answer:?}");
    }
    metric(&replica, &handshakes("incompatible", 2)).await;
    // The same message of TLS 1.2 is answered with the next one of the handshake.
    let mut peer = tcp(replica.server.address()).await;
    peer.write_all(&client_hello(3)).await.unwrap();
    assert_eq!(timeout(PATIENCE, peer.read_u8()).await.expect("no answer").unwrap(), 22);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_must_say_which_protocol_it_speaks() {
    let files = Files::new();
    let replica = serve(&files.flags(), &[]).await;
    let silent = files.connector(&[], None);
    let mut peer = silent.connect(replica.server.address()).await.unwrap();
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, peer.read_to_end(&mut bytes)).await.expect("it is still open");
    assert_eq!(bytes, b"");
    metric(&replica, &handshakes("no_alpn", 1)).await;
    let other = files.connector(&[b"spdy/3", b"h3"], None);
    let refused = other.connect(replica.server.address()).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    metric(&replica, &handshakes("no_alpn", 2)).await;
    let both = files.connector(&[b"http/1.1", b"h2"], None);
    let peer = both.connect(replica.server.address()).await.unwrap();
    assert_eq!(peer.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_handshake_ends_in_time() {
    let files = Files::new();
    let replica = serve(&files.flags(), &["--preface-timeout", "300ms"]).await;
    let hello = client_hello(3);
    // Nothing; a part of the first message.
    for (count, first) in [(1, &[][..]), (2, &hello[..20])] {
        let mut peer = tcp(replica.server.address()).await;
        let began = Instant::now();
        peer.write_all(first).await.unwrap();
        assert_eq!(rest(peer).await, b"");
        assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
        metric(&replica, &handshakes("timed_out", count)).await;
    }
    // The handshake and then nothing: the same time bounds both.
    let stream = files.connector(H2, None).connect(replica.server.address()).await.unwrap();
    let (mut stream, _) = stream.into_inner();
    let ended = async { while matches!(stream.read(&mut [0; 512]).await, Ok(1..)) {} };
    timeout(PATIENCE, ended).await.expect("it is still open");
    metric(&replica, "oncegate_connections 0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_count_as_connections_and_health_answers_beyond_them() {
    let files = Files::new();
    let more = ["--max-connections", "4", "--preface-timeout", "3s"];
    let replica = serve(&files.flags(), &more).await;
    let address = replica.server.address();
    let mut served = Client::new(files.connect(address, None).await);
    served.mark_processed(mark("T1", "Ev1")).await.unwrap();
    // Far more than may be, each of which begins a handshake and says no more.
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut peer = tcp(address).await;
        peer.write_all(&client_hello(3)[..20]).await.unwrap();
        silent.push(peer);
    }
    // Over the limit: the handshake is made, health is answered, and work is not.
    let beyond = timeout(PATIENCE, files.connect(address, None)).await.expect("it waits");
    let check = HealthCheckRequest::default();
    HealthClient::new(beyond.clone()).check(check).await.unwrap();
    let refused = call_over(beyond).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    served.mark_processed(mark("T1", "Ev2")).await.unwrap();
    // Once their time is over there is room.
    let until = Instant::now() + PATIENCE;
    while call(&files, &replica, None).await.is_err() {
        assert!(Instant::now() < until, "there is no room");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_never_uses_tls() {
    let files = Files::new();
    let socket = format!("unix:{}", files.shown("s/oncegate.sock"));
    let flags = files.mutual("required");
    let mut flags: Vec<_> = flags.iter().map(String::as_str).collect();
    flags.extend(["--listen", &socket]);
    let replica = Replica::start("memory:", Clock::Store, &flags).await;
    replica.client().await.mark_processed(mark("T1", "Ev1")).await.unwrap();
}
