//! Slack's payloads, as far as they name what happened.

use self::json::{Fields, Json};
use crate::grpc::pb::{EventKey, SlackEvent, event_key};

mod json;

/// Finds the identifying fields of one delivery: an Events API envelope, a
/// `block_actions` interaction, or a bare event. `team` stands in where the
/// delivery names none. Which of the fields make the key is the server's to
/// say, and so is what is wrong with them.
///
/// # Errors
/// When the line is not a JSON object, or one of those fields is not valid UTF-8.
pub(super) fn event_key(line: &[u8], team: &str) -> Result<EventKey, String> {
    let payload = Json::parse(line).map_err(|error| {
        // The only line there is goes without saying.
        let problem = error.to_string().replace(" at line 1 column", " at column");
        format!("not JSON: {problem}")
    })?;
    if !payload.is_object() {
        return Err("not a JSON object".to_owned());
    }
    let fields = payload.fields();
    let (inner, actions) = (fields.get("event"), fields.get("actions"));
    let (found, slack) = if inner.is_object() {
        envelope(&fields, &inner)?
    } else if actions.is_array() {
        interaction(&fields, &actions)?
    } else {
        (fields.get("team").string()?, event(&payload)?)
    };
    let team_id = if found.is_empty() { team.to_owned() } else { found };
    Ok(EventKey { team_id, key: Some(event_key::Key::Slack(slack)), ..EventKey::default() })
}

/// <https://docs.slack.dev/apis/events-api/#callback-field>
fn envelope(fields: &Fields, inner: &Json) -> Result<(String, SlackEvent), String> {
    let event_id = fields.get("event_id").string()?;
    Ok((fields.get("team_id").string()?, SlackEvent { event_id, ..event(inner)? }))
}

/// <https://docs.slack.dev/reference/interaction-payloads/block_actions-payload>
fn interaction(fields: &Fields, actions: &Json) -> Result<(String, SlackEvent), String> {
    let part = |name| fields.get(name).fields();
    let (message, container, user) = (part("message"), part("container"), part("user"));
    let slack = SlackEvent {
        action_id: actions.first().fields().get("action_id").string()?,
        message_ts: either(&message.get("ts"), &container.get("message_ts"))?,
        user_id: user.get("id").string()?,
        channel: either(&part("channel").get("id"), &container.get("channel_id"))?,
        thread_ts: either(&message.get("thread_ts"), &container.get("thread_ts"))?,
        ..SlackEvent::default()
    };
    Ok((either(&part("team").get("id"), &user.get("team_id"))?, slack))
}

fn event(event: &Json) -> Result<SlackEvent, String> {
    let fields = event.fields();
    Ok(SlackEvent {
        client_msg_id: fields.get("client_msg_id").string()?,
        channel: fields.get("channel").string()?,
        ts: fields.get("ts").string()?,
        thread_ts: fields.get("thread_ts").string()?,
        ..SlackEvent::default()
    })
}

fn either(first: &Json, second: &Json) -> Result<String, String> {
    if first.is_string() { first.string() } else { second.string() }
}
