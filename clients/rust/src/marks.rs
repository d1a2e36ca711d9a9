//! Marks, and the state of an event.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use prost::Message as _;
use serde::de::DeserializeOwned;
use tonic::{Code, Response, Status};

use crate::{
    Delivery, Error, EventOutcome, EventState, Gate, Stored,
    clock::now,
    errors::invalid,
    failure::{Failure, Problem},
    link::{CALL_TIMEOUT, Transport},
    pb::{
        self, BatchMarkProcessedRequest, IsProcessedRequest, MarkProcessedRequest,
        batch_mark_processed_result::Result as Answer,
        idempotency_service_client::IdempotencyServiceClient,
    },
};

const MAX_ITEMS: usize = 1000;
const MAX_BYTES: usize = 1024 * 1024;
/// The most that a batch adds to an item's own bytes.
const ITEM_OVERHEAD: usize = 8;

/// The answer for one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "it says whether the event is to be handled"]
pub struct Mark {
    /// This mark is the first; handle the event.
    pub first: bool,
    /// The event's id as stored.
    pub event_id: String,
}

/// The answer for one delivery of many.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "it says whether the event is to be handled"]
pub struct MarkItem {
    /// The delivery.
    pub delivery: Delivery,
    /// The mark, or why this delivery alone could not be marked.
    pub mark: Result<Mark, Error>,
}

/// What the server knows of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seen {
    /// Whether it has been handled.
    pub state: EventState,
    /// The event's id as stored.
    pub event_id: String,
    /// How it was processed; `None` for a mark, and unless it was.
    pub outcome: Option<EventOutcome>,
    /// Why it was rejected, or how its latest attempt failed.
    pub detail: String,
    /// The run that handles it; empty unless one does.
    pub holder: String,
    /// How many times it has been claimed.
    pub attempt: u32,
    /// What the run returned that handled it.
    pub result: Stored,
}

impl Seen {
    /// What the run returned that handled the event; `None` if nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Undecodable`]: it is not JSON of this type.
    pub fn result<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        self.result.decode()
    }
}

impl Gate {
    /// Marks an event as processed, at most once: a crash afterwards loses it.
    ///
    /// # Errors
    ///
    /// As [`TurnRequest::begin`](crate::TurnRequest::begin).
    pub async fn mark(&self, delivery: Delivery) -> Result<Mark, Error> {
        let request = self.inner.config.mark_request(&delivery);
        let response = self
            .patiently(|transport| {
                let request = request.clone();
                async move {
                    IdempotencyServiceClient::new(transport)
                        .mark_processed(request)
                        .await
                }
            })
            .await?;
        Ok(mark_of(response))
    }

    /// Marks any number of events, and yields the answers in their order. An error in the place of an
    /// item ends it.
    pub fn mark_all<I>(&self, deliveries: I) -> MarkAll<I::IntoIter>
    where
        I: IntoIterator<Item = Delivery>,
    {
        MarkAll {
            gate: self.clone(),
            deliveries: Some(deliveries.into_iter()),
            next: Batch::default(),
            running: None,
            answers: VecDeque::new(),
        }
    }

    /// Reads the state of an event, and its result. It never writes.
    ///
    /// # Errors
    ///
    /// As [`TurnRequest::begin`](crate::TurnRequest::begin).
    pub async fn seen(&self, delivery: &Delivery) -> Result<Seen, Error> {
        let event = Some(delivery.event_key(&self.inner.config.consumer));
        let request = IsProcessedRequest { event, include_result: true };
        let response = self
            .patiently(|transport| {
                let request = request.clone();
                async move { IdempotencyServiceClient::new(transport).is_processed(request).await }
            })
            .await?;
        let Some(state) = EventState::read(response.state()) else {
            let message = format!("the event has the unknown state {}", response.state);
            return Err(Failure::new(Code::DataLoss, message).public());
        };
        let event = response.event.unwrap_or_default();
        Ok(Seen {
            state,
            outcome: EventOutcome::read(event.outcome()),
            event_id: event.event_id,
            detail: event.detail,
            holder: event.holder,
            attempt: u32::try_from(event.attempt).unwrap_or_default(),
            result: Stored::new(response.result, response.result_type),
        })
    }

    /// Repeats a call within the patience.
    async fn patiently<R, F>(&self, make: impl Fn(Transport) -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let _tracked = self.inner.calls.token();
        let patience = self.inner.config.patience.max(Duration::from_millis(500));
        let answer = self.inner.link.call_until(now() + patience, CALL_TIMEOUT, make).await;
        answer.map(|(answer, _)| answer).map_err(Problem::public)
    }
}

fn mark_of(response: pb::MarkProcessedResponse) -> Mark {
    Mark { first: response.first, event_id: response.event.unwrap_or_default().event_id }
}

type Running = Pin<Box<dyn Future<Output = Result<Vec<MarkItem>, Error>> + Send>>;

