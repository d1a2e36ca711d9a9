//! A bot behind the guard of Slack, and what Slack sends it.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use oncegate_client::{
    Gate, Hooks, Turn,
    slack::{Events, Guard, Socket},
    testing::Server,
};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::{Mutex, mpsc};
use tower::Service as _;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub(super) const SECRET: &str = "a secret";
const RETRY: &str = "x-slack-retry-num";

#[derive(serde::Deserialize)]
struct Callback {
    event: Event,
}

#[derive(serde::Deserialize)]
struct Event {
    text: String,
}

/// How a run of the handler ends.
pub(super) enum Leave {
    Done,
    Fail,
    Reject,
    Panic,
}

/// A bot whose handler reports each run, and ends it as the test says.
pub(super) struct Bot {
    entered: mpsc::Sender<String>,
    has_entered: mpsc::Receiver<String>,
    leave: mpsc::Sender<Leave>,
    may_leave: Arc<Mutex<mpsc::Receiver<Leave>>>,
}

impl Bot {
    pub(super) fn new() -> Self {
        let ((entered, has_entered), (leave, may_leave)) = (mpsc::channel(10), mpsc::channel(10));
        Self { entered, has_entered, leave, may_leave: Arc::new(Mutex::new(may_leave)) }
    }

    pub(super) fn events(&self, guard: &Guard) -> Events {
        let (entered, may_leave) = (self.entered.clone(), self.may_leave.clone());
        guard.events(SECRET, move |callback: Callback, turn| {
            handle(callback.event.text, turn, entered.clone(), may_leave.clone())
        })
    }

    pub(super) fn socket(&self, guard: &Guard) -> Socket {
        let (entered, may_leave) = (self.entered.clone(), self.may_leave.clone());
        guard.socket(move |payload: Value, turn| {
            let text = payload["event"]["text"].as_str().unwrap_or("a click").to_owned();
            handle(text, turn, entered.clone(), may_leave.clone())
        })
    }

    /// The text of the event whose handler has begun.
    pub(super) async fn runs(&mut self) -> String {
        self.has_entered.recv().await.expect("it runs")
    }

    pub(super) async fn leaves(&self, by: Leave) {
        self.leave.send(by).await.expect("there is a handler");
    }

    /// Waits until no handler runs.
    pub(super) async fn is_idle(&self) {
        drop(self.may_leave.lock().await); // a handler has the lock
    }

    /// The text of an event whose handler has begun before.
    pub(super) fn ran(&mut self) -> String {
        self.has_entered.try_recv().expect("it ran")
    }

    pub(super) fn runs_no_more(&mut self) {
        assert!(self.has_entered.try_recv().is_err(), "one more run");
    }
}

async fn handle(
    text: String,
    turn: Turn,
    entered: mpsc::Sender<String>,
    may_leave: Arc<Mutex<mpsc::Receiver<Leave>>>,
) -> Result<(), BoxError> {
    entered.send(text).await?;
    match may_leave.lock().await.recv().await {
        Some(Leave::Done) => Ok(()),
        Some(Leave::Reject) => Err(turn.reject("no topic").into()),
        Some(Leave::Panic) => panic!("a bug of the handler"),
        Some(Leave::Fail) | None => Err("no disk".into()),
    }
}

/// A message in the thread of channel C1 that begins with 17.5. Its text is its event's id.
pub(super) fn mention(event: &str) -> String {
    json!({"team_id": "T1", "api_app_id": "A1", "type": "event_callback", "event_id": event, "event": {
        "type": "app_mention", "channel": "C1", "user": "U1", "text": event, "ts": format!("{event}.000100"),
        "thread_ts": "17.5"}})
    .to_string()
}

pub(super) fn envelope(event: &str, retry: u32) -> String {
    let payload: Value = serde_json::from_str(&mention(event)).expect("it is JSON");
    json!({"type": "events_api", "envelope_id": format!("envelope of {event}"), "payload": payload,
        "retry_attempt": retry})
    .to_string()
}

/// A button of a message in the thread of [`mention`].
pub(super) fn click(envelope: &str) -> String {
    json!({"type": "interactive", "envelope_id": envelope, "payload": {"type": "block_actions",
        "team": {"id": "T1"}, "user": {"id": "U1", "team_id": "T1"}, "api_app_id": "A1", "trigger_id": "1.2.a",
        "container": {"type": "message", "message_ts": "18.5", "channel_id": "C1"}, "channel": {"id": "C1"},
        "message": {"ts": "18.5", "thread_ts": "17.5"}, "actions": [{"type": "button", "action_id": "approve",
        "block_id": "b1", "value": "v", "action_ts": "19.5"}]}})
    .to_string()
}

pub(super) fn signed(body: &str, secret: &str, age: u64) -> Request<Full<Bytes>> {
    #[expect(clippy::disallowed_methods, reason = "a sender signs its time")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    let time = now - age;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key");
    mac.update(format!("v0:{time}:{body}").as_bytes());
    let mut signature = String::from("v0=");
    for byte in mac.finalize().into_bytes() {
        write!(signature, "{byte:02x}").expect("a string takes it");
    }
    Request::post("/slack/events")
        .header("x-slack-request-timestamp", time)
        .header("x-slack-signature", signature)
        .body(Full::new(Bytes::from(body.to_owned())))
        .expect("a request")
}

pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) may_retry: bool,
    pub(super) body: String,
}

pub(super) async fn answer(mut events: Events, request: Request<Full<Bytes>>) -> Reply {
    let Ok(response) = events.call(request).await;
    let (status, may_retry) = (response.status(), response.headers().contains_key("retry-after"));
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    Reply { status, may_retry, body: String::from_utf8_lossy(&body).into_owned() }
}

pub(super) async fn post(events: &Events, event: &str, retry: u32) -> Reply {
    let mut request = signed(&mention(event), SECRET, 0);
    if retry > 0 {
        request.headers_mut().insert(RETRY, retry.into());
    }
    answer(events.clone(), request).await
}

/// Another task, as Slack's requests are.
pub(super) fn posting(events: &Events, event: &'static str) -> tokio::task::JoinHandle<Reply> {
    let events = events.clone();
    tokio::spawn(async move { post(&events, event, 0).await })
}

struct Queued(mpsc::Sender<()>);

impl Hooks for Queued {
    fn on_queued(&self, _: u32) {
        let _ = self.0.try_send(()); // it has a place
    }
}

/// A gate that reports when a turn is in a queue.
pub(super) fn queueing(server: &Server) -> (Gate, mpsc::Receiver<()>) {
    let (queued, is_queued) = mpsc::channel(100);
    (server.builder().hooks(Queued(queued)).build().expect("a gate"), is_queued)
}

/// Without a limit: a test that hangs has failed.
pub(super) async fn drained(guard: &Guard) {
    assert!(guard.drain(Duration::MAX).await);
}
