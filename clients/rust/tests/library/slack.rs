//! The guard of Slack.

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
    testing::{self, Server},
};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::{Mutex, mpsc};
use tower::Service as _;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const SECRET: &str = "a secret";
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
enum Leave {
    Done,
    Fail,
    Reject,
    Panic,
}

/// A bot whose handler reports each run, and ends it as the test says.
struct Bot {
    entered: mpsc::Sender<String>,
    has_entered: mpsc::Receiver<String>,
    leave: mpsc::Sender<Leave>,
    may_leave: Arc<Mutex<mpsc::Receiver<Leave>>>,
}

impl Bot {
    fn new() -> Self {
        let ((entered, has_entered), (leave, may_leave)) = (mpsc::channel(10), mpsc::channel(10));
        Self { entered, has_entered, leave, may_leave: Arc::new(Mutex::new(may_leave)) }
    }

    fn events(&self, guard: &Guard) -> Events {
        let (entered, may_leave) = (self.entered.clone(), self.may_leave.clone());
        guard.events(SECRET, move |callback: Callback, turn| {
            handle(callback.event.text, turn, entered.clone(), may_leave.clone())
        })
    }

    fn socket(&self, guard: &Guard) -> Socket {
        let (entered, may_leave) = (self.entered.clone(), self.may_leave.clone());
        guard.socket(move |payload: Value, turn| {
            let text = payload["event"]["text"].as_str().unwrap_or("a click").to_owned();
            handle(text, turn, entered.clone(), may_leave.clone())
        })
    }

    /// The text of the event whose handler has begun.
    async fn runs(&mut self) -> String {
        self.has_entered.recv().await.expect("it runs")
    }

    async fn leaves(&self, by: Leave) {
        self.leave.send(by).await.expect("there is a handler");
    }

    /// The text of an event whose handler has begun before.
    fn ran(&mut self) -> String {
        self.has_entered.try_recv().expect("it ran")
    }

