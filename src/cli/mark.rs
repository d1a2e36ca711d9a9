//! `oncegate mark`: one event, or a stream of Slack deliveries.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    iter,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};
use tonic::{Code, Status, transport::Channel};

use super::{
    ClientArgs, Exit,
    client::{Consumer, duration, event, exit_of, explain, id_of, moment, with_consumer, within},
    tell,
};
use crate::{
    backoff::Backoff,
    domain::{
        Id,
        limits::{EVENT_TTL, MAX_ALIASES, MAX_ID_BYTES, MAX_REQUEST_BYTES},
    },
    grpc::pb::{
        BatchItemError, BatchMarkProcessedRequest, EventKey, MarkProcessedRequest,
        MarkProcessedResponse, Reason, batch_mark_processed_result::Result as ItemResult,
        event_key, idempotency_service_client::IdempotencyServiceClient,
    },
    platform,
};

/// The longest key there can be: a team, an event id and its aliases, each with its tag and
/// length, and what encloses them.
const MAX_KEY_BYTES: usize = (2 + MAX_ALIASES) * (MAX_ID_BYTES + 3) + 3;
/// The most lines in one request: with the longest keys, consumers and request ids, and 32
/// bytes for the TTL and the tags, it is still no longer than it may be.
const MAX_LINES: usize = MAX_REQUEST_BYTES / (MAX_KEY_BYTES + 2 * (MAX_ID_BYTES + 3) + 32);
/// The longest line that is read as a delivery, its end not counted.
const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// What some editors write at the start of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// How soon a server that is away is asked again, at first and later.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

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

/// One line of the input, counted from 1, and what it says.
struct Line {
    number: u64,
    key: Result<EventKey, String>,
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
    let reader = std::thread::spawn(move || read(&path, &given, &sender));

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
    tell(format_args!("{first} first, {duplicate} duplicate, {bad} bad"));
    Ok(if bad > 0 { Exit::BadLines } else { Exit::Yes })
}

/// Reads the deliveries, passing over empty lines.
fn read(path: &PathBuf, given: &Given, lines: &mpsc::Sender<Line>) -> anyhow::Result<()> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut input: Box<dyn BufRead> = if path.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).with_context(unreadable)?))
    };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let most = MAX_LINE_BYTES as u64 + 1;
        let read = input.by_ref().take(most).read_until(b'\n', &mut line);
        if read.with_context(unreadable)? == 0 {
            break;
        }
        line.pop_if(|last| *last == b'\n');
        // Before a byte order mark is taken off: the rest of a longer line is still to come.
        let is_too_long = line.len() > MAX_LINE_BYTES;
        if number == 1 {
            anyhow::ensure!(
                !is_utf16(&line),
                "cannot read {}: it is UTF-16; convert it to UTF-8, as with iconv -f UTF-16 -t UTF-8",
                path.display()
            );
            if line.starts_with(BYTE_ORDER_MARK) {
                line.drain(..BYTE_ORDER_MARK.len());
            }
        }
        let key = if is_too_long {
            input.skip_until(b'\n').with_context(unreadable)?;
            Err(format!("longer than {MAX_LINE_BYTES} bytes"))
        } else if line.trim_ascii().is_empty() {
            continue;
        } else {
            given.key(&line)
        };
        if lines.blocking_send(Line { number, key }).is_err() {
            break;
        }
    }
    Ok(())
}

