//! The commands of the README and of `docs/calling.md` run as pasted, and print what is shown. A shell
//! block after `<!-- ci: run -->` is run line by line; the block after it is what its lines print. All
//! commands use the server that the README starts.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use oncegate::{config::Address, grpc::pb};
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, prost::Message as _};
use serde_json::{Deserializer, Value};
use tempfile::TempDir;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::harness::connect;

const PAGES: &str = concat!(include_str!("../README.md"), include_str!("../docs/calling.md"));
/// How the README calls the binary: the first line builds it.
const BINARY: [&str; 2] = ["cargo run --release --locked -- ", "target/release/oncegate "];
/// The address that the README's server listens on.
const ADDRESS: &str = oncegate::config::DEFAULT_ADDRESS;

/// What the pages show of each shell block: its lines, and what they print.
fn shown() -> Vec<(Vec<&'static str>, &'static str)> {
    let block = |text: &'static str| {
        let (_, rest) = text.split_once("```").unwrap();
        let (block, after) = rest.split_once("\n```\n").unwrap();
        (block.split_once('\n').unwrap().1, after)
    };
    let marked = PAGES.split("<!-- ci: run -->").skip(1);
    let blocks = marked.map(|text| {
        let (commands, after) = block(text);
        (commands.lines().collect(), block(after).0)
    });
    blocks.collect()
}

/// The words of a shell line that has no quotation marks but single ones.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (index, part) in line.split('\'').enumerate() {
        let mut pieces = if index % 2 == 1 { vec![part] } else { part.split(' ').collect() };
        words.last_mut().unwrap().push_str(pieces.remove(0));
        words.extend(pieces.into_iter().map(str::to_owned));
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A server in a directory of its own, started as the README does, but on a free port.
struct Started {
    child: Child,
    address: Address,
    printed: Vec<String>,
    _directory: TempDir,
}

impl Started {
    fn new(arguments: &[String], lines: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_oncegate"))
            .env_clear()
            .args(arguments)
            .args(["--listen", "127.0.0.1:0"])
            .current_dir(&directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let printed: Vec<_> = stdout.lines().take(lines).map(Result::unwrap).collect();
        let address = printed[0].rsplit(' ').next().unwrap().parse().unwrap();
        Self { child, address, printed, _directory: directory }
    }

    fn run(&self, arguments: &[String]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oncegate"));
        command.env_clear().env("ONCEGATE_SERVER", self.address.to_string()).args(arguments);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// Calls a method as `grpcurl -plaintext -d MESSAGES ADDRESS METHOD` does.
    async fn grpcurl(&self, arguments: &[String]) -> Vec<Value> {
        let [plaintext, data, messages, address, method] = arguments else { panic!() };
        assert_eq!([plaintext, data, address], ["-plaintext", "-d", ADDRESS]);
        let method = described(method);
        let mut reader = Deserializer::from_str(messages);
        let mut requests = Vec::new();
        while reader.end().is_err() {
            requests.push(DynamicMessage::deserialize(method.input(), &mut reader).unwrap());
        }
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let mut client = Grpc::new(connect(&self.address).await);
        client.ready().await.unwrap();
        let request = Request::new(tokio_stream::iter(requests));
        let answers = client.streaming(request, path.parse().unwrap(), Described(method)).await;
        let mut answers = answers.unwrap().into_inner();
        let mut values = Vec::new();
        while let Some(answer) = answers.message().await.unwrap() {
            values.push(serde_json::to_value(&answer).unwrap());
        }
        values
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A method by its full name, such as `oncegate.v1.TurnService/RunTurn`.
fn described(name: &str) -> MethodDescriptor {
    let (service, method) = name.split_once('/').unwrap();
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    let service = pool.get_service_by_name(service).unwrap();
    service.methods().find(|found| found.name() == method).unwrap()
}

/// Messages of a method that only its descriptor describes.
struct Described(MethodDescriptor);

impl Codec for Described {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Described {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Described {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.output(), from);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Replaces what differs from run to run by its kind.
fn settle(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // How long a call had taken is not always there to be seen.
            fields.remove("elapsed");
            for (name, value) in fields {
                let text = value.as_str().unwrap_or_default();
                let as_shown = match name.as_str() {
                    "processTime" | "acquireTime" | "expireTime" => {
                        humantime::parse_rfc3339(text).is_ok()
                    }
                    "remaining" | "retryAfter" => text.ends_with('s'),
                    "fencingToken" => text.parse::<u64>().is_ok(),
                    "leaseId" | "turnId" => !text.is_empty(),
                    _ => {
                        settle(value);
                        continue;
                    }
                };
                assert!(as_shown, "{name}: {text}");
                *value = Value::from(format!("some {name}"));
            }
        }
        Value::Array(values) => values.iter_mut().for_each(settle),
        _ => {}
    }
}

fn settled(values: impl IntoIterator<Item = Value>) -> Vec<Value> {
    values
        .into_iter()
        .map(|mut value| {
            settle(&mut value);
            value
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_print_what_is_shown() {
    let shown = shown();
    let mut server: Option<Started> = None;
    for (commands, output) in &shown {
        let mut printed = String::new();
        let mut answers = Vec::new();
        for line in commands {
            let binary = BINARY.iter().find_map(|binary| line.strip_prefix(binary));
            match (binary, &server) {
                (Some(arguments), None) => {
                    let started = Started::new(&words(arguments), output.lines().count());
                    let lines = started.printed.join("\n") + "\n";
                    printed += &lines.replace(&started.address.to_string(), ADDRESS);
                    server = Some(started);
                }
                (Some(arguments), Some(server)) => printed += &server.run(&words(arguments)),
                (None, Some(server)) => {
                    let arguments = words(line.strip_prefix("grpcurl ").unwrap());
                    answers.extend(server.grpcurl(&arguments).await);
                }
                (None, None) => panic!("no server yet for: {line}"),
            }
        }
        if answers.is_empty() {
            assert_eq!(printed.trim_end(), *output, "{commands:?}");
        } else {
            let expected = Deserializer::from_str(output).into_iter::<Value>();
            let expected = settled(expected.map(|value| value.expect("JSON")));
            assert_eq!(settled(answers), expected, "{commands:?}");
        }
    }
    assert!(shown.len() >= 3, "the pages start a server, mark an event and run a turn");
}
