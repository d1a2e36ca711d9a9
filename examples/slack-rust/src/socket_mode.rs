//! Socket Mode: a connection to Slack, over which messages come, and acknowledgements go.

use std::{pin::pin, time::Duration};

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async, tungstenite::protocol::Message,
};
use tokio_util::sync::CancellationToken;

use crate::web_api::WebApi;

type Connection = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How long a connection may take to be made, and what is left to be sent at the end.
const CONNECT_TIME: Duration = Duration::from_secs(10);
const END_TIME: Duration = Duration::from_secs(2);
/// From one connection to the next: Slack limits how often an app connects.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// Slack pings every few seconds.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// Handles what comes, and sends what `handle` returns, until the bot is drained. Once it is stopped, events are left to
/// other processes: Slack delivers them again.
pub async fn serve<F>(
    slack: &WebApi,
    app_token: &str,
    handle: impl Fn(String) -> F,
    stopped: &CancellationToken,
    drained: impl Future<Output = ()>,
) where
    F: Future<Output = Option<String>> + Send + 'static,
{
    let mut drained = pin!(drained);
    let (acks, mut to_send) = mpsc::channel(100);
    loop {
        let mut connection = tokio::select! {
            connection = connect(slack, app_token) => connection,
            () = &mut drained => return,
        };
        let connected = Instant::now();
        loop {
            tokio::select! {
                () = &mut drained => {
                    drop(acks);
                    let end = async {
                        while let Some(ack) = to_send.recv().await {
                            let _ = connection.send(Message::text(ack)).await;
                        }
                        let _ = connection.close(None).await;
                    };
                    let _ = timeout(END_TIME, end).await;
                    return;
                }
                // One that is lost with its connection is made up for by a redelivery.
                Some(ack) = to_send.recv() => {
                    if connection.send(Message::text(ack)).await.is_err() {
                        break;
                    }
                }
                message = timeout(LONGEST_SILENCE, connection.next()) => match message {
                    Ok(Some(Ok(Message::Text(text)))) if is_disconnect(&text) => break,
                    Ok(Some(Ok(Message::Text(text)))) if !stopped.is_cancelled() => {
                        let (acks, handling) = (acks.clone(), handle(text.to_string()));
                        tokio::spawn(async move {
                            if let Some(ack) = handling.await {
                                let _ = acks.send(ack).await;
                            }
                        });
                    }
                    Ok(Some(Ok(_))) => {}
                    Ok(Some(Err(_)) | None) | Err(_) => break,
                },
            }
        }
        sleep(RECONNECT_PAUSE.saturating_sub(connected.elapsed())).await;
    }
}

async fn connect(slack: &WebApi, app_token: &str) -> Connection {
    loop {
        let connection = async {
            let opened = slack.call_as(app_token, "apps.connections.open", &json!({})).await?;
            let url = opened["url"].as_str().context("apps.connections.open: there is no url")?;
            anyhow::Ok(connect_async(url).await?.0)
        };
        let connection = timeout(CONNECT_TIME, connection).await.context("it takes too long");
        match connection.and_then(|connection| connection) {
            Ok(connection) => {
                tracing::info!("connected to Slack");
                return connection;
            }
            Err(error) => tracing::warn!("cannot connect to Slack; retrying in 1 s: {error:#}"),
        }
        sleep(RECONNECT_PAUSE).await;
    }
}

/// Slack asks to connect anew every few hours.
fn is_disconnect(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|message| message["type"] == "disconnect")
}