/// Whether a text begins as one in UTF-16 does: with its byte order mark, or with a brace.
fn is_utf16(text: &[u8]) -> bool {
    [b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{"].iter().any(|start| text.starts_with(*start))
}

/// What the flags say of every Slack delivery.
struct Given {
    /// The tenant of those that name none.
    team: String,
    consumer: Consumer,
    each_use: bool,
}

impl Given {
    /// The event that a Slack delivery names.
    fn key(&self, line: &[u8]) -> Result<EventKey, String> {
        let named =
            platform::slack::read(line, self.each_use).map_err(|error| error.to_string())?;
        let mut event_names = named.names.into_iter().map(Id::into_string);
        let event_id = event_names.next().ok_or("names no event to be handled once")?;
        let team = named.team.map_or_else(|| self.team.clone(), Id::into_string);
        if team.is_empty() {
            return Err("names no team: give one with --slack".to_owned());
        }
        let key = event(team, event_id, &self.consumer);
        Ok(EventKey { aliases: event_names.collect(), ..key })
    }
}

/// How many of `lines` one request may hold. Of two events with a name in common the earlier
/// line is to be the first, and a request does not say in which order its items are taken.
fn independent(lines: &[Line]) -> usize {
    let mut events = HashMap::new();
    for (at, line) in lines.iter().enumerate() {
        let Ok(EventKey { team_id, key: Some(event_key::Key::EventId(event)), aliases, .. }) =
            &line.key
        else {
            continue;
        };
        for name in iter::once(event).chain(aliases) {
            if *events.entry((team_id, name)).or_insert(event) != event {
                return at;
            }
        }
    }
    lines.len()
}

/// What it takes to mark lines over a restart of the server.
struct SlackStream<'a> {
    args: &'a Args,
    /// Names the run, so that a line that is tried again is still the same attempt.
    run: String,
    client: Option<IdempotencyServiceClient<Channel>>,
}

impl<'a> SlackStream<'a> {
    fn new(args: &'a Args) -> Self {
        let given = args.request_id.clone().filter(|run| !run.is_empty());
        let run = given.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        Self { args, run, client: None }
    }

    async fn connected(&mut self) -> anyhow::Result<&mut IdempotencyServiceClient<Channel>> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.args.client.connect().await?,
        };
        Ok(self.client.insert(client))
    }

    /// Repeats `call` for `--timeout` while it fails for a reason that may pass.
    async fn retry_unavailable<T>(
        &mut self,
        mut call: impl AsyncFnMut(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let end = Instant::now() + self.args.client.timeout;
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        loop {
            let error = match timeout_at(end, call(self)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(elapsed) => return Err(Status::from_error(Box::new(elapsed)).into()),
            };
            if exit_of(&error) != Exit::Unavailable || Instant::now() + backoff.pause() >= end {
                return Err(error);
            }
            if backoff.is_new() {
                tell(format_args!("waiting: {}", explain(&error)));
            }
            // Another connection may lead to a server that is there.
            self.client = None;
            sleep(backoff.take()).await;
        }
    }

    /// Marks the good lines of `batch`, and answers for each of them in order. Those that are
    /// answered are not asked for again.
    async fn answers(&mut self, batch: &[Line]) -> anyhow::Result<Vec<Option<ItemResult>>> {
        let requests: Vec<_> = batch.iter().filter_map(|line| self.request(line)).collect();
        let mut answers: Vec<Option<ItemResult>> = vec![None; requests.len()];
        if requests.is_empty() {
            return Ok(answers);
        }
        let asked = self
            .retry_unavailable(async |stream| {
                let open: Vec<_> =
                    (0..requests.len()).filter(|&at| !is_final(answers[at].as_ref())).collect();
                let requests = open.iter().map(|&at| requests[at].clone()).collect();
                let message = BatchMarkProcessedRequest { requests };
                let request = stream.args.client.request(message, Duration::ZERO);
                let client = stream.connected().await?;
                let answer = client.batch_mark_processed(request).await?.into_inner();
                let mut passing = None;
                for (at, result) in open.into_iter().zip(answer.results) {
                    answers[at] = result.result;
                    if let Some(ItemResult::Error(error)) = &answers[at]
                        && !is_final(answers[at].as_ref())
                    {
                        passing = Some(Status::new(error.code.into(), error.message.clone()));
                    }
                }
                passing.map_or(Ok(()), |status| Err(status.into()))
            })
            .await;
        // What is answered must not be lost for those beside it that are not.
        if answers.iter().all(Option::is_none) {
            asked?;
        }
        Ok(answers)
    }

    fn request(&self, line: &Line) -> Option<MarkProcessedRequest> {
        let key = line.key.as_ref().ok()?.clone();
        Some(MarkProcessedRequest {
            event: Some(EventKey { consumer: self.args.consumer.name(), ..key }),
            ttl: self.args.ttl.map(duration),
            request_id: format!("{}:{}", self.run, line.number),
            payload_digest: Vec::new(),
        })
    }
}

/// Whether an item's answer stands, whatever a repetition would say.
fn is_final(answer: Option<&ItemResult>) -> bool {
    match answer {
        Some(ItemResult::Error(error)) => {
            is_rejected(error)
                || !matches!(
                    Code::from(error.code),
                    Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted
                )
        }
        Some(ItemResult::Response(_)) => true,
        None => false,
    }
}

/// Whether a rule of the database rejected the line. That lasts until its owner changes the rule,
/// so the lines after this one do not wait for it.
fn is_rejected(error: &BatchItemError) -> bool {
    error.reason == Reason::RejectedByDatabase.name()
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
