//! A client that sends whatever HTTP/2 lets it send.

use std::time::Duration;

use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, Response};
use oncegate::config::Address;
use prost::{Message, bytes::Bytes};
use tokio::{net::TcpStream, time::timeout};
use tonic::{Code, Status};

/// How long an answer may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection.
pub struct Raw(SendRequest<Bytes>);

/// One call, its headers sent.
pub struct RawCall {
    answer: ResponseFuture,
    body: SendStream<Bytes>,
}

impl Raw {
    pub async fn connect(address: &Address) -> Self {
        Self::connect_as(Builder::new(), address).await
    }

    /// Connects as `client` says.
    pub async fn connect_as(client: Builder, address: &Address) -> Self {
        let Address::Tcp(address) = address else { panic!("not a TCP server") };
        let socket = TcpStream::connect(address).await.unwrap();
        let (requests, connection) = client.handshake(socket).await.unwrap();
        tokio::spawn(connection);
        Self(requests)
    }

    /// Sends the headers of a call.
    pub async fn begin(&mut self, path: &str, metadata: &[(&'static str, &str)]) -> RawCall {
        self.try_begin(path, metadata).await.expect("the connection takes calls")
    }

    /// The same; none where the connection takes no more calls.
    pub async fn try_begin(
        &mut self,
        path: &str,
        metadata: &[(&'static str, &str)],
    ) -> Option<RawCall> {
        let mut request = Request::post(format!("http://x{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        self.0 = self.0.clone().ready().await.ok()?;
        let (answer, body) = self.0.send_request(request.body(()).unwrap(), false).ok()?;
        Some(RawCall { answer, body })
    }
}

impl RawCall {
    /// Sends bytes of the call's body.
    pub fn send(&mut self, bytes: impl Into<Bytes>, last: bool) {
        // An error says that the call has ended, which its answer does as well.
        let _ = self.body.send_data(bytes.into(), last);
    }

    /// Waits until the call, a stream, is answered; it lives for as long as what is returned.
    pub async fn answered(self) -> (RecvStream, SendStream<Bytes>) {
        let Self { answer, body } = self;
        let answer = timeout(PATIENCE, answer).await.expect("no answer").expect("no reset");
        let refused = Status::from_header_map(answer.headers());
        assert!(refused.is_none(), "{refused:?}");
        (answer.into_body(), body)
    }

    /// How the call ended. What it sends is kept open until then.
    pub async fn status(self) -> Status {
        let Self { answer, body } = self;
        let ended = timeout(PATIENCE, async {
            let (parts, rest) = answer.await.map(Response::into_parts).map_err(reset)?;
            match Status::from_header_map(&parts.headers) {
                Some(status) => Ok(status),
                None if parts.status != 200 => {
                    Err(Status::unknown(format!("HTTP {}", parts.status)))
                }
                None => trailers(rest).await,
            }
        });
        let status = ended.await.expect("no answer").unwrap_or_else(|status| status);
        drop(body);
        status
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
fn reset(error: h2::Error) -> Status {
    Status::new(Code::Unknown, format!("reset: {error}"))
}

async fn trailers(mut rest: RecvStream) -> Result<Status, Status> {
    while let Some(data) = rest.data().await {
        let data = data.map_err(reset)?;
        let _ = rest.flow_control().release_capacity(data.len());
    }
    let trailers: HeaderMap = rest.trailers().await.map_err(reset)?.unwrap_or_default();
    Status::from_header_map(&trailers).ok_or_else(|| Status::unknown("no status"))
}

/// A message with its prefix.
pub fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], length.as_slice(), &message].concat()
}