    fn runs_no_more(&mut self) {
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
fn mention(event: &str) -> String {
    json!({"team_id": "T1", "api_app_id": "A1", "type": "event_callback", "event_id": event, "event": {
        "type": "app_mention", "channel": "C1", "user": "U1", "text": event, "ts": format!("{event}.000100"),
        "thread_ts": "17.5"}})
    .to_string()
}

fn envelope(event: &str, retry: u32) -> String {
    let payload: Value = serde_json::from_str(&mention(event)).expect("it is JSON");
    json!({"type": "events_api", "envelope_id": format!("envelope of {event}"), "payload": payload,
        "retry_attempt": retry})
    .to_string()
}

/// A button of a message in the thread of [`mention`].
fn click(envelope: &str) -> String {
    json!({"type": "interactive", "envelope_id": envelope, "payload": {"type": "block_actions",
        "team": {"id": "T1"}, "user": {"id": "U1", "team_id": "T1"}, "api_app_id": "A1", "trigger_id": "1.2.a",
        "container": {"type": "message", "message_ts": "18.5", "channel_id": "C1"}, "channel": {"id": "C1"},
        "message": {"ts": "18.5", "thread_ts": "17.5"}, "actions": [{"type": "button", "action_id": "approve",
        "block_id": "b1", "value": "v", "action_ts": "19.5"}]}})
    .to_string()
}

fn signed(body: &str, secret: &str, age: u64) -> Request<Full<Bytes>> {
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

struct Reply {
    status: StatusCode,
    may_retry: bool,
    body: String,
}

async fn answer(mut events: Events, request: Request<Full<Bytes>>) -> Reply {
    let Ok(response) = events.call(request).await;
    let (status, may_retry) = (response.status(), response.headers().contains_key("retry-after"));
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    Reply { status, may_retry, body: String::from_utf8_lossy(&body).into_owned() }
}

async fn post(events: &Events, event: &str, retry: u32) -> Reply {
    let mut request = signed(&mention(event), SECRET, 0);
    if retry > 0 {
        request.headers_mut().insert(RETRY, retry.into());
    }
    answer(events.clone(), request).await
}

/// Another task, as Slack's requests are.
fn posting(events: &Events, event: &'static str) -> tokio::task::JoinHandle<Reply> {
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
fn queueing(server: &Server) -> (Gate, mpsc::Receiver<()>) {
    let (queued, is_queued) = mpsc::channel(100);
    (server.builder().hooks(Queued(queued)).build().expect("a gate"), is_queued)
}

/// Without a limit: a test that hangs has failed.
async fn drained(guard: &Guard) {
    assert!(guard.drain(Duration::MAX).await);
}

#[tokio::test]
async fn an_event_is_handled_once() {
    let (gate, _server) = testing::start().await;
    let mut bot = Bot::new();
    let events = bot.events(&Guard::new(gate));
    let first = posting(&events, "1");
    assert_eq!(bot.runs().await, "1");
    let second = post(&events, "1", 0).await;
    assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(second.may_retry);
    bot.leaves(Leave::Done).await;
    assert_eq!(first.await.expect("a reply").status, StatusCode::OK);
    assert_eq!(post(&events, "1", 1).await.status, StatusCode::OK);
    bot.runs_no_more();
}

#[tokio::test]
async fn an_error_is_delivered_again() {
    let (gate, _server) = testing::start().await;
    let mut bot = Bot::new();
    let events = bot.events(&Guard::new(gate));
    bot.leaves(Leave::Fail).await;
    let first = post(&events, "1", 0).await;
    assert_eq!(first.status, StatusCode::SERVICE_UNAVAILABLE);
    bot.leaves(Leave::Reject).await;
    assert_eq!(post(&events, "1", 1).await.status, StatusCode::OK);
    assert_eq!(post(&events, "1", 2).await.status, StatusCode::OK);
    assert_eq!((bot.ran(), bot.ran()), ("1".into(), "1".into()));
    bot.runs_no_more();
}

#[tokio::test]
async fn a_request_that_slack_gives_up_is_handled() {
    let (gate, server) = testing::start().await;
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let first = posting(&bot.events(&guard), "1");
    bot.runs().await;
    first.abort();
    assert!(first.await.is_err_and(|error| error.is_cancelled()));
    bot.leaves(Leave::Done).await;
    drained(&guard).await;
    let events = bot.events(&Guard::new(server.gate()));
    assert_eq!(post(&events, "1", 1).await.status, StatusCode::OK);
    bot.runs_no_more();
}

#[tokio::test]
async fn a_busy_thread_queues() {
    let server = Server::start([]).await;
    let (gate, mut is_queued) = queueing(&server);
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let events = bot.events(&guard);
    let first = posting(&events, "1");
    bot.runs().await;
    for event in ["2", "3"] {
        assert_eq!(post(&events, event, 0).await.status, StatusCode::OK);
        is_queued.recv().await;
    }
    bot.runs_no_more();
    for _ in 0..3 {
        bot.leaves(Leave::Done).await;
    }
    assert_eq!(first.await.expect("a reply").status, StatusCode::OK);
    drained(&guard).await;
    assert_eq!((bot.ran(), bot.ran()), ("2".into(), "3".into()));
    assert_eq!(server.turns("T1").await, []);
}

#[tokio::test]
async fn a_drain_is_limited() {
    let server = Server::start([]).await;
    let mut bot = Bot::new();
    let guard = Guard::new(server.gate()).ack_first();
    let events = bot.events(&guard);
    assert_eq!(post(&events, "1", 0).await.status, StatusCode::OK);
    bot.runs().await;
    assert_eq!(post(&events, "2", 0).await.status, StatusCode::OK); // it waits
    assert!(!guard.drain(Duration::from_millis(50)).await);
    assert_eq!(server.turns("T1").await, [], "what has not ended has failed");
    assert_eq!(post(&events, "3", 0).await.status, StatusCode::SERVICE_UNAVAILABLE);
    bot.runs_no_more();
}

#[tokio::test]
async fn the_last_retry_waits_for_the_run_before_it() {
    let server = Server::start([]).await;
    for (event, leave) in [("1", Leave::Done), ("2", Leave::Fail)] {
        let is_handled = matches!(leave, Leave::Done);
        let mut bot = Bot::new();
        let guard = Guard::new(server.gate());
        let events = bot.events(&guard);
        let first = posting(&events, event);
        bot.runs().await;
        for retry in [1, 2] {
            let refused = post(&events, event, retry).await;
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "retry {retry}");
        }
        assert_eq!(post(&events, event, 3).await.status, StatusCode::OK);
        bot.leaves(leave).await;
        assert_eq!(first.await.expect("a reply").status.is_success(), is_handled);
        if !is_handled {
            assert_eq!(bot.runs().await, event);
            bot.leaves(Leave::Done).await;
        }
        drained(&guard).await;
        let events = bot.events(&Guard::new(server.gate()));
        assert_eq!(post(&events, event, 1).await.status, StatusCode::OK);
        bot.runs_no_more();
    }
}

#[tokio::test]
async fn the_last_retry_waits_for_the_server() {
    let (gate, server) = testing::start().await;
    server.kill().await;
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let events = bot.events(&guard);
    let unavailable = post(&events, "1", 0).await;
    assert_eq!(unavailable.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(unavailable.may_retry);
    bot.runs_no_more();
    assert_eq!(post(&events, "1", 3).await.status, StatusCode::OK);
    server.restart().await;
    bot.leaves(Leave::Done).await;
    drained(&guard).await;
    assert_eq!(bot.ran(), "1");
}

#[tokio::test]
async fn a_panic_fails_the_turn() {
    let server = Server::start([]).await;
    let ack_first = Guard::new(server.gate()).ack_first();
    for (event, guard, status) in [("1", Guard::new(server.gate()), 503), ("2", ack_first, 200)] {
        let mut bot = Bot::new();
        bot.leaves(Leave::Panic).await;
        assert_eq!(post(&bot.events(&guard), event, 0).await.status.as_u16(), status);
        drained(&guard).await;
        assert_eq!(bot.ran(), event);
        assert_eq!(server.turns("T1").await, []);
        bot.leaves(Leave::Done).await;
        let guard = Guard::new(server.gate());
        assert_eq!(post(&bot.events(&guard), event, 1).await.status, StatusCode::OK);
        assert_eq!(bot.ran(), event);
    }
}

#[tokio::test]
async fn the_request_url_verifies_who_asks() {
    let (gate, _server) = testing::start().await;
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let events = bot.events(&guard);
    let challenge = r#"{"type": "url_verification", "token": "x", "challenge": "abc"}"#;
    let reply = answer(events.clone(), signed(challenge, SECRET, 0)).await;
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "abc"));
    let event = mention("1");
    for _ in 0..4 {
        bot.leaves(Leave::Done).await; // one that runs wrongly does not wait
    }
    let mut without = signed(&event, SECRET, 0);
    without.headers_mut().remove("x-slack-signature");
    for (what, request) in [
        ("another secret", signed(&event, "another", 0)),
        ("an old request", signed(&event, SECRET, 301)),
        ("no signature", without),
    ] {
        assert_eq!(
            answer(events.clone(), request).await.status,
            StatusCode::UNAUTHORIZED,
            "{what}"
        );
    }
    let open = guard.events("", |_: Value, _| async { Ok::<_, BoxError>(()) });
    let reply = answer(open, signed(&event, "", 0)).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "an empty secret");
    for (body, status) in [
        ("x".repeat((4 << 20) + 1), StatusCode::PAYLOAD_TOO_LARGE),
        ("payload=x".to_owned(), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(answer(events.clone(), signed(&body, SECRET, 0)).await.status, status);
    }
    bot.runs_no_more();
}

#[tokio::test]
async fn a_form_is_not_acknowledged() {
    let (gate, _server) = testing::start().await;
    let guard = Guard::new(gate.clone());
    // Whatever the handler takes.
    let events = guard.events(SECRET, |_: Value, _| async { Ok::<_, BoxError>(()) });
    let click = "payload=%7B%22type%22%3A%22block_actions%22%2C%22trigger_id%22%3A%221.2.x%22%2C\
                 %22team%22%3A%7B%22id%22%3A%22T1%22%7D%7D";
    let reply = answer(events, signed(click, SECRET, 0)).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    let state = gate.seen(&oncegate_client::slack(click.as_bytes())).await.unwrap().state;
    assert_eq!(state, "NOT_SEEN");
}

#[tokio::test]
async fn an_envelope_is_acknowledged_after_its_handler() {
    let server = Server::start([]).await;
    let (gate, mut is_queued) = queueing(&server);
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let socket: Socket = bot.socket(&guard);
    for other in [r#"{"type": "hello"}"#, "no JSON"] {
        assert_eq!(socket.message(other).await, None);
    }
    let first = tokio::spawn({
        let socket = socket.clone();
        async move { socket.message(&envelope("1", 0)).await }
    });
    assert_eq!(bot.runs().await, "1");
    assert_eq!(socket.message(&envelope("1", 1)).await, None, "Slack is to deliver again");
    let ack = Some(r#"{"envelope_id":"a click"}"#.to_owned());
    assert_eq!(socket.message(&click("a click")).await, ack, "it waits in this process");
    is_queued.recv().await;
    bot.leaves(Leave::Done).await;
    let ack = Some(r#"{"envelope_id":"envelope of 1"}"#.to_owned());
    assert_eq!(first.await.expect("an end"), ack);
    assert_eq!(bot.runs().await, "a click");
    let ack = Some(r#"{"envelope_id":"again"}"#.to_owned());
    assert_eq!(socket.message(&click("again")).await, ack, "a click that runs is acknowledged");
    bot.leaves(Leave::Done).await;
    drained(&guard).await;
    bot.runs_no_more();
}
