//! Guards the handlers of a Slack app: each event is handled once, and those of a thread one at a time, over
//! all processes.
//!
//! ```no_run
//! # use oncegate_client::{Error, Gate, Turn, slack::Guard};
//! # fn example(gate: Gate, secret: &str) {
//! #[derive(serde::Deserialize)]
//! struct Callback { event: Mention }
//! # #[derive(serde::Deserialize)] struct Mention {}
//!
//! async fn on_event(callback: Callback, turn: Turn) -> Result<(), Error> {
//!     // …
//! #   let _ = (callback.event, turn);
//!     Ok(())
//! }
//!
//! let guard = Guard::new(gate);
//! let events = guard.events(secret, on_event); // HTTP; in axum: .route_service("/slack/events", events)
//! let socket = guard.socket(on_event); // or Socket Mode
//! # let _ = (events, socket); }
//! ```
//!
//! A payload is what serde decodes. An event is acknowledged after its handler: if the process dies in the
//! middle, or the handler returns an error or panics, Slack delivers the event again. What comes meanwhile is
//! refused, so that Slack tries again.
//!
//! A message of a busy thread is acknowledged, and waits in this process, which has the only copy then: a crash,
//! or an error of its handler, loses it. If its turn is lost, the guard asks for another one within
//! [`Guard::wait`]. At the end of the process, [`Guard::drain`] waits for those, too.
//!
//! All events of the app come to one handler. A payload that its type cannot decode is refused, and delivered
//! three more times: an enum with `#[serde(other)]` decodes the types that are of no interest.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;

pub use self::{events::Events, socket::Socket};
use crate::{
    Delivery, Error, Gate, NotGranted, OnUnavailable, Turn, TurnRequest, TurnScope, locked,
    run::handle, webhook::Options,
};

mod events;
mod signature;
mod socket;

/// Slack wants its answer within 3 s.
const PATIENCE_BEFORE_ACK: Duration = Duration::from_millis(2500);
const PATIENCE_AFTER_ACK: Duration = Duration::from_secs(30);
/// The longest wait that the server accepts.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

const MAX_BACKGROUND: usize = 256;

/// Slack delivers an event that is not acknowledged three more times.
const LAST_RETRY: u64 = 3;

/// Runs handlers in turns. A clone is the same guard.
#[derive(Clone)]
pub struct Guard {
    gate: Gate,
    wait: Duration,
    ack_first: bool,
    on_busy: Option<BusyReport>,
    options: Arc<Options>,
    /// A place for each acknowledged delivery that runs or waits.
    background: Arc<Semaphore>,
    /// Deliveries that run, and those that wait for their turn.
    running: TaskTracker,
}

/// Reports that the conversation of a payload is busy.
type BusyReport = Arc<dyn Fn(Value) -> Reporting + Send + Sync>;
type Reporting = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Decodes a payload.
type Handler = Arc<dyn Fn(Value) -> Result<Run, serde_json::Error> + Send + Sync>;
/// Handles the payload in a turn, and ends the turn.
type Run = Box<dyn Fn(TurnScope) -> Handling + Send + Sync>;
type Handling = Pin<Box<dyn Future<Output = Handled> + Send>>;

/// What came of a run.
enum Handled {
    Done,
    Failed,
    /// Its turn was lost, or it is not known how it ended. Another turn finds out.
    Uncertain,
}

/// One delivery.
struct Delivered {
    delivery: Delivery,
    /// Its name in the log.
    event: String,
    can_refuse: bool,
    /// What runs if its conversation is busy.
    report: Option<Box<dyn FnOnce() -> Reporting + Send>>,
    run: Run,
}

/// What Slack is answered.
enum Answer {
    Acknowledge,
    /// Slack delivers again, or shows the user that it failed.
    Refuse(Duration),
}

impl Guard {
    /// A guard.
    #[must_use]
    pub fn new(gate: Gate) -> Self {
        Self {
            gate,
            wait: LONGEST_WAIT,
            ack_first: false,
            on_busy: None,
            options: Arc::new(|turn| turn),
            background: Arc::new(Semaphore::new(MAX_BACKGROUND)),
            running: TaskTracker::new(),
        }
    }

