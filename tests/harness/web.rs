//! gRPC-Web over HTTP/1.1, as its callers see it.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, Response, StatusCode};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;

pub const BINARY: &str = "application/grpc-web+proto";
pub const TEXT: &str = "application/grpc-web-text";

pub type Body = axum::body::Body;

/// A connection over `io`.
pub async fn over(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> SendRequest<Body> {
    let (requests, connection) = handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    requests
}

/// The frames of a body: messages, and the trailers.
pub fn frames(mut bytes: &[u8]) -> (Vec<Vec<u8>>, Option<HeaderMap>) {
    let (mut messages, mut trailers) = (Vec::new(), None);
    while let Some(([flag, length @ ..], rest)) = bytes.split_first_chunk::<5>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        bytes = rest;
        if *flag == 0x80 {
            let text = std::str::from_utf8(frame).unwrap();
            let lines = text.lines().map(|line| line.split_once(':').unwrap());
            let fields: HashMap<String, String> =
                lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
            trailers = Some(HeaderMap::try_from(&fields).unwrap());
        } else {
            messages.push(frame.to_vec());
        }
    }
    assert!(bytes.is_empty(), "cut short");
    (messages, trailers)
}

/// What was answered: the message, if there is one, and the status in the body.
pub async fn answer<M: Message + Default>(response: Response<Body>) -> (Option<M>, Status) {
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().contains_key("oncegate-version"));
    assert!(!response.headers().contains_key("grpc-status"), "{:?}", response.headers());
    assert!(response.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
    let is_text = response.headers()["content-type"].to_str().unwrap().contains("-text");
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    // Each piece of the text is padded by itself.
    let bytes = if is_text {
        bytes.chunks(4).flat_map(|four| STANDARD.decode(four).unwrap()).collect()
    } else {
        bytes.to_vec()
    };
    let (messages, trailers) = frames(&bytes);
    let status = Status::from_header_map(&trailers.expect("trailers")).expect("a status");
    (messages.first().map(|message| M::decode(&**message).unwrap()), status)
}
