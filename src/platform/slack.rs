//! What Slack sends: events, interactions and slash commands, over HTTP or Socket Mode.

mod events;
mod interactions;

use super::{
    Named, Unreadable,
    form::Form,
    json::{Document, Json, first, first_id},
};
use crate::domain::{Id, SlackFields, Text};

/// The names of all fields that are read, and of those that lead to them.
const NAMES: [&str; 47] = [
    "action_id",
    "action_ts",
    "actions",
    "api_app_id",
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

/// What some editors and proxies write at the start of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads one delivery: a body that is JSON or form-encoded, the payload of an interaction, a
/// frame of Socket Mode, or an event without its envelope. With `each_use`, each click of a
/// button is an event.
///
/// # Errors
/// [`Unreadable`] when the body is none of these, or a field that is read is invalid.
pub fn read(body: &[u8], each_use: bool) -> Result<Named, Unreadable> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body).trim_ascii();
    let form;
    let document = if is_form(body) {
        form = Form::decode(body);
        match form.get("payload") {
            // <https://docs.slack.dev/interactivity/handling-user-interaction#payloads>
            Some(payload) => Document::parse(payload, &NAMES)?,
            None => Document::of_fields(form.fields(), &NAMES),
        }
    } else {
        Document::parse(body, &NAMES)?
    };
    let root = document.root();
    if !root.is_object() {
        return Err(Unreadable::new("not a JSON object"));
    }
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
    Ok(Named {
        team,
        app: payload.get("api_app_id").id()?,
        names: fields.names(each_use),
        conversations: fields.conversations(),
    })
}

/// JSON begins with a mark, a digit or a literal; a form has names and `=`.
fn is_form(body: &[u8]) -> bool {
    body.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && body.contains(&b'=')
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
