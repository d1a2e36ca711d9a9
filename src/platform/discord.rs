//! Discord's interactions and messages, over HTTP or the gateway.

use std::borrow::Cow;

use super::{
    Named, Unreadable,
    body::Body,
    json::{Json, first, first_id},
};
use crate::domain::{
    Conversation, Conversations, Id,
    name::{
        Part::{Closed, Open},
        joined,
    },
};

/// The names of all fields that are read, and of those that lead to them.
const NAMES: &[&str] = &[
    "application_id",
    "author",
    "channel",
    "channel_id",
    "d",
    "edited_timestamp",
    "guild_id",
    "id",
    "member",
    "parent_id",
    "t",
    "token",
    "type",
    "user",
    "user_id",
];

/// What a payload is about.
enum Kind {
    Interaction,
    Message,
    Deletion,
    Other,
}

pub(super) fn read(body: &[u8]) -> Result<Named, Unreadable> {
    let body = Body::of(body);
    let document = body.document(NAMES)?;
    let root = document.root();
    // <https://discord.com/developers/docs/events/gateway-events#payload-structure>
    let dispatched = root.get("t").text()?;
    let data = if root.get("d").is_object() { root.get("d") } else { root };
    let has = |name| data.get(name).is_string();
    let kind = match dispatched.as_deref() {
        Some("INTERACTION_CREATE") => Kind::Interaction,
        Some("MESSAGE_CREATE" | "MESSAGE_UPDATE") => Kind::Message,
        Some("MESSAGE_DELETE") => Kind::Deletion,
        None if has("token") && has("application_id") => Kind::Interaction,
        None if data.get("author").is_object() => Kind::Message,
        _ => Kind::Other,
    };
    let channel = data.get("channel_id").id()?;
    let guild = data.get("guild_id").id()?;
    let direct = || channel.as_ref().map(|id| joined(&[Closed("dm"), Open(id.as_str())]));
    Ok(Named {
        team: guild.or_else(direct),
        names: name(&kind, dispatched.as_deref(), data)?.into_iter().collect(),
        conversations: conversations(data, channel.as_ref())?,
    })
}

fn name(
    kind: &Kind,
    dispatched: Option<&str>,
    data: Json<'_, '_>,
) -> Result<Option<Id>, Unreadable> {
    let Some(id) = data.get("id").id()? else { return Ok(None) };
    match kind {
        // A ping and the completion of what is being typed are questions.
        // <https://discord.com/developers/docs/interactions/receiving-and-responding#interaction-object-interaction-type>
        Kind::Interaction => {
            let kind = data.get("type").scalar()?;
            Ok(Some(id).filter(|_| !matches!(kind.as_deref(), Some("1" | "4"))))
        }
        // An update without an edit adds a preview.
        // <https://discord.com/developers/docs/events/gateway-events#message-update>
        Kind::Message => match data.get("edited_timestamp").text()? {
            Some(edited) if dispatched != Some("MESSAGE_CREATE") => {
                Ok(Some(joined(&[Closed("edit"), Closed(id.as_str()), Open(&edited)])))
            }
            _ => Ok(Some(id).filter(|_| dispatched != Some("MESSAGE_UPDATE"))),
        },
        // <https://discord.com/developers/docs/events/gateway-events#message-delete>
        Kind::Deletion => Ok(Some(joined(&[Closed("del"), Open(id.as_str())]))),
        // Reactions and members have no id: one that comes back looks the same.
        // <https://discord.com/developers/docs/events/gateway-events#message-reaction-add>
        Kind::Other => Ok(None),
    }
}

/// A thread is a channel, within another.
/// <https://discord.com/developers/docs/topics/threads>
fn conversations(data: Json<'_, '_>, channel: Option<&Id>) -> Result<Conversations, Unreadable> {
    let owned = |id: Option<&Id>| id.map(|id| id.as_str().to_owned());
    let within = data.get("channel");
    let is_thread = matches!(within.get("type").scalar()?.as_deref(), Some("10" | "11" | "12"));
    let parent = first_id([within.get("parent_id")])?.filter(|_| is_thread);
    Ok(Conversations {
        thread: owned(channel).map(Conversation::Channel),
        channel: owned(parent.as_ref().or(channel)),
        user: first([
            data.get("member").get("user").get("id"),
            data.get("user").get("id"),
            data.get("author").get("id"),
            data.get("user_id"),
        ])?
        .map(Cow::into_owned),
    })
}
