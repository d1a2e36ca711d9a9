//! What Slack sends: events, interactions and slash commands, over HTTP or Socket Mode.

mod events;
mod interactions;

use super::{
    Named, Unreadable,
    body::Body,
    json::{Json, first, first_id},
};
use crate::domain::{Id, SlackFields, Text};

/// The names of all fields that are read, and of those that lead to them.
const NAMES: &[&str] = &[
    "action_id",
    "action_ts",
    "actions",
    "app_installed_team_id",
    "assistant_thread",
    "attachment_id",
    "authorizations",
    "block_id",
    "bot_id",
    "callback_id",
    "channel",
    "channel_id",
    "channel_type",
    "client_msg_id",
    "command",
    "container",
    "context_team_id",
    "deleted_ts",
    "edited",
    "enterprise",
    "enterprise_id",
    "envelope_id",
    "event",
    "event_id",
    "hash",
    "id",
    "is_enterprise_install",
    "item",
    "message",
    "message_ts",
    "name",
    "original_message",
    "payload",
    "previous_message",
    "root_view_id",
    "subtype",
    "team",
    "team_id",
    "thread_ts",
    "trigger_id",
    "ts",
    "type",
    "user",
    "user_id",
    "value",
    "view",
    "view_id",
];

/// Reads one delivery: a body that is JSON or form-encoded
/// (<https://docs.slack.dev/interactivity/handling-user-interaction#payloads>), the payload of an interaction, a
/// frame of Socket Mode, or an event without its envelope. With `each_use`, each click of a
/// button is an event.
///
/// # Errors
/// [`Unreadable`] when the body is none of these, or a field that is read is invalid.
pub fn read(body: &[u8], each_use: bool) -> Result<Named, Unreadable> {
    let body = Body::of(body);
    let document = body.document(NAMES)?;
    let root = document.root();
    // <https://docs.slack.dev/apis/events-api/using-socket-mode#events>
    let is_frame = root.get("envelope_id").is_string() && root.get("payload").is_object();
    let payload = if is_frame { root.get("payload") } else { root };

    let (team, fields) = if payload.get("event").is_object() {
        (events::tenant(payload)?, events::enveloped(payload)?)
    } else if payload.get("command").is_string() {
        command(payload)?
    } else if interactions::is_one(payload)? {
        (interactions::tenant(payload)?, interactions::fields(payload)?)
    } else {
        (events::bare_tenant(payload)?, events::fields(payload)?)
    };
    Ok(Named { team, names: fields.names(each_use), conversations: fields.conversations() })
}

/// <https://docs.slack.dev/interactivity/implementing-slash-commands#app_command_handling>
fn command<'a>(payload: Json<'_, 'a>) -> Result<(Option<Id>, SlackFields<'a>), Unreadable> {
    let fields = SlackFields {
        kind: Some(Text::Borrowed("slash_commands")),
        channel: payload.get("channel_id").text()?,
        belongs_to_channel: true,
        user: payload.get("user_id").text()?,
        trigger_id: payload.get("trigger_id").text()?,
        ..SlackFields::default()
    };
    Ok((first_id([payload.get("team_id"), payload.get("enterprise_id")])?, fields))
}

/// An id that stands alone in one payload and in an object in another.
fn id_of<'a>(value: Json<'_, 'a>) -> Result<Option<Text<'a>>, Unreadable> {
    first([value, value.get("id")])
}
