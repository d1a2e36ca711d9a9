//! What a caller meets on the wire, whatever the store.

use std::time::Duration;

use http::{Request, Response, header::CONTENT_TYPE};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};
use tonic::{Status, body::Body, transport::Channel};
use tower::ServiceExt as _;

use crate::harness::{self, Fixture, Replica};

mod bounds;
mod metrics;
mod reflection;
mod wire;

const SERVICE: &str = "oncegate.v1.IdempotencyService";

/// A connection to a fixture's server, for other services than ours.
async fn channel(f: &Fixture) -> Channel {
    harness::connect(f.replica.server.address()).await
}

/// Posts bytes, which no generated client would send.
async fn post(channel: &Channel, path: &str, kind: &str, body: Vec<u8>) -> Response<Body> {
    let request = Request::post(path).header(CONTENT_TYPE, kind);
    let request = request.body(Body::new(axum::body::Body::from(body))).unwrap();
    channel.clone().oneshot(request).await.unwrap()
}

/// Calls a method with a message of any bytes; it must be refused.
async fn refusal(channel: &Channel, path: &str, message: &[u8]) -> Status {
    // https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
    let length = u32::try_from(message.len()).unwrap();
    let framed = [&[0], length.to_be_bytes().as_slice(), message].concat();
    let response = post(channel, path, "application/grpc", framed).await;
    Status::from_header_map(response.headers()).expect("an answer without a body")
}

/// What a server's metrics page holds now, headers included.
async fn metrics_page(replica: &Replica) -> String {
    let address = replica.server.metrics_address().unwrap();
    let mut peer = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    peer.read_to_string(&mut page).await.unwrap();
    page
}

/// Waits until a metric has a value: `line` as the page shows it. A call is
/// counted when its last byte has left, a moment after its caller may have it.
async fn metric(replica: &Replica, line: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let page = metrics_page(replica).await;
        if page.lines().any(|found| found == line) {
            return;
        }
        assert!(Instant::now() < until, "no {line} in\n{page}");
        sleep(Duration::from_millis(5)).await;
    }
}