/// The answers of [`Gate::mark_all`], in the order of the deliveries: a
/// [`Stream`](futures_core::Stream).
#[must_use = "nothing is marked until it is read"]
pub struct MarkAll<I> {
    gate: Gate,
    /// `None` after their end, and after an error.
    deliveries: Option<I>,
    next: Batch,
    running: Option<Running>,
    answers: VecDeque<MarkItem>,
}

/// Nothing in it is pinned.
impl<I> Unpin for MarkAll<I> {}

impl<I: Iterator<Item = Delivery>> MarkAll<I> {
    /// The next answer; `None` after the last one.
    pub async fn next(&mut self) -> Option<Result<MarkItem, Error>> {
        poll_fn(|context| futures_core::Stream::poll_next(Pin::new(self), context)).await
    }

    /// The next batch of the deliveries; empty if there are no more.
    fn batch(&mut self) -> Batch {
        let Some(deliveries) = &mut self.deliveries else {
            return Batch::default();
        };
        for delivery in deliveries {
            let request = self.gate.inner.config.mark_request(&delivery);
            let is_full = !self.next.fits(&request);
            let full = if is_full { Some(std::mem::take(&mut self.next)) } else { None };
            self.next.add(delivery, request);
            if let Some(full) = full {
                return full;
            }
        }
        self.deliveries = None; // its end is reached once
        std::mem::take(&mut self.next)
    }
}

impl<I: Iterator<Item = Delivery>> futures_core::Stream for MarkAll<I> {
    type Item = Result<MarkItem, Error>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<MarkItem, Error>>> {
        loop {
            if let Some(item) = self.answers.pop_front() {
                return Poll::Ready(Some(Ok(item)));
            }
            let Some(running) = &mut self.running else {
                let batch = self.batch();
                if batch.requests.is_empty() {
                    return Poll::Ready(None);
                }
                let gate = self.gate.clone();
                self.running = Some(Box::pin(async move { batch.mark(&gate).await }));
                continue;
            };
            let Poll::Ready(marked) = running.as_mut().poll(context) else {
                return Poll::Pending;
            };
            self.running = None;
            match marked {
                Ok(items) => self.answers = items.into(),
                Err(error) => {
                    self.deliveries = None;
                    self.next = Batch::default();
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl<I> std::fmt::Debug for MarkAll<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MarkAll").field("gate", &self.gate).finish_non_exhaustive()
    }
}

/// Marks that fit into one request.
#[derive(Default)]
struct Batch {
    deliveries: Vec<Delivery>,
    requests: Vec<MarkProcessedRequest>,
    size: usize,
}

fn size_of(request: &MarkProcessedRequest) -> usize {
    request.encoded_len() + ITEM_OVERHEAD
}

impl Batch {
    fn fits(&self, request: &MarkProcessedRequest) -> bool {
        self.requests.is_empty()
            || self.requests.len() < MAX_ITEMS && self.size + size_of(request) <= MAX_BYTES
    }

    fn add(&mut self, delivery: Delivery, request: MarkProcessedRequest) {
        self.size += size_of(&request);
        self.deliveries.push(delivery);
        self.requests.push(request);
    }

    async fn mark(self, gate: &Gate) -> Result<Vec<MarkItem>, Error> {
        if let [delivery] = &*self.deliveries
            && self.size > MAX_BYTES
        {
            let problem = invalid("event", "the delivery is larger than 1 MiB");
            return Ok(vec![MarkItem { delivery: delivery.clone(), mark: Err(problem) }]);
        }
        let request = BatchMarkProcessedRequest { requests: self.requests };
        let response = gate
            .patiently(|transport| {
                let request = request.clone();
                async move {
                    IdempotencyServiceClient::new(transport).batch_mark_processed(request).await
                }
            })
            .await?;
        let (results, marks) = (response.results, self.deliveries.len());
        if results.len() != marks {
            let message = format!("{} results for {marks} marks", results.len());
            return Err(Failure::new(Code::DataLoss, message).public());
        }
        let pairs = self.deliveries.into_iter().zip(results);
        Ok(pairs
            .map(|(delivery, result)| MarkItem { delivery, mark: mark_of_item(result.result) })
            .collect())
    }
}

fn mark_of_item(answer: Option<Answer>) -> Result<Mark, Error> {
    match answer {
        Some(Answer::Response(response)) => Ok(mark_of(response)),
        Some(Answer::Error(error)) => {
            let mut failure = Failure::new(Code::from_i32(error.code), error.message);
            failure.reason = error.reason;
            // Without the place in the batch.
            failure.field = match error.field.split_once("].") {
                Some((_, field)) => field.to_owned(),
                None => error.field,
            };
            Err(failure.public())
        }
        None => Err(Failure::new(Code::DataLoss, "a mark has no answer").public()),
    }
}
