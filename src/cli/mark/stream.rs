//! Marking lines over a restart of the server.

use std::time::Duration;

use oncegate_client::Connection;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status};

use super::{Args, lines::Line};
use crate::{
    backoff::Backoff,
    cli::{
        Exit,
        client::{duration, exit_of, explain},
        report,
    },
    grpc::pb::{
        BatchItemError, BatchMarkProcessedRequest, EventKey, MarkProcessedRequest, Reason,
        batch_mark_processed_result::Result as ItemResult,
        idempotency_service_client::IdempotencyServiceClient,
    },
};

/// How soon a server that is away is asked again, at first and later.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What it takes to mark lines over a restart of the server.
pub(super) struct SlackStream<'a> {
    pub(super) args: &'a Args,
    /// Names the run, so that a line that is tried again is still the same attempt.
    run: String,
    client: Option<IdempotencyServiceClient<Connection>>,
}

impl<'a> SlackStream<'a> {
    pub(super) fn new(args: &'a Args) -> Self {
        let given = args.request_id.clone().filter(|run| !run.is_empty());
        let run = given.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        Self { args, run, client: None }
    }

    pub(super) async fn connected(
        &mut self,
    ) -> anyhow::Result<&mut IdempotencyServiceClient<Connection>> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.args.client.connect().await?,
        };
        Ok(self.client.insert(client))
    }

    /// Repeats `call` for `--timeout` while it fails for a reason that may pass.
    pub(super) async fn retry_unavailable<T>(
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
                report(format_args!("waiting: {}", explain(&error)));
            }
            // Another connection may lead to a server that is there.
            self.client = None;
            sleep(backoff.take()).await;
        }
    }

    /// Marks the good lines of `batch`, and answers for each of them in order. Those that are
    /// answered are not asked for again.
    pub(super) async fn answers(
        &mut self,
        batch: &[Line],
    ) -> anyhow::Result<Vec<Option<ItemResult>>> {
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
pub(super) fn is_rejected(error: &BatchItemError) -> bool {
    error.reason == Reason::RejectedByDatabase.name()
}
