//! The same bot without oncegate. It acknowledges after the handler, as the guard does, but handles each delivery.

use axum::{body::Bytes, extract::State, http::StatusCode};
use serde_json::{Value, json};

use crate::{Bot, Callback};

pub async fn events(State(bot): State<Bot>, body: Bytes) -> StatusCode {
    // A task of its own: Slack gives the request up after 3 s.
    let handled = tokio::spawn(async move {
        let callback: Callback = serde_json::from_slice(&body)?;
        bot.answer(callback.event, None).await
    });
    match handled.await {
        Ok(Ok(())) => StatusCode::OK,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub async fn message(bot: Bot, text: String) -> Option<String> {
    let mut message: Value = serde_json::from_str(&text).ok()?;
    let envelope = message["envelope_id"].as_str()?.to_owned();
    let callback: Callback = serde_json::from_value(message["payload"].take()).ok()?;
    bot.answer(callback.event, None).await.ok()?;
    Some(json!({ "envelope_id": envelope }).to_string())
}