    /// How long an acknowledged delivery waits for its turn. Default: 10 min. Zero: a message of a busy thread
    /// is refused, so that Slack delivers it again.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// How many acknowledged deliveries may run or wait in this process. Default: 256. Beyond it,
    /// [`Guard::ack_first`] has no effect, and a delivery that would wait is refused. That loses an interaction,
    /// a command and the last retry of an event. One busy thread of Slack can use up the number for all.
    #[must_use]
    pub fn max_background(mut self, number: usize) -> Self {
        self.background = Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)));
        self
    }

    /// Acknowledges when the turn has begun, and not after the handler: for events whose handler takes longer
    /// than the 6 min for which Slack redelivers; and, over Socket Mode, for interactions and commands whose
    /// handler takes longer than the 3 s of Slack. If the process dies in the middle, the event is lost.
    #[must_use]
    pub fn ack_first(mut self) -> Self {
        self.ack_first = true;
        self
    }

    /// What is called with the payload of an interaction or a command, which come over Socket Mode, if its
    /// conversation is busy, before it waits: for an ephemeral message.
    #[must_use]
    pub fn on_busy<T, F>(mut self, report: impl Fn(T) -> F + Send + Sync + 'static) -> Self
    where
        T: DeserializeOwned,
        F: Future<Output = ()> + Send + 'static,
    {
        self.on_busy = Some(Arc::new(move |payload| match T::deserialize(payload) {
            Ok(payload) => Box::pin(report(payload)),
            Err(error) => {
                let problem = error.classify();
                tracing::error!(?problem, "a payload of Slack cannot be decoded for on_busy");
                Box::pin(async {})
            }
        }));
        self
    }

    /// Sets options of each turn. Its wait and patience are the guard's.
    #[must_use]
    pub fn with(
        mut self,
        options: impl Fn(TurnRequest) -> TurnRequest + Send + Sync + 'static,
    ) -> Self {
        self.options = Arc::new(options);
        self
    }

    /// The request URL of the Events API: verifies the signature, answers `url_verification`, and runs the
    /// handler in its event's turn. The handler does not end with the request, which Slack gives up after 3 s.
    /// An empty secret refuses every request.
    pub fn events<T, E, F>(
        &self,
        signing_secret: impl Into<Arc<str>>,
        handler: impl Fn(T, Turn) -> F + Clone + Send + Sync + 'static,
    ) -> Events
    where
        T: DeserializeOwned + Send + 'static,
        E: From<Error> + fmt::Display + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        Events { guard: self.clone(), secret: signing_secret.into(), handler: decoding(handler) }
    }

    /// Runs the handler in the turn of each envelope of Socket Mode.
    pub fn socket<T, E, F>(
        &self,
        handler: impl Fn(T, Turn) -> F + Clone + Send + Sync + 'static,
    ) -> Socket
    where
        T: DeserializeOwned + Send + 'static,
        E: From<Error> + fmt::Display + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        Socket { guard: self.clone(), handler: decoding(handler) }
    }

    /// Waits for the deliveries that run and those that wait for their turn, for at most this time, and then
    /// drains and closes the gate. False if some have not ended: they have failed. Take no new deliveries
    /// meanwhile.
    pub async fn drain(&self, time: Duration) -> bool {
        let began = Instant::now();
        self.running.close();
        let all = timeout(time, self.running.wait()).await.is_ok();
        self.gate.drain(time.saturating_sub(began.elapsed())).await && all
    }

    /// Begins the turn before the answer to Slack. A caller that does not wait ends nothing.
    async fn run(&self, delivered: Delivered) -> Answer {
        if delivered.can_refuse && self.running.is_closed() {
            return Answer::Refuse(DEFAULT_RETRY_AFTER); // another process takes it, or a later one
        }
        let guard = self.clone();
        let running = self.running.spawn(async move { guard.begin(delivered).await });
        // A panic has failed the turn.
        running.await.unwrap_or(Answer::Refuse(DEFAULT_RETRY_AFTER))
    }

    async fn begin(self, mut delivered: Delivered) -> Answer {
        let mut request = (self.options)(self.gate.turn(delivered.delivery.clone()))
            .wait(Duration::ZERO)
            .patience(PATIENCE_BEFORE_ACK);
        if delivered.can_refuse {
            request = request.on_unavailable(OnUnavailable::Raise);
        }
        let turn = match request.begin().await {
            Ok(turn) => turn,
            Err(refusal) => return self.refused(delivered, &refusal),
        };
        delivered.report = None;
        if self.ack_first
            && let Some(place) = self.place()
        {
            let guard = self.clone();
            self.running.spawn(async move {
                if let Handled::Uncertain = (delivered.run)(turn).await {
                    guard.keep_asking(delivered, DEFAULT_RETRY_AFTER, place).await;
                }
            });
            return Answer::Acknowledge;
        }
        match (delivered.run)(turn).await {
            Handled::Done => Answer::Acknowledge,
            Handled::Uncertain if !delivered.can_refuse && !delivered.delivery.is_sent_once() => {
                self.queue(delivered, DEFAULT_RETRY_AFTER)
            }
            Handled::Failed | Handled::Uncertain => Answer::Refuse(DEFAULT_RETRY_AFTER),
        }
    }

    fn refused(self, mut delivered: Delivered, refusal: &Error) -> Answer {
        let after = refusal.retry_after();
        if is_final(refusal) {
            return Answer::Acknowledge;
        }
        if matches!(refusal.not_granted(), Some(NotGranted::Busy(_))) {
            if delivered.can_refuse && self.wait.is_zero() {
                return Answer::Refuse(after.unwrap_or(DEFAULT_RETRY_AFTER));
            }
            return self.queue(delivered, Duration::ZERO); // its queue is joined at once
        }
        delivered.report = None;
        let Some(after) = after.filter(|_| !delivered.can_refuse) else {
            return Answer::Refuse(after.unwrap_or(DEFAULT_RETRY_AFTER)); // it may be in vain
        };
        if !delivered.delivery.is_sent_once() {
            return self.queue(delivered, after);
        }
        if matches!(refusal.not_granted(), Some(NotGranted::InProgress(_))) {
            return Answer::Acknowledge;
        }
        Answer::Refuse(DEFAULT_RETRY_AFTER)
    }

    /// This process has the only copy from now on.
    fn queue(self, mut delivered: Delivered, pause: Duration) -> Answer {
        let Some(place) = self.place() else {
            let event = delivered.event;
            tracing::error!(event, "a delivery of Slack was refused: max_background is reached");
            return Answer::Refuse(DEFAULT_RETRY_AFTER);
        };
        self.running.clone().spawn(async move {
            if let Some(report) = delivered.report.take() {
                let _ = tokio::spawn(async { report().await }).await; // a panic ends the report alone
            }
            self.keep_asking(delivered, pause, place).await;
        });
        Answer::Acknowledge
    }

    /// A place for one more acknowledged delivery.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.background.clone().try_acquire_owned().ok()
    }

    /// Repeats the request for a turn until there is an answer, or the wait is over.
    async fn keep_asking(
        self,
        delivered: Delivered,
        mut pause: Duration,
        _place: OwnedSemaphorePermit,
    ) {
        let began = Instant::now();
        let left = || self.wait.saturating_sub(began.elapsed());
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.gate.done() => {}
            }
            let wait = left().min(LONGEST_WAIT);
            let request = (self.options)(self.gate.turn(delivered.delivery.clone()));
            let (after, may_be_early, problem) =
                match request.wait(wait).patience(PATIENCE_AFTER_ACK).begin().await {
                    Ok(turn) => {
                        let Handled::Uncertain = (delivered.run)(turn).await else { return };
                        let problem = "its turn was lost, or its end has no answer";
                        (Some(DEFAULT_RETRY_AFTER), true, problem.to_owned())
                    }
                    Err(error) if is_final(&error) => return,
                    Err(error) => {
                        let may_be_early = !matches!(error, Error::Overloaded { .. });
                        (error.retry_after(), may_be_early, error.to_string())
                    }
                };
            let left = left(); // after the run, which may be longer than the wait
            pause = after.unwrap_or(Duration::MAX);
            if after.is_some() && may_be_early {
                pause = pause.min(left); // the last request is at the end of the wait
            }
            if left.is_zero() || pause > left {
                let event = delivered.event;
                tracing::error!(
                    event,
                    problem,
                    "a delivery that is not sent again was not handled"
                );
                return;
            }
        }
    }
}

