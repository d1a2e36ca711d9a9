//! `oncegate mark`: one event, or a stream of Slack deliveries.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use serde_json::json;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::{
    ClientArgs, Exit,
    client::{Consumer, duration, event, id_of, moment, with_consumer, within},
    report,
};
use crate::{
    domain::limits::{EVENT_TTL, MAX_ALIASES, MAX_ID_BYTES, MAX_REQUEST_BYTES},
    grpc::pb::{
        EventKey, MarkProcessedRequest, MarkProcessedResponse,
        batch_mark_processed_result::Result as ItemResult,
    },
};

mod lines;
mod stream;

use lines::{Given, Line, independent};
use stream::{SlackStream, is_rejected};

/// The longest key there can be: a team, an event id and its aliases, each with its tag and
/// length, and what encloses them.
const MAX_KEY_BYTES: usize = (2 + MAX_ALIASES) * (MAX_ID_BYTES + 3) + 3;
/// The most lines in one request: with the longest keys, consumers and request ids, and 32
/// bytes for the TTL and the tags, it is still no longer than it may be.
const MAX_LINES: usize = MAX_REQUEST_BYTES / (MAX_KEY_BYTES + 2 * (MAX_ID_BYTES + 3) + 32);
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The team of the event; with --slack, of deliveries without a team
    #[arg(required_unless_present = "slack")]
    team: Option<String>,
    /// The event's id
    #[arg(required_unless_present = "slack")]
    event: Option<String>,
    /// Alias: another name of the same event, such as `ts:C1:1763800000.000100`; up to 8
    #[arg(long = "alias", value_name = "EVENT", conflicts_with = "slack")]
    aliases: Vec<String>,
    /// Read Slack deliveries from FILE, or - for standard input, one body a line, as JSON or
    /// form-encoded: events with or without their envelope, interactions, slash commands, Socket
    /// Mode frames. While the service is unavailable, each line is retried for --timeout
    #[arg(long, value_name = "FILE", conflicts_with = "event")]
    slack: Option<PathBuf>,
    /// With --slack, count each click of a button, not only a user's first
    #[arg(long, conflicts_with = "event")]
    each_use: bool,
    /// How long the event counts as processed, 1s to 30d; unset: 24h
    #[arg(long, value_parser = within(EVENT_TTL))]
    ttl: Option<Duration>,
    /// Id of this attempt; a retry with the same id returns the same answer. With
    /// --slack, retry with the whole input
    #[arg(long)]
    request_id: Option<String>,
    #[command(flatten)]
    consumer: Consumer,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    match &args.slack {
        Some(path) => stream(&args, path.clone()).await,
        None => one(args).await,
    }
}

async fn one(args: Args) -> anyhow::Result<Exit> {
    let (team, id) = (args.team.unwrap_or_default(), args.event.unwrap_or_default());
    let key = event(team, id, &args.consumer);
    let message = MarkProcessedRequest {
        event: Some(EventKey { aliases: args.aliases, ..key }),
        ttl: args.ttl.map(duration),
        request_id: args.request_id.unwrap_or_default(),
        payload_digest: Vec::new(),
    };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.connect().await?.mark_processed(request).await?.into_inner();
    let (first, outcome) = outcome(&answer);
    let event = answer.event.unwrap_or_default();
    let json = json!({
        "team_id": event.team_id,
        "event_id": event.event_id,
        "first": first,
        "process_time": moment(event.process_time),
        "expire_time": moment(event.expire_time),
    });
    let id = id_of(&event.event_id, &event.consumer);
    let json = with_consumer(json, &event.consumer);
    args.client.output.print(&json, format_args!("{outcome} {} {id}", event.team_id))?;
    Ok(if first { Exit::Yes } else { Exit::No })
}

fn outcome(answer: &MarkProcessedResponse) -> (bool, &'static str) {
    (answer.first, if answer.first { "first" } else { "duplicate" })
}

/// What became of the lines so far.
#[derive(Default)]
struct Tally {
    first: u64,
    duplicate: u64,
    bad: u64,
}

async fn stream(args: &Args, path: PathBuf) -> anyhow::Result<Exit> {
    let mut stream = SlackStream::new(args);
    // A server that is not there is noticed before a line is.
    stream.retry_unavailable(async |stream| stream.connected().await.map(drop)).await?;
    // Whatever has been read by the time the last request is answered makes the
    // next one: a file goes by in large requests, a live stream line by line.
    let (sender, mut lines) = mpsc::channel(MAX_LINES);
    let given = Given {
        team: args.team.clone().unwrap_or_default(),
        consumer: args.consumer.clone(),
        each_use: args.each_use,
    };
    // Not a thread of the runtime's: the command must be able to end while this
    // one waits for a line.
    let reader = std::thread::spawn(move || lines::read(&path, &given, &sender));

    let mut tally = Tally::default();
    let mut batch: Vec<Line> = Vec::with_capacity(MAX_LINES);
    while lines.recv_many(&mut batch, MAX_LINES).await > 0 {
        while let Some(Line { number: from, .. }) = batch.first() {
            let from = *from;
            let rest = batch.split_off(independent(&batch));
            mark(&mut stream, &mut batch, &mut tally)
                .await
                .with_context(|| format!("stopped at line {from}"))?;
            batch = rest;
        }
    }
    reader.join().map_err(|_| anyhow!("the input could not be read"))??;
    let Tally { first, duplicate, bad } = tally;
    report(format_args!("{first} first, {duplicate} duplicate, {bad} bad"));
    Ok(if bad > 0 { Exit::BadLines } else { Exit::Yes })
}

/// Marks the good lines of `batch`, and prints them all in order.
async fn mark(
    stream: &mut SlackStream<'_>,
    batch: &mut Vec<Line>,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let results = stream.answers(batch).await?;
    let args = stream.args;
    let mut failed = None;
    let mut results = results.into_iter();
    for Line { number, key } in batch.drain(..) {
        let result = match key {
            Err(problem) => Err(("bad", problem)),
            Ok(_) => match results.next().flatten() {
                Some(ItemResult::Response(answer)) => Ok(answer),
                Some(ItemResult::Error(error)) if error.code == Code::InvalidArgument as i32 => {
                    Err(("bad", error.message))
                }
                Some(ItemResult::Error(error)) if is_rejected(&error) => {
                    Err(("failed", error.message))
                }
                Some(ItemResult::Error(error)) => {
                    failed = Some(Status::new(error.code.into(), error.message.clone()));
                    Err(("failed", error.message))
                }
                None => anyhow::bail!("the response has no answer for line {number}"),
            },
        };
        match result {
            Ok(answer) => {
                let (first, outcome) = outcome(&answer);
                *(if first { &mut tally.first } else { &mut tally.duplicate }) += 1;
                let event = answer.event.unwrap_or_default();
                let json = json!({
                    "line": number,
                    "team_id": event.team_id,
                    "event_id": event.event_id,
                    "first": first,
                });
                let id = id_of(&event.event_id, &event.consumer);
                let text = format!("{number}: {outcome} {} {id}", event.team_id);
                args.client.output.print(&with_consumer(json, &event.consumer), text)?;
            }
            Err((outcome, problem)) => {
                tally.bad += 1;
                let json = json!({ "line": number, "error": problem });
                args.client.output.print(&json, format_args!("{number}: {outcome}: {problem}"))?;
            }
        }
    }
    // Only now: the lines beside it have answers that must not be lost.
    failed.map_or(Ok(()), |status| Err(status.into()))
}
