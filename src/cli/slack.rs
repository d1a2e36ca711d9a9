//! Slack's payloads, as far as they name what happened.

use serde_json::Value;

use crate::grpc::pb::{EventKey, SlackEvent, event_key};

/// Finds the identifying fields of one delivery: an Events API envelope, a
/// `block_actions` interaction, or a bare event. `team` stands in where the
/// delivery names none. Which of the fields make the key is the server's to
/// say, and so is what is wrong with them.
///
/// # Errors
/// When the line is not a JSON object.
pub(super) fn event_key(line: &[u8], team: &str) -> Result<EventKey, String> {
    let payload: Value = serde_json::from_slice(line).map_err(|error| {
        // The only line there is goes without saying.
        let problem = error.to_string().replace(" at line 1 column", " at column");
        format!("not JSON: {problem}")
    })?;
    if !payload.is_object() {
        return Err("not a JSON object".to_owned());
    }
    let (found, slack) = if payload["event"].is_object() {
        envelope(&payload)
    } else if payload["actions"].is_array() {
        interaction(&payload)
    } else {
        (text(&payload["team"]), event(&payload))
    };
    let team_id = if found.is_empty() { team.to_owned() } else { found };
    Ok(EventKey { team_id, key: Some(event_key::Key::Slack(slack)), aliases: Vec::new() })
}

/// <https://docs.slack.dev/apis/events-api/#callback-field>
fn envelope(payload: &Value) -> (String, SlackEvent) {
    let inner = event(&payload["event"]);
    let event_id = text(&payload["event_id"]);
    (text(&payload["team_id"]), SlackEvent { event_id, ..inner })
}

/// <https://docs.slack.dev/reference/interaction-payloads/block_actions-payload>
fn interaction(payload: &Value) -> (String, SlackEvent) {
    let (message, container) = (&payload["message"], &payload["container"]);
    let slack = SlackEvent {
        action_id: text(&payload["actions"][0]["action_id"]),
        message_ts: either(&message["ts"], &container["message_ts"]),
        user_id: text(&payload["user"]["id"]),
        channel: either(&payload["channel"]["id"], &container["channel_id"]),
        thread_ts: either(&message["thread_ts"], &container["thread_ts"]),
        ..SlackEvent::default()
    };
    (either(&payload["team"]["id"], &payload["user"]["team_id"]), slack)
}

fn event(event: &Value) -> SlackEvent {
    SlackEvent {
        client_msg_id: text(&event["client_msg_id"]),
        channel: text(&event["channel"]),
        ts: text(&event["ts"]),
        thread_ts: text(&event["thread_ts"]),
        ..SlackEvent::default()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn either(first: &Value, second: &Value) -> String {
    text(if first.is_string() { first } else { second })
}
