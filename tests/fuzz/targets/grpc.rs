//! Bodies of calls of every method, by gRPC and gRPC-Web, through a real server.

use std::io::Write as _;

use base64::Engine as _;
use flate2::{Compression, write::GzEncoder};
use futures_util::{FutureExt as _, future::BoxFuture};
use oncegate::grpc::pb::Reason;
use prost_reflect::{DynamicMessage, MethodDescriptor, ReflectMessage as _, Value};
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::Platforms;
use crate::{
    chance::Chance,
    messages::Contract,
    mutate::mutate,
    remembered::Remembered,
    server::{Answer, Caller, PATIENCE, Running, framed, message},
    target::Target,
};

/// The codes that a caller may cause.
const CODES: [Code; 9] = [
    Code::Ok,
    Code::Cancelled,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::FailedPrecondition,
    Code::ResourceExhausted,
    Code::OutOfRange,
    Code::Unimplemented,
];

/// An input is the path and flags, on a line, and the body of the HTTP request. The flags:
/// `gzip` (a header), `web`, `text` (gRPC-Web), `open` (the body does not end).
pub struct Grpc {
    contract: Contract,
    remembered: Remembered,
    running: Option<(Running, Caller)>,
}

impl Grpc {
    pub fn new() -> Self {
        let payloads = Platforms::new().bodies().map(<[u8]>::to_vec).collect();
        Self { contract: Contract::new(payloads), remembered: Remembered::default(), running: None }
    }

    async fn check(&self, input: &[u8]) -> Result<(), String> {
        let Some((path, flags, body)) = split(input) else { return Ok(()) };
        let Some(method) = self.contract.method(path) else { return Ok(()) };
        let Some((_, caller)) = &self.running else { return Err("no server".to_owned()) };
        let mut body = body.to_vec();
        self.remembered.fill_in(&mut body);
        let has = |flag: &str| flags.split(' ').any(|other| other == flag);
        let kind = match (has("web"), has("text")) {
            (true, _) => "application/grpc-web+proto",
            (_, true) => "application/grpc-web-text",
            _ => "application/grpc",
        };
        let mut metadata =
            vec![("content-type", kind), ("te", "trailers"), ("grpc-timeout", "200m")];
        if has("gzip") {
            metadata.push(("grpc-encoding", "gzip"));
        }
        let first = method.is_server_streaming();
        let call = caller.call(path, &metadata, body, !has("open"), first);
        let answer = timeout(PATIENCE, call).await.map_err(|_| "no answer".to_owned())?;
        let answer = answer.map_err(|error| format!("reset: {error}"))?;
        self.judge(&method, kind, &answer)
    }

    fn judge(&self, method: &MethodDescriptor, kind: &str, answer: &Answer) -> Result<(), String> {
        if answer.http != 200 {
            return Err(format!("HTTP {}", answer.http));
        }
        if let Some(status) = &answer.status {
            judge_status(method, status)?;
        }
        if kind == "application/grpc" && answer.status.is_none() && !method.is_server_streaming() {
            return Err("no status".to_owned());
        }
        if kind == "application/grpc-web-text" {
            return Ok(());
        }
        if kind == "application/grpc-web+proto" {
            let text = String::from_utf8_lossy(&answer.body);
            for fault in ["grpc-status:2\r", "grpc-status:13\r"] {
                if text.contains(fault) {
                    return Err(format!("{fault} in {text}"));
                }
            }
        }
        let Some(message) = message(&answer.body).filter(|_| answer.body[0] == 0) else {
            return Ok(());
        };
        let message = DynamicMessage::decode(method.output(), message)
            .map_err(|error| format!("an answer that is no message: {error}"))?;
        self.learn(&message)
    }

