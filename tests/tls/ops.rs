//! The listener for operations: HTTP pages and gRPC health, with and without TLS.

use std::time::Duration;

use oncegate::config::Address;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::serve;
use crate::harness::{
    Client, Replica,
    certs::{Files, client},
    connect, mark,
    metrics::page,
};

const PATIENCE: Duration = Duration::from_secs(10);

fn ops(replica: &Replica) -> Address {
    Address::Tcp(replica.server.ops_address().unwrap())
}

async fn check(channel: Channel, service: &str) -> ServingStatus {
    let check = HealthCheckRequest { service: service.into() };
    HealthClient::new(channel).check(check).await.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_without_a_certificate_is_answered_beside_mutual_tls() {
    let files = Files::new();
    let replica = serve(&files.mutual("required"), &[]).await;
    let address = ops(&replica);
    // As `grpc:` probes of kubelet ask: HTTP/2 without TLS.
    let channel = connect(&address).await;
    for service in ["", "readiness", "liveness"] {
        assert_eq!(check(channel.clone(), service).await, ServingStatus::Serving, "{service}");
    }
    // Nothing else is called there.
    let refused = Client::new(channel).mark_processed(mark("T1", "Ev1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
    let Address::Tcp(address) = address else { panic!() };
    for path in ["/livez", "/readyz", "/metrics"] {
        assert!(page(address, path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(page(address, "/nothing").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_uses_tls_if_asked_to() {
    let files = Files::new();
    let more = ["--ops-tls", "--preface-timeout", "300ms"];
    let replica = serve(&files.mutual("required"), &more).await;
    let address = ops(&replica);
    let own = files.clients.sign(&client("prometheus"));
    assert_eq!(check(files.connect(&address, Some(&own)).await, "").await, ServingStatus::Serving);
    // A client of HTTP/1.1 need not say so.
    let protocols: [&[&[u8]]; 3] = [&[], &[b"http/1.1"], &[b"h2", b"http/1.1"]];
    for protocols in &protocols[..2] {
        let mut peer = files.connector(protocols, Some(&own)).connect(&address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        peer.write_all(request).await.unwrap();
        let mut answer = String::new();
        peer.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("oncegate_tls_handshakes_total{listener=\"ops\""), "{answer}");
    }
    // The same policy: without a certificate nothing is answered.
    if let Ok(mut peer) = files.connector(protocols[2], None).connect(&address).await {
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, peer.read_to_end(&mut answer)).await.expect("it is still open");
        assert_eq!(answer, b"");
    }
    // A handshake that never comes ends in time, and plaintext at once.
    let Address::Tcp(address) = address else { panic!() };
    for first in [&b""[..], b"GET /metrics HTTP/1.1\r\n\r\n"] {
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(first).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, peer.read_to_end(&mut answer)).await.expect("it is still open");
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
}
