//! Interactions: what people do to buttons, menus, modals and shortcuts.
//! <https://docs.slack.dev/reference/interaction-payloads>

use super::{Id, Json, SlackFields, Unreadable, first, first_id, id_of};
use crate::domain::{SlackAction, Text};

/// Buttons: a second click means what the first did. Any other element may be used again.
/// <https://docs.slack.dev/reference/block-kit/block-elements/button-element>
/// <https://docs.slack.dev/reference/block-kit/block-elements/icon-button-element>
/// <https://docs.slack.dev/reference/block-kit/block-elements/workflow-button-element>
const BUTTONS: [&str; 3] = ["button", "icon_button", "workflow_button"];

/// What people interact with, old and new.
const KINDS: [&str; 11] = [
    "block_actions",
    "block_suggestion",
    "dialog_cancellation",
    "dialog_submission",
    "dialog_suggestion",
    "interactive_message",
    "message_action",
    "shortcut",
    "view_closed",
    "view_submission",
    "workflow_step_edit",
];

/// Of a kind that is not known, actions or a trigger show it.
pub(super) fn is_one(payload: Json<'_, '_>) -> Result<bool, Unreadable> {
    let kind = payload.get("type").text()?;
    Ok(kind.is_some_and(|kind| KINDS.contains(&&*kind))
        || payload.get("actions").is_array()
        || payload.get("trigger_id").is_string())
}

/// The workspace that the app is installed in; where that is an organization as a whole,
/// `team` may be null. In a channel that several workspaces share, a modal may have been
/// opened in another.
/// <https://docs.slack.dev/reference/interaction-payloads/view-interactions-payload>
/// <https://docs.slack.dev/enterprise/developing-for-enterprise-orgs>
pub(super) fn tenant(payload: Json<'_, '_>) -> Result<Option<Id>, Unreadable> {
    let (view, team) = (payload.get("view"), payload.get("team"));
    first_id([
        view.get("app_installed_team_id"),
        team.get("id"),
        team,
        payload.get("user").get("team_id"),
        view.get("team_id"),
        payload.get("enterprise").get("id"),
    ])
}

pub(super) fn fields<'a>(payload: Json<'_, 'a>) -> Result<SlackFields<'a>, Unreadable> {
    let kind = payload.get("type").text()?;
    let (view, container) = (payload.get("view"), payload.get("container"));
    let message = match payload.get("message") {
        message if message.is_object() => message,
        _ => payload.get("original_message"),
    };
    let is_legacy = matches!(
        kind.as_deref(),
        Some("interactive_message" | "dialog_submission" | "dialog_cancellation")
    );
    let callback_id = if is_legacy { payload.get("callback_id").text()? } else { None };
    Ok(SlackFields {
        channel: first([
            payload.get("channel").get("id"),
            payload.get("channel"),
            container.get("channel_id"),
        ])?,
        is_direct: is_direct(payload)?,
        message_ts: first([
            message.get("ts"),
            container.get("message_ts"),
            payload.get("message_ts"),
        ])?,
        thread_ts: first([message.get("thread_ts"), container.get("thread_ts")])?,
        user: id_of(payload.get("user"))?,
        trigger_id: payload.get("trigger_id").text()?,
        view_id: first([view.get("id"), container.get("view_id")])?,
        root_view_id: view.get("root_view_id").text()?,
        view_hash: view.get("hash").text()?,
        actions: actions(payload, kind.as_deref())?,
        callback_id,
        kind,
        ..SlackFields::default()
    })
}

/// A group of people has a channel with a name of this form.
/// <https://docs.slack.dev/reference/objects/conversation-object>
fn is_direct(payload: Json<'_, '_>) -> Result<bool, Unreadable> {
    let name = payload.get("channel").get("name").text()?;
    Ok(name.is_some_and(|name| name == "directmessage" || name.starts_with("mpdm-")))
}

fn actions<'a>(
    payload: Json<'_, 'a>,
    kind: Option<&str>,
) -> Result<Vec<SlackAction<'a>>, Unreadable> {
    match kind {
        Some("interactive_message") => {
            payload.get("actions").items().map(|action| of_attachment(payload, action)).collect()
        }
        Some(kind @ ("dialog_submission" | "dialog_cancellation")) => {
            Ok(vec![of_dialog(payload, kind)?])
        }
        _ => payload.get("actions").items().map(of_block).collect(),
    }
}

/// <https://docs.slack.dev/reference/interaction-payloads/block_actions-payload>
fn of_block<'a>(action: Json<'_, 'a>) -> Result<SlackAction<'a>, Unreadable> {
    Ok(SlackAction {
        block_id: action.get("block_id").text()?,
        action_id: action.get("action_id").text()?,
        value: action.get("value").text()?,
        action_ts: action.get("action_ts").text()?,
        is_button: is_button(action)?,
    })
}

/// <https://docs.slack.dev/legacy/legacy-messaging/legacy-making-messages-interactive>
fn of_attachment<'a>(
    payload: Json<'_, 'a>,
    action: Json<'_, 'a>,
) -> Result<SlackAction<'a>, Unreadable> {
    Ok(SlackAction {
        block_id: payload.get("attachment_id").text()?,
        action_id: action.get("name").text()?,
        value: action.get("value").text()?,
        action_ts: payload.get("action_ts").text()?,
        is_button: is_button(action)?,
    })
}

/// <https://docs.slack.dev/legacy/legacy-dialogs>
fn of_dialog<'a>(payload: Json<'_, 'a>, kind: &str) -> Result<SlackAction<'a>, Unreadable> {
    Ok(SlackAction {
        action_id: Some(Text::Owned(kind.to_owned())),
        action_ts: payload.get("action_ts").text()?,
        ..SlackAction::default()
    })
}

fn is_button(action: Json<'_, '_>) -> Result<bool, Unreadable> {
    Ok(action.get("type").text()?.is_some_and(|kind| BUTTONS.contains(&&*kind)))
}
