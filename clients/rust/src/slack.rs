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
//! or an error of its handler, loses it. At the end of the process, [`Guard::drain`] waits for those, too.
//!
//! All events of the app come to one handler. A payload that its type cannot decode is refused, and delivered
//! three more times: an enum with `#[serde(other)]` decodes the types that are of no interest.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tower_service::Service;

use crate::{
    Delivery, Error, Gate, NotGranted, OnUnavailable, Turn, TurnRequest, TurnScope,
    errors::BoxError,
    run::handle,
    webhook::{Options, again, read, respond},
};

/// Slack wants its answer within 3 s.
const PATIENCE_BEFORE_ACK: Duration = Duration::from_millis(2500);
const PATIENCE_AFTER_ACK: Duration = Duration::from_secs(30);
/// The longest wait that the server accepts.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Slack delivers an event that is not acknowledged three more times.
const LAST_RETRY: u64 = 3;

/// More than Slack sends.
const MAX_BODY: usize = 4 << 20;
const OLDEST_SIGNATURE: u64 = 5 * 60;

/// Runs handlers in turns. A clone is the same guard.
#[derive(Clone)]
pub struct Guard {
    gate: Gate,
    wait: Duration,
    ack_first: bool,
    options: Arc<Options>,
    /// Deliveries that run, and those that wait for their turn.
    running: TaskTracker,
}

/// The request URL of the Events API: a [`Service`] for axum, hyper and the like. [`Guard::events`] makes it.
#[derive(Clone)]
pub struct Events {
    guard: Guard,
    secret: Arc<str>,
    handler: Handler,
}

/// What handles the messages of Socket Mode. [`Guard::socket`] makes it.
#[derive(Clone)]
pub struct Socket {
    guard: Guard,
    handler: Handler,
}

/// Decodes a payload.
type Handler = Arc<dyn Fn(Value) -> Result<Body, serde_json::Error> + Send + Sync>;
/// Handles the payload in a turn, and ends the turn. Whether Slack is to acknowledge it.
type Body = Box<dyn FnOnce(TurnScope) -> Handling + Send>;
type Handling = Pin<Box<dyn Future<Output = bool> + Send>>;

/// One delivery.
struct Delivered {
    delivery: Delivery,
    can_refuse: bool,
    body: Body,
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
            options: Arc::new(|turn| turn),
            running: TaskTracker::new(),
        }
    }

    /// How long an acknowledged delivery waits for its turn. Default: 10 min.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Acknowledges when the turn has begun, and not after the handler: for handlers of interactions and
    /// commands that take longer than the 3 s of Slack, and of events that take longer than the 6 min for
    /// which Slack redelivers. If the process dies in the middle, the event is lost.
    #[must_use]
    pub fn ack_first(mut self) -> Self {
        self.ack_first = true;
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

    async fn begin(self, delivered: Delivered) -> Answer {
        let mut request = (self.options)(self.gate.turn(delivered.delivery.clone()))
            .wait(Duration::ZERO)
            .patience(PATIENCE_BEFORE_ACK);
        if delivered.can_refuse {
            request = request.on_unavailable(OnUnavailable::Raise);
        }
        match request.begin().await {
            Ok(turn) if self.ack_first => {
                self.running.spawn((delivered.body)(turn));
                Answer::Acknowledge
            }
            Ok(turn) => {
                let is_handled = (delivered.body)(turn).await;
                if is_handled { Answer::Acknowledge } else { Answer::Refuse(DEFAULT_RETRY_AFTER) }
            }
            Err(refusal) => self.refused(delivered, refusal),
        }
    }

    fn refused(self, delivered: Delivered, refusal: Error) -> Answer {
        let after = refusal.retry_after();
        let is_busy = matches!(refusal.not_granted(), Some(NotGranted::Busy(_)));
        let is_running = matches!(refusal.not_granted(), Some(NotGranted::InProgress(_)));
        let sent_once = delivered.delivery.is_sent_once();
        if is_final(&refusal) {
            return Answer::Acknowledge;
        }
        if !is_busy {
            if delivered.can_refuse || after.is_none() {
                return Answer::Refuse(after.unwrap_or(DEFAULT_RETRY_AFTER)); // it may be in vain
            }
            if sent_once {
                return if is_running {
                    Answer::Acknowledge
                } else {
                    Answer::Refuse(DEFAULT_RETRY_AFTER)
                };
            }
        }
        // This process has the only copy now.
        self.running.clone().spawn(self.keep_asking(delivered, refusal));
        Answer::Acknowledge
    }

    /// Repeats the request for a turn until there is an answer, or the wait is over.
    async fn keep_asking(self, delivered: Delivered, refusal: Error) {
        let began = Instant::now();
        let left = || self.wait.saturating_sub(began.elapsed());
        let mut pause = match refusal.not_granted() {
            Some(NotGranted::Busy(_)) => Duration::ZERO, // its queue is joined at once
            _ => refusal.retry_after().unwrap_or(DEFAULT_RETRY_AFTER),
        };
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.gate.done() => {}
            }
            let wait = left().min(LONGEST_WAIT);
            let request = (self.options)(self.gate.turn(delivered.delivery.clone()));
            let error = match request.wait(wait).patience(PATIENCE_AFTER_ACK).begin().await {
                Ok(turn) => {
                    (delivered.body)(turn).await;
                    return;
                }
                Err(error) if is_final(&error) => return,
                Err(error) => error,
            };
            let left = left();
            pause = error.retry_after().unwrap_or(Duration::MAX);
            if error.retry_after().is_some() && !matches!(error, Error::Overloaded { .. }) {
                pause = pause.min(left); // the last request is at the end of the wait
            }
            if left.is_zero() || pause > left {
                tracing::error!(%error, "a delivery that is not sent again was not handled");
                return;
            }
        }
    }
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
        let payload: T = serde_json::from_value(payload).inspect_err(|error| {
            // Not its text, which quotes what people write.
            let problem = error.classify();
            tracing::error!(kind, event, ?problem, "a payload of Slack cannot be decoded");
        })?;
        let handler = handler.clone();
        Ok(Box::new(move |turn| {
            Box::pin(async move {
                let ended = handle(turn, |turn| handler(payload, turn)).await;
                if let Err(error) = &ended {
                    tracing::error!("a delivery of Slack failed in its turn: {error:#}");
                }
                ended.is_ok()
            })
        }))
    })
}