    /// Notes the names in an answer; an item of a batch must not have an error that is the
    /// server's fault.
    fn learn(&self, message: &DynamicMessage) -> Result<(), String> {
        let is_item = message.descriptor().full_name() == "oncegate.v1.BatchItemError";
        for (field, value) in message.fields() {
            match value {
                Value::String(name) if matches!(field.name(), "lease_id" | "turn_id") => {
                    self.remembered.note(name);
                }
                Value::I32(code) if is_item && !CODES.contains(&Code::from(*code)) => {
                    return Err(format!("an item with code {code}"));
                }
                Value::Message(inner) => self.learn(inner)?,
                Value::List(items) => {
                    for inner in items.iter().filter_map(Value::as_message) {
                        self.learn(inner)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn judge_status(method: &MethodDescriptor, status: &Status) -> Result<(), String> {
    let fail = || Err(format!("{:?}: {}", status.code(), status.message()));
    if !CODES.contains(&status.code()) {
        return fail();
    }
    // Health and reflection are not the contract.
    if !method.full_name().starts_with("oncegate.") {
        return Ok(());
    }
    let reason = status.get_details_error_info().map(|info| format!("REASON_{}", info.reason));
    match reason {
        None if matches!(status.code(), Code::Ok | Code::Unimplemented) => Ok(()),
        Some(name) => match Reason::from_str_name(&name) {
            None | Some(Reason::Internal | Reason::Unspecified) => fail(),
            Some(_) => Ok(()),
        },
        None => fail(),
    }
}

/// The path, the flags, the body.
fn split(input: &[u8]) -> Option<(&str, &str, &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let head = str::from_utf8(&input[..end]).ok()?;
    let (path, flags) = head.split_once(' ').unwrap_or((head, ""));
    Some((path, flags, &input[end + 1..]))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default()
}

/// One element, very often: short on the wire, and more in memory.
fn many(chance: &mut Chance, message: &[u8]) -> Vec<u8> {
    let element = match chance.below(4) {
        // A field of any number, with nothing in it.
        0 | 1 => vec![u8::try_from(chance.between(1, 15) << 3 | 2).unwrap_or(10), 0],
        // The same within the first field, a message.
        2 => {
            let inner = [u8::try_from(chance.between(1, 15) << 3 | 2).unwrap_or(10), 0].repeat(60);
            [&[10, 120][..], &inner].concat()
        }
        _ => message[..message.len().min(64)].to_vec(),
    };
    let most = (1 << 20) / element.len().max(1);
    element.repeat(most.min([100, 5_000, 524_288][chance.below(3)]))
}

impl Target for Grpc {
    fn name(&self) -> &'static str {
        "grpc"
    }

    fn share(&self) -> u64 {
        25
    }

    /// A request has up to 1 MiB, and what is nested in it is larger in memory.
    fn bound(&self) -> usize {
        32 << 20
    }

    fn input(&self, chance: &mut Chance) -> Vec<u8> {
        let method = chance.pick(&self.contract.methods);
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let mut message = self.contract.message(chance, &method.input());
        match chance.below(8) {
            0..3 => {}
            3 if chance.one_in(64) => message = many(chance, &message),
            4 if chance.one_in(8) => {
                let count = chance.between(0, 300);
                message = chance.bytes(count);
            }
            _ => {
                let other = chance.pick(&self.contract.methods).input();
                let other = self.contract.message(chance, &other);
                mutate(chance, &mut message, &[other]);
            }
        }
        let mut flags = String::new();
        let is_gzip = chance.one_in(16);
        let mut body = if is_gzip {
            flags.push_str(" gzip");
            framed(1, &gzip(&message))
        } else {
            framed(0, &message)
        };
        if chance.one_in(8) {
            mutate(chance, &mut body, &[]);
        }
        match chance.below(20) {
            0 => flags.push_str(" web"),
            1 => {
                flags.push_str(" text");
                body = base64::engine::general_purpose::STANDARD.encode(body).into_bytes();
                if chance.one_in(4) {
                    mutate(chance, &mut body, &[]);
                }
            }
            2 if method.is_server_streaming() => flags.push_str(" open"),
            _ => {}
        }
        [path.as_bytes(), flags.as_bytes(), b"\n", &body].concat()
    }

    fn take<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<(), String>> {
        self.check(input).boxed()
    }

    fn start(&mut self) -> BoxFuture<'_, ()> {
        async {
            let running = Running::start().await;
            let caller = running.connect().await.expect("a connection");
            self.running = Some((running, caller));
        }
        .boxed()
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        async {
            if let Some((running, caller)) = self.running.take() {
                drop(caller);
                running.stop().await;
            }
        }
        .boxed()
    }
}
