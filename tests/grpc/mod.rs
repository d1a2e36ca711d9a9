//! What a caller meets on the wire, whatever the store.

use http::{Request, Response, header::CONTENT_TYPE};
use tonic::{Status, body::Body, transport::Channel};
use tower::ServiceExt as _;

use crate::harness::{self, Fixture};

mod bounds;
mod connections;
mod gzip;
mod half_open;
mod metrics;
mod reflection;
mod server_info;
mod spans;
mod web;
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