impl Events {
    async fn answer<B>(self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let body = match read(body, MAX_BODY).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        if !is_signed(&parts.headers, &body, &self.secret) {
            return respond(StatusCode::UNAUTHORIZED, "the signature is not that of Slack");
        }
        let Ok(payload) = serde_json::from_slice::<Value>(&body) else {
            // Such as a form of an interaction: what is not handled must not be acknowledged.
            return respond(StatusCode::BAD_REQUEST, "this is no event of the Events API");
        };
        if payload["type"] == "url_verification" {
            let challenge = payload["challenge"].as_str().unwrap_or_default().to_owned();
            return respond(StatusCode::OK, challenge);
        }
        let delivery = crate::slack(&body);
        let retry = number(&parts.headers, "x-slack-retry-num").unwrap_or_default();
        let delivered = match (self.handler)(payload) {
            Ok(body) => Delivered {
                can_refuse: !delivery.is_sent_once() && retry < LAST_RETRY,
                delivery,
                body,
            },
            Err(_) => return respond(StatusCode::BAD_REQUEST, "the payload cannot be decoded"),
        };
        match self.guard.run(delivered).await {
            Answer::Acknowledge => respond(StatusCode::OK, ""),
            Answer::Refuse(after) => again(after),
        }
    }
}

impl<B> Service<Request<B>> for Events
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let events = self.clone();
        Box::pin(async move { Ok(events.answer(request).await) })
    }
}

impl Socket {
    /// Handles a text message of Socket Mode, and returns the acknowledgement, to be sent over any connection
    /// of the app. There is none if Slack is to deliver again, or if the message is no envelope. Do not wait
    /// for it before the next message is read: it takes as long as the handler.
    pub async fn message(&self, text: &str) -> Option<String> {
        let mut message: Value = serde_json::from_str(text).ok()?;
        let envelope = message["envelope_id"].as_str()?.to_owned();
        let retry = message["retry_attempt"].as_u64().unwrap_or_default();
        let delivery = crate::slack(text.as_bytes());
        let body = (self.handler)(message["payload"].take()).ok()?;
        let can_refuse = !delivery.is_sent_once() && retry < LAST_RETRY;
        let delivered = Delivered { can_refuse, delivery, body };
        match self.guard.run(delivered).await {
            Answer::Acknowledge => Some(json!({ "envelope_id": envelope }).to_string()),
            Answer::Refuse(_) => None,
        }
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// <https://docs.slack.dev/authentication/verifying-requests-from-slack>
fn is_signed(headers: &HeaderMap, body: &[u8], secret: &str) -> bool {
    #[expect(clippy::disallowed_methods, reason = "the sender signs the time of its clock")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let check = || {
        let signed_at = number(headers, "x-slack-request-timestamp")?;
        let signature = headers.get("x-slack-signature")?.to_str().ok()?.strip_prefix("v0=")?;
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()?;
        mac.update(format!("v0:{signed_at}:").as_bytes());
        mac.update(body);
        mac.verify_slice(&from_hex(signature)?).ok()?;
        Some(now.abs_diff(signed_at) <= OLDEST_SIGNATURE)
    };
    !secret.is_empty() && check() == Some(true)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<_>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    digits?.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair.get(1)?).ok()).collect()
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("guard", &self.guard).finish_non_exhaustive()
    }
}
