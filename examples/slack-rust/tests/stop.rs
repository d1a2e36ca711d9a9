//! A bot that is stopped by SIGTERM ends the event that it handles, and the one that waits for the same thread.

use std::{
    fmt::Write as _,
    process::{ExitStatus, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Bytes, routing::post};
use futures_util::{SinkExt as _, StreamExt as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use oncegate_client::testing::{self, Server};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::{mpsc, watch},
};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite::Message};

const SECRET: &str = "a secret";

/// Slack's side. It does not answer `assistant.threads.setStatus`, with which the handler begins, before it is released.
struct Slack {
    url: String,
    sockets: TcpListener,
    statuses: mpsc::Receiver<()>,
    release: watch::Sender<bool>,
    answers: mpsc::Receiver<String>,
}

impl Slack {
    async fn start() -> Self {
        let (status, statuses) = mpsc::channel(10);
        let (answer, answers) = mpsc::channel(10);
        let (release, is_released) = watch::channel(false);
        let sockets = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let link = format!("ws://{}", sockets.local_addr().expect("an address"));
        let set_status = move || {
            let (status, mut is_released) = (status.clone(), is_released.clone());
            async move {
                let _ = status.send(()).await;
                let _ = is_released.wait_for(|is_released| *is_released).await;
                json!({ "ok": true }).to_string()
            }
        };
        let post_message = move |body: Bytes| {
            let answer = answer.clone();
            async move {
                let message: Value = serde_json::from_slice(&body).expect("it is JSON");
                let _ = answer.send(message["text"].as_str().unwrap_or_default().to_owned()).await;
                json!({ "ok": true, "channel": "C1", "ts": "18.5" }).to_string()
            }
        };
        let open = move || async move { json!({ "ok": true, "url": link }).to_string() };
        let api = Router::new()
            .route("/assistant.threads.setStatus", post(set_status))
            .route("/chat.postMessage", post(post_message))
            .route("/apps.connections.open", post(open));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        tokio::spawn(axum::serve(listener, api).into_future());
        Self { url, sockets, statuses, release, answers }
    }

    fn bot(&self, server: &Server, variable: &str, value: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_slack-rust"))
            .env_remove("SLACK_APP_TOKEN")
            .env("ONCEGATE_SERVER", server.address())
            .env("SLACK_API_URL", &self.url)
            .env("SLACK_BOT_TOKEN", "xoxb-x")
            .env("SLACK_SIGNING_SECRET", SECRET)
            .env("THINK_SECONDS", "0")
            .env("GUARD", "on")
            .env(variable, value)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the bot")
    }

    /// Stops the bot while it handles one event, and another one waits.
    async fn stop(&self, bot: &mut Child) {
        let pid = bot.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(sent.is_ok_and(|status| status.success()));
        self.release.send_replace(true);
    }

    /// Both messages are answered, the one that ran first.
    async fn has_answered(mut self, ended: std::io::Result<ExitStatus>) {
        assert!(ended.is_ok_and(|status| status.success()), "it ends in order");
        self.answers.close();
        let mut answers = Vec::new();
        while let Some(answer) = self.answers.recv().await {
            answers.push(answer);
        }
        assert_eq!(answers, ["You said: first", "You said: second"]);
    }
}

/// A message in one thread.
fn mention(text: &str) -> Value {
    json!({"team_id": "T1", "api_app_id": "A1", "type": "event_callback", "event_id": text, "event": {
        "type": "app_mention", "channel": "C1", "user": "U1", "text": format!("<@U0> {text}"), "ts": text,
        "thread_ts": "17.5"}})
}

/// The status with which the bot answers.
async fn deliver(url: &str, body: String) -> u16 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("a key");
    mac.update(format!("v0:{time}:{body}").as_bytes());
    let mut signature = String::from("v0=");
    for byte in mac.finalize().into_bytes() {
        write!(signature, "{byte:02x}").expect("a string takes it");
    }
    let request = reqwest::Client::new().post(url).body(body);
    let request = request.header("x-slack-request-timestamp", time);
    let response = request.header("x-slack-signature", signature).send().await;
    response.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn over_http() {
    let _ = rustls::crypto::ring::default_provider().install_default(); // for reqwest
    let (_gate, server) = testing::start().await;
    let mut slack = Slack::start().await;
    let mut bot = slack.bot(&server, "PORT", "0");
    let mut log = BufReader::new(bot.stderr.take().expect("it is piped")).lines();
    let port = loop {
        let line = log.next_line().await.expect("it is text").expect("the bot has ended");
        if let Some((_, port)) = line.split_once("listening on port ") {
            break port.to_owned();
        }
    };
    let url = format!("http://127.0.0.1:{port}/slack/events");
    let first = tokio::spawn({
        let url = url.clone();
        async move { deliver(&url, mention("first").to_string()).await }
    });
    slack.statuses.recv().await.expect("the first begins");
    assert_eq!(deliver(&url, mention("second").to_string()).await, 200, "it waits");
    slack.stop(&mut bot).await;
    assert_eq!(first.await.expect("a status"), 200);
    slack.has_answered(bot.wait().await).await;
}

#[tokio::test]
async fn over_socket_mode() {
    let (_gate, server) = testing::start().await;
    let mut slack = Slack::start().await;
    let mut bot = slack.bot(&server, "SLACK_APP_TOKEN", "xapp-x");
    let (stream, _) = slack.sockets.accept().await.expect("a connection");
    let mut socket = accept_async(stream).await.expect("a websocket");
    send(&mut socket, "first").await;
    slack.statuses.recv().await.expect("the first begins");
    send(&mut socket, "second").await;
    assert_eq!(acknowledged(&mut socket).await, "second", "it waits");
    slack.stop(&mut bot).await;
    assert_eq!(acknowledged(&mut socket).await, "first");
    slack.has_answered(bot.wait().await).await;
}

async fn send(socket: &mut WebSocketStream<TcpStream>, text: &str) {
    let envelope = json!({"type": "events_api", "envelope_id": text, "payload": mention(text)});
    socket.send(Message::text(envelope.to_string())).await.expect("it is sent");
}

/// The envelope that is acknowledged next.
async fn acknowledged(socket: &mut WebSocketStream<TcpStream>) -> String {
    loop {
        let message = socket.next().await.expect("a message").expect("a connection");
        if let Message::Text(text) = message {
            let ack: Value = serde_json::from_str(&text).expect("it is JSON");
            return ack["envelope_id"].as_str().unwrap_or_default().to_owned();
        }
    }
}
