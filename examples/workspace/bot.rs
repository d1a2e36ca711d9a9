//! A bot, with its replica beside it: a process that may be killed at any moment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use oncegate::{
    config::{Address, ServeConfig},
    grpc::pb::{
        BeginTurnRequest, EventKey, FinishTurnRequest, RunTurnRequest, SessionKey, SlackEvent,
        Turn, TurnEnd, TurnOutcome, begin_turn_response::Outcome, event_key, run_turn_request,
        run_turn_response, session_key, turn_service_client::TurnServiceClient,
    },
    server::Server,
    store::{Clock, ManualClock},
};
use prost_types::{Duration as Span, Timestamp};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, stdin, stdout},
    sync::{mpsc, oneshot},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use crate::{
    CLAIM_TTL, SECOND,
    wire::{Answer, Delivery, FromBot, Grant, ToBot, Verdict, result},
};

/// The one workspace.
const TEAM: &str = "T1";
/// How long a bot waits for a thread: for as long as it may, in real time, since how much
/// of that the simulation needs depends on the machine.
const WAIT: Span = Span { seconds: 600, nanos: 0 };
/// How often an event may be claimed: more often than Slack delivers it.
const MAX_ATTEMPTS: i32 = 20;

/// How a bot is started.
#[derive(Debug, clap::Args)]
pub struct Args {
    name: String,
    #[command(flatten)]
    serve: ServeConfig,
}

/// Serves, and handles what it is told of, until its standard input ends.
pub async fn run(args: Args) -> anyhow::Result<()> {
    // It is told the time before its first delivery.
    let clock = Arc::<ManualClock>::default();
    let server = Server::start(args.serve, Clock::Manual(Arc::clone(&clock))).await?;
    let Address::Tcp(address) = server.address() else { bail!("it does not listen on TCP") };
    let turns = TurnServiceClient::connect(format!("http://{address}")).await?;
    let (told, lines) = mpsc::channel(1_024);
    tokio::spawn(write(lines));
    let bot = Bot { name: args.name.into(), turns, told, written: Arc::default() };
    bot.tell(FromBot::Ready).await;
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line).context(line)? {
            ToBot::Deliver(delivery) => {
                tokio::spawn(bot.clone().handle(delivery));
            }
            ToBot::Tick(now) => {
                clock.set(now);
                bot.tell(FromBot::Ticked).await;
            }
            ToBot::Written(call, verdict) => {
                if let Some(written) = bot.writes().remove(&call) {
                    let _ = written.send(verdict);
                }
            }
        }
    }
    Ok(())
}

async fn write(mut lines: mpsc::Receiver<FromBot>) -> anyhow::Result<()> {
    let mut stdout = stdout();
    while let Some(line) = lines.recv().await {
        stdout.write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes()).await?;
        stdout.flush().await?;
    }
    Ok(())
}

type Writes = HashMap<usize, oneshot::Sender<Verdict>>;

#[derive(Clone)]
struct Bot {
    name: Arc<str>,
    turns: TurnServiceClient<Channel>,
    told: mpsc::Sender<FromBot>,
    /// The effects that are on their way to the resource.
    written: Arc<Mutex<Writes>>,
}

impl Bot {
    async fn tell(&self, word: FromBot) {
        // The workspace has ended where nobody listens.
        let _ = self.told.send(word).await;
    }

