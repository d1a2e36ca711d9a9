//! The testbed of the client libraries, `clients/conformance/testbed`: each of its commands, as a
//! runner of scenarios gives them.

use std::{
    collections::HashMap,
    env, fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use oncegate::{
    config::Address,
    grpc::pb::{
        BeginTurnRequest, RunTurnRequest, RunTurnResponse, TurnEnd, TurnOutcome,
        idempotency_service_client::IdempotencyServiceClient, run_turn_request::Step,
        run_turn_response::News, turn_service_client::TurnServiceClient,
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::harness::{Client, connect, event, mark, postgres, seconds, session};

mod ends;
mod frames;
mod network;
mod processes;
mod records;

/// How long anything that is to happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may happen.
const QUIET: Duration = Duration::from_millis(300);

/// A testbed that runs.
struct Testbed {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    replicas: Vec<Address>,
    /// How many commands were sent.
    sent: u64,
    answers: HashMap<u64, Result<Value, String>>,
    /// Where it makes its files.
    folder: TempDir,
}

impl Testbed {
    async fn sqlite() -> Self {
        Self::start(&[]).await
    }

    /// Starts one, and returns once it is ready.
    async fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = testbed(folder.path(), arguments).await;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = next(&mut lines).await;
        let replicas = ready["ready"]["replicas"].as_array().unwrap();
        let replicas = replicas.iter().map(|address| address.as_str().unwrap().parse().unwrap());
        let (replicas, answers) = (replicas.collect(), HashMap::new());
        Self { child, stdin, lines, replicas, sent: 0, answers, folder }
    }

    /// Sends a command, and returns its id.
    async fn send(&mut self, mut command: Value) -> u64 {
        self.sent += 1;
        command["id"] = self.sent.into();
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        self.sent
    }

    /// The answer to a command that was sent.
    async fn answer(&mut self, id: u64) -> Result<Value, String> {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return answer;
            }
            let mut line = next(&mut self.lines).await;
            let answer = match line.get_mut("ok") {
                Some(ok) => Ok(ok.take()),
                None => Err(line["error"].as_str().unwrap().to_owned()),
            };
            self.answers.insert(line["id"].as_u64().unwrap(), answer);
        }
    }

    /// Runs a command.
    async fn run(&mut self, command: Value) -> Result<Value, String> {
        let id = self.send(command).await;
        self.answer(id).await
    }

    /// Runs a command that must succeed.
    async fn ask(&mut self, command: Value) -> Value {
        let text = command.to_string();
        self.run(command).await.unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Reports an event of team T1.
    async fn look(&mut self, event: &str) -> Value {
        self.ask(json!({ "do": "look", "team": "T1", "event": event })).await
    }

    /// Reports a session of team T1.
    async fn look_at_session(&mut self, session: &str) -> Value {
        self.ask(json!({ "do": "look", "team": "T1", "session": session })).await
    }

    /// Waits until an event of team T1 has this state.
    async fn until(&mut self, event: &str, state: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let look = self.look(event).await;
            if look["state"] == state {
                return;
            }
            assert!(Instant::now() < end, "not {state}: {look}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The processes of its servers.
    fn servers(&self) -> Vec<u32> {
        let pid = self.child.id().unwrap();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// A connection of its own to the first replica's proxy.
    async fn channel(&self) -> Channel {
        connect(&self.replicas[0]).await
    }

    async fn client(&self) -> Client {
        IdempotencyServiceClient::new(self.channel().await)
    }
}

/// The program, which makes its files in `folder`.
async fn testbed(folder: &Path, arguments: &[&str]) -> Command {
    let server = tokio::task::spawn_blocking(postgres::shared_server).await.unwrap();
    let tests = env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/testbed");
    assert!(example.exists(), "`cargo test` builds it, and so does `cargo build --examples`");
    let mut command = Command::new(example);
    command
        .env_clear()
        .env("TMPDIR", folder)
        .env("ONCEGATE_TEST_DATABASE_URL", server)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The next line.
async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap();
    serde_json::from_str(&line.expect("the testbed runs")).unwrap()
}

/// A call that runs while commands are given.
fn marking(mut client: Client, id: &str) -> JoinHandle<Result<bool, Status>> {
    let request = mark("T1", id);
    tokio::spawn(async move {
        let answer = timeout(PATIENCE, client.mark_processed(request)).await.expect("an answer");
        Ok(answer?.into_inner().first)
    })
}

fn wish(id: &str) -> BeginTurnRequest {
    BeginTurnRequest {
        event: event("T1", id),
        session: session("T1", "S1"),
        holder: "holder".into(),
        claim_ttl: seconds(60),
        grace: seconds(0),
        epic_id: "EPIC-1".into(),
        labels: HashMap::from([("job".to_owned(), "reindex".to_owned())]),
        ..Default::default()
    }
}

/// A turn that its stream keeps, and that ends at once if the server sees the stream break.
struct Run {
    steps: mpsc::Sender<RunTurnRequest>,
    events: Streaming<RunTurnResponse>,
}

impl Run {
    async fn begin(channel: Channel, id: &str) -> Self {
        let (steps, sent) = mpsc::channel(2);
        steps.send(RunTurnRequest { step: Some(Step::Begin(wish(id))) }).await.unwrap();
        let call = TurnServiceClient::new(channel).run_turn(ReceiverStream::new(sent)).await;
        let mut run = Self { steps, events: call.unwrap().into_inner() };
        let first = run.next().await.unwrap();
        assert!(matches!(first, News::Granted(_)), "{first:?}");
        run
    }

    async fn next(&mut self) -> Result<News, Status> {
        let message = timeout(PATIENCE, self.events.message()).await.expect("an event")?;
        Ok(message.unwrap().news.unwrap())
    }

    async fn end(&mut self, end: TurnEnd) {
        self.steps.send(RunTurnRequest { step: Some(Step::End(end)) }).await.unwrap();
        let last = self.next().await.unwrap();
        assert!(matches!(last, News::Finished(_)), "{last:?}");
    }
}

fn end(outcome: TurnOutcome) -> TurnEnd {
    TurnEnd { outcome: outcome.into(), ..Default::default() }
}

#[tokio::test]
async fn a_command_that_is_wrong_is_answered_with_an_error() {
    let mut testbed = Testbed::sqlite().await;
    for (wrong, error) in [
        (json!({}), "missing field `do`"),
        (json!({ "do": "explode" }), "unknown variant `explode`"),
        (json!({ "do": "kill", "after_ms": 1 }), "unknown field `after_ms`"),
        (json!({ "do": "kill", "replica": 1 }), "no replica 1; there are 1"),
        (json!({ "do": "kill", "replica": "0" }), "no replica \"0\""),
        (json!({ "do": "cut", "side": "left" }), "unknown variant `left`"),
        (json!({ "do": "cut_before_data" }), "missing field `direction`"),
        (json!({ "do": "cut_before_data", "direction": "both" }), "unknown variant `both`"),
        (json!({ "do": "lose", "team": "T1" }), "missing field `session`"),
        (json!({ "do": "look", "team": "T1" }), "look needs a session or an event"),
        (json!({ "do": "look", "team": "", "event": "E" }), "InvalidArgument: "),
        (json!({ "do": "restart" }), "the server runs; drain or kill it first"),
    ] {
        let answer = testbed.run(wrong.clone()).await.expect_err("it is wrong");
        assert!(answer.contains(error), "{wrong}: {answer}");
    }
    testbed.stdin.write_all(b"kill\n").await.unwrap();
    let answer = next(&mut testbed.lines).await;
    assert_eq!(answer["id"], Value::Null);
    assert!(answer["error"].as_str().unwrap().contains("must be a JSON object"), "{answer}");
    assert_eq!(testbed.look("E1").await["state"], "NOT_SEEN", "it still works");
}
