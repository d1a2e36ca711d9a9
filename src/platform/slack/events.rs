//! Events, in their envelope and without it.

use super::{Id, Json, SlackFields, Unreadable, first, first_id, id_of};

/// The workspace or organization that the app is installed in. In a channel that several
/// workspaces share, `team_id` is the one that the event comes from.
///
/// <https://docs.slack.dev/apis/events-api/#callback-field>
/// <https://docs.slack.dev/apis/slack-connect/developing-apps-for-slack-connect>
/// <https://docs.slack.dev/enterprise/developing-for-enterprise-orgs>
pub(super) fn tenant(payload: Json<'_, '_>) -> Result<Option<Id>, Unreadable> {
    let installation = payload.get("authorizations").items().next();
    let installed = |name| installation.map(|installation| installation.get(name));
    let is_whole_organization = installed("is_enterprise_install").is_some_and(Json::is_true);
    if let Some(team) = payload.get("context_team_id").id()? {
        return Ok(Some(team));
    }
    if let Some(organization) = installed("enterprise_id").filter(|_| is_whole_organization)
        && let Some(organization) = organization.id()?
    {
        return Ok(Some(organization));
    }
    if let Some(team) = installed("team_id")
        && let Some(team) = team.id()?
    {
        return Ok(Some(team));
    }
    first_id([payload.get("team_id"), payload.get("enterprise_id")])
}

/// The same of an event without its envelope, which names only its sender's workspace.
pub(super) fn bare_tenant(event: Json<'_, '_>) -> Result<Option<Id>, Unreadable> {
    let named = tenant(event)?;
    if named.is_some() { Ok(named) } else { event.get("team").id() }
}

/// <https://docs.slack.dev/apis/events-api/#callback-field>
pub(super) fn enveloped<'a>(payload: Json<'_, 'a>) -> Result<SlackFields<'a>, Unreadable> {
    let event_id = payload.get("event_id").id()?;
    Ok(SlackFields { event_id, ..fields(payload.get("event"))? })
}

/// An event, whatever it is in.
pub(super) fn fields<'a>(event: Json<'_, 'a>) -> Result<SlackFields<'a>, Unreadable> {
    let kind = event.get("type").text()?;
    let common = SlackFields {
        kind: kind.clone(),
        channel: first([
            event.get("channel"),
            event.get("channel").get("id"),
            event.get("channel_id"),
        ])?,
        is_direct: is_direct(&event)?,
        user: first([event.get("user"), event.get("user").get("id"), event.get("user_id")])?,
        ..SlackFields::default()
    };
    match kind.as_deref() {
        None | Some("message" | "app_mention") => message(event, common),
        Some(
            "reaction_added" | "reaction_removed" | "pin_added" | "pin_removed" | "star_added"
            | "star_removed",
        ) => about_item(event, common),
        // <https://docs.slack.dev/reference/events/link_shared>
        Some("link_shared") => Ok(SlackFields {
            message_ts: event.get("message_ts").text()?,
            thread_ts: event.get("thread_ts").text()?,
            ..common
        }),
        // <https://docs.slack.dev/reference/events/assistant_thread_started>
        // <https://docs.slack.dev/reference/events/assistant_thread_context_changed>
        Some("assistant_thread_started" | "assistant_thread_context_changed") => {
            let thread = event.get("assistant_thread");
            Ok(SlackFields {
                channel: thread.get("channel_id").text()?,
                thread_ts: thread.get("thread_ts").text()?,
                user: thread.get("user_id").text()?,
                ..common
            })
        }
        Some(_) => Ok(common),
    }
}

/// <https://docs.slack.dev/reference/events/message#event_types>
fn is_direct(event: &Json<'_, '_>) -> Result<bool, Unreadable> {
    let kind = event.get("channel_type").text()?;
    Ok(matches!(kind.as_deref(), Some("im" | "mpim")))
}

fn message<'a>(
    event: Json<'_, 'a>,
    common: SlackFields<'a>,
) -> Result<SlackFields<'a>, Unreadable> {
    let (inner, previous) = (event.get("message"), event.get("previous_message"));
    let subtype = event.get("subtype").text()?;
    let about = match subtype.as_deref() {
        Some("message_changed" | "message_replied") => inner,
        Some("message_deleted") => previous,
        // The Events API leaves the subtype `message_replied` out.
        // <https://docs.slack.dev/reference/events/message/message_replied>
        None if inner.is_object() => {
            return about_message(
                inner,
                SlackFields { subtype: Some("message_replied".into()), ..common },
            );
        }
        _ => {
            return Ok(SlackFields {
                subtype,
                client_msg_id: event.get("client_msg_id").text()?,
                is_from_bot: event.get("bot_id").is_string(),
                ts: event.get("ts").text()?,
                thread_ts: event.get("thread_ts").text()?,
                ..common
            });
        }
    };
    // A preview of a link changes the message again, and leaves it as edited as it was.
    let edited = inner.get("edited").get("ts").text()?;
    let edited_ts = if edited == previous.get("edited").get("ts").text()? { None } else { edited };
    let fields = about_message(about, SlackFields { subtype, edited_ts, ..common })?;
    let deleted = event.get("deleted_ts").text()?;
    Ok(SlackFields { message_ts: deleted.or(fields.message_ts), ..fields })
}

/// <https://docs.slack.dev/reference/events/reaction_added>
/// <https://docs.slack.dev/reference/events/pin_added>
/// <https://docs.slack.dev/reference/events/star_added>
fn about_item<'a>(
    event: Json<'_, 'a>,
    common: SlackFields<'a>,
) -> Result<SlackFields<'a>, Unreadable> {
    let item = event.get("item");
    let channel = item.get("channel").text()?;
    let common = SlackFields { channel: channel.or(common.channel), ..common };
    if item.get("message").is_object() {
        return about_message(item.get("message"), common);
    }
    // The thread of a reply is not named: it counts as one of its own.
    Ok(SlackFields { message_ts: item.get("ts").text()?, ..common })
}

/// An event that is about a message.
fn about_message<'a>(
    message: Json<'_, 'a>,
    common: SlackFields<'a>,
) -> Result<SlackFields<'a>, Unreadable> {
    let user = id_of(message.get("user"))?;
    Ok(SlackFields {
        message_ts: message.get("ts").text()?,
        thread_ts: message.get("thread_ts").text()?,
        user: common.user.clone().or(user),
        ..common
    })
}