    fn writes(&self) -> std::sync::MutexGuard<'_, Writes> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(mut self, delivery: Delivery) {
        let call = delivery.call;
        let answered =
            if delivery.keeps { self.keep(delivery).await } else { self.begin(delivery).await };
        let answer = answered.unwrap_or_else(|status| match status.code() {
            Code::FailedPrecondition => Answer::Lost,
            _ => Answer::Wrong(status.to_string()),
        });
        self.tell(FromBot::Answer(call, answer)).await;
    }

    /// Handles a delivery by `BeginTurn` and `FinishTurn`.
    async fn begin(&mut self, delivery: Delivery) -> Result<Answer, Status> {
        let request = self.request(&delivery);
        // What is not known is asked again, by the same name.
        let answer = loop {
            match self.turns.begin_turn(request.clone()).await {
                Err(status) if status.code() == Code::Unavailable => {
                    sleep(Duration::from_millis(50)).await;
                }
                answer => break answer?.into_inner().outcome,
            }
        };
        let turn = match answer.ok_or_else(nothing)? {
            Outcome::Granted(granted) => granted.turn.ok_or_else(nothing)?,
            Outcome::Duplicate(duplicate) => return duplicate_of(duplicate.result),
            Outcome::InProgress(_) => return Ok(Answer::InProgress),
            Outcome::Busy(_) => return Ok(Answer::Busy),
            Outcome::GaveUp(_) => return Ok(Answer::Wrong("the event was given up".into())),
        };
        let (outcome, answer) = self.work(&delivery, &turn).await?;
        let result = result_of(outcome, &delivery);
        let outcome = outcome.into();
        let finish = FinishTurnRequest {
            turn_id: turn.turn_id,
            outcome,
            result,
            ttl: None,
            ..Default::default()
        };
        self.turns.finish_turn(finish).await?;
        Ok(answer)
    }

    /// Handles a delivery by `RunTurn`.
    async fn keep(&mut self, delivery: Delivery) -> Result<Answer, Status> {
        use run_turn_request::Step;
        use run_turn_response::News;
        let step = |step| RunTurnRequest { step: Some(step) };
        let (steps, sent) = mpsc::channel(2);
        let _ = steps.send(step(Step::Begin(self.request(&delivery)))).await;
        let mut told = self.turns.run_turn(ReceiverStream::new(sent)).await?.into_inner();
        let mut ended = Answer::Wrong("the call ended without a word".into());
        while let Some(response) = told.message().await? {
            match response.news.ok_or_else(nothing)? {
                News::Queued(_) | News::Renewed(_) | News::Waiting(_) | News::Alive(_) => {}
                News::Granted(granted) => {
                    let turn = granted.turn.ok_or_else(nothing)?;
                    let (outcome, answer) = self.work(&delivery, &turn).await?;
                    let result = result_of(outcome, &delivery);
                    let end = TurnEnd {
                        outcome: outcome.into(),
                        result,
                        ttl: None,
                        ..Default::default()
                    };
                    let _ = steps.send(step(Step::End(end))).await;
                    ended = answer;
                }
                News::Duplicate(duplicate) => return duplicate_of(duplicate.result),
                News::InProgress(_) => return Ok(Answer::InProgress),
                News::Busy(_) => return Ok(Answer::Busy),
                News::GaveUp(_) => return Ok(Answer::Wrong("the event was given up".into())),
                News::Finished(_) => return Ok(ended),
            }
        }
        Ok(ended)
    }

    fn request(&self, delivery: &Delivery) -> BeginTurnRequest {
        let Delivery { call, event_id, channel, ts, thread_ts, has_twin, waits, .. } = delivery;
        // What the same message is called under its other event_id, too.
        let shared = has_twin.then(|| format!("ts:{channel}:{ts}"));
        let slack = SlackEvent {
            event_id: event_id.clone(),
            channel: channel.clone(),
            ts: ts.clone(),
            thread_ts: thread_ts.clone(),
            ..Default::default()
        };
        BeginTurnRequest {
            event: Some(EventKey {
                team_id: TEAM.into(),
                key: Some(event_key::Key::Slack(slack.clone())),
                aliases: shared.into_iter().collect(),
                ..Default::default()
            }),
            session: Some(SessionKey {
                team_id: TEAM.into(),
                key: Some(session_key::Key::Slack(slack)),
                ..Default::default()
            }),
            holder: self.name.to_string(),
            request_id: call.to_string(),
            claim_ttl: Some(Span { seconds: CLAIM_TTL / SECOND, nanos: 0 }),
            wait: waits.then_some(WAIT),
            max_attempts: MAX_ATTEMPTS,
            ..Default::default()
        }
    }

    /// Does what the message asks for. Answers how the turn is to end, and what that means.
    async fn work(
        &self,
        delivery: &Delivery,
        turn: &Turn,
    ) -> Result<(TurnOutcome, Answer), Status> {
        let call = delivery.call;
        let lease = turn.lease.as_ref().ok_or_else(nothing)?;
        let grant = Grant {
            token: lease.fencing_token,
            attempt: turn.attempt,
            // A token is never below the time of its grant. A statement that was sent some steps
            // ago reads the beginning of a newer lease as its own, earlier time.
            since: micros(lease.acquire_time.as_ref())?.max(lease.fencing_token),
            until: micros(lease.expire_time.as_ref())?,
        };
        self.tell(FromBot::Granted(call, grant)).await;
        sleep(Duration::from_millis(call as u64 % 4)).await;
        let (written, verdict) = oneshot::channel();
        self.writes().insert(call, written);
        self.tell(FromBot::Effect(call)).await;
        match verdict.await {
            Ok(Verdict::Taken) => Ok((TurnOutcome::Succeeded, Answer::Handled)),
            Ok(Verdict::Refused | Verdict::Failed) => Ok((TurnOutcome::Failed, Answer::Failed)),
            Err(_) => Err(Status::cancelled("the workspace has ended")),
        }
    }
}

fn micros(time: Option<&Timestamp>) -> Result<i64, Status> {
    let time = time.ok_or_else(nothing)?;
    Ok(time.seconds * SECOND + i64::from(time.nanos / 1_000))
}

fn result_of(outcome: TurnOutcome, delivery: &Delivery) -> Vec<u8> {
    if outcome == TurnOutcome::Succeeded { result(&delivery.ts).into_bytes() } else { Vec::new() }
}

fn duplicate_of(result: Vec<u8>) -> Result<Answer, Status> {
    let result = String::from_utf8(result).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Answer::Duplicate(result))
}

fn nothing() -> Status {
    Status::internal("the answer lacks what it must hold")
}

/// The flags of the replica beside a bot: on any free port; patient, since a machine that is
/// slow is no fault here; and with room for all that wait on the one connection, for else
/// none could end its turn.
pub const FLAGS: [&str; 10] = [
    "--listen",
    "127.0.0.1:0",
    "--workers",
    "1",
    "--store-timeout",
    "60s",
    "--call-timeout",
    "120s",
    "--max-streams",
    "16384",
];