/// The id of an event; empty for an interaction or a command.
fn name_of(payload: &Value) -> String {
    payload["event_id"].as_str().unwrap_or_default().to_owned()
}

/// No run need handle the event any more.
fn is_final(refusal: &Error) -> bool {
    use NotGranted::{Dropped, Duplicate, GaveUp};
    matches!(refusal.not_granted(), Some(Duplicate(_) | GaveUp(_) | Dropped))
}

fn decoding<T, E, F>(handler: impl Fn(T, Turn) -> F + Clone + Send + Sync + 'static) -> Handler
where
    T: DeserializeOwned + Send + 'static,
    E: From<Error> + fmt::Display + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
{
    Arc::new(move |payload| {
        let text = |value: &Value| value["type"].as_str().unwrap_or_default().to_owned();
        let (kind, event) = (text(&payload), text(&payload["event"]));
        let decoded = T::deserialize(&payload).inspect_err(|error| {
            // Not its text, which quotes what people write.
            let problem = error.classify();
            tracing::error!(kind, event, ?problem, "a payload of Slack cannot be decoded");
        })?;
        let (handler, decoded) = (handler.clone(), Mutex::new(Some(decoded)));
        let event = name_of(&payload);
        Ok(Box::new(move |scope| {
            // A second run gets a payload of its own.
            let decoded = locked(&decoded).take();
            let decoded = decoded.map_or_else(|| T::deserialize(&payload), Ok);
            let (handler, event) = (handler.clone(), event.clone());
            Box::pin(async move {
                let Ok(payload) = decoded else { return Handled::Failed };
                let turn = scope.turn().clone();
                let ended = handle(scope, |turn| handler(payload, turn)).await;
                match ended {
                    Ok(_) => Handled::Done,
                    Err(_) if turn.is_uncertain() => Handled::Uncertain, // the gate has logged it
                    Err(error) => {
                        tracing::error!(event, "a delivery of Slack failed in its turn: {error:#}");
                        Handled::Failed
                    }
                }
            })
        }))
    })
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("gate", &self.gate).finish_non_exhaustive()
    }
}
