//! A Slack bot that answers every mention in its thread once, also over redelivery and crashes. A crash after
//! the post may repeat it. Over Socket Mode if `SLACK_APP_TOKEN` is set, otherwise over HTTP on `PORT`.

mod socket_mode;
mod unguarded;
mod web_api;

use std::{env, process, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    routing::{post, post_service},
};
use oncegate_client::{Gate, Turn, slack::Guard};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::web_api::WebApi;

/// Less than what Kubernetes and systemd wait for after SIGTERM: 30 s and 90 s.
const DRAIN_TIME: Duration = Duration::from_secs(25);

/// What the bot reads of an `event_callback`.
#[derive(Deserialize)]
struct Callback {
    event: Mention,
}

#[derive(Deserialize)]
struct Mention {
    channel: String,
    text: String,
    ts: String,
    thread_ts: Option<String>,
}

#[derive(Clone)]
struct Bot {
    slack: WebApi,
    think: Duration,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let _ = rustls::crypto::ring::default_provider().install_default(); // for reqwest
    let think = setting("THINK_SECONDS").unwrap_or("5".into()).parse()?;
    let bot = Bot { slack: WebApi::new()?, think: Duration::from_secs_f64(think) };
    let is_guarded = setting("GUARD").as_deref() != Some("off"); // off shows what Slack's redelivery does
    let stopped = stopped()?;
    let guard = Guard::new(Gate::new()?);
    let drained = async {
        stopped.cancelled().await;
        if !guard.drain(DRAIN_TIME).await {
            tracing::warn!("some events have not ended; Slack delivers those again that it can");
        }
    };
    let answering = bot.clone();
    let on_mention = move |callback: Callback, turn: Turn| {
        let bot = answering.clone();
        async move { bot.answer(callback.event, Some(turn)).await }
    };

    if let Some(token) = setting("SLACK_APP_TOKEN") {
        let slack = bot.slack.clone();
        let socket = guard.socket(on_mention);
        let on_message = move |text: String| {
            let (bot, socket) = (bot.clone(), socket.clone());
            async move {
                if is_guarded {
                    socket.message(&text).await
                } else {
                    unguarded::message(bot, text).await
                }
            }
        };
        socket_mode::serve(&slack, &token, on_message, &stopped, drained).await;
        return Ok(());
    }
    let secret = setting("SLACK_SIGNING_SECRET").context("SLACK_SIGNING_SECRET is not set")?;
    let events = post_service(guard.events(secret, on_mention));
    let events = if is_guarded { events } else { post(unguarded::events).with_state(bot) };
    serve_http(Router::new().route("/slack/events", events), &stopped, drained).await
}

async fn serve_http(
    app: Router,
    stopped: &CancellationToken,
    drained: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let port = setting("PORT").unwrap_or("3000".into()).parse()?;
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    tracing::info!("listening on port {}", listener.local_addr()?.port());
    let server =
        axum::serve(listener, app).with_graceful_shutdown(stopped.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());
    drained.await;
    let _ = timeout(Duration::from_secs(2), server).await; // sends the last answers
    Ok(())
}

impl Bot {
    /// Handles a mention. It is dropped if its turn is lost.
    async fn answer(&self, mention: Mention, turn: Option<Turn>) -> anyhow::Result<()> {
        let (channel, thread) = (mention.channel, mention.thread_ts.unwrap_or(mention.ts));
        let status =
            json!({ "channel_id": channel, "thread_ts": thread, "status": "is thinking…" });
        self.slack.call("assistant.threads.setStatus", &status).await?;
        sleep(self.think).await; // A language model would do its work here.
        if let Some(turn) = turn {
            turn.check()?;
        }
        let (_, question) = mention.text.split_once("> ").unwrap_or(("", &mention.text));
        let text = format!("You said: {question}");
        let message = json!({ "channel": channel, "thread_ts": thread, "text": text });
        self.slack.call("chat.postMessage", &message).await?;
        Ok(())
    }
}

/// A variable of the environment, unless it is empty.
fn setting(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Is cancelled by SIGTERM or Ctrl-C. A second signal ends the process at once.
fn stopped() -> anyhow::Result<CancellationToken> {
    let stopped = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signalled = stopped.clone();
    tokio::spawn(async move {
        for is_second in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if is_second {
                process::exit(1);
            }
            signalled.cancel();
        }
    });
    Ok(stopped)
}
