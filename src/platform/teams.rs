//! Activities that Microsoft Teams sends to bots.

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
    "aadObjectId",
    "channelData",
    "conversation",
    "from",
    "id",
    "tenant",
    "tenantId",
    "timestamp",
    "type",
];

/// Stands before the id of a thread's first message.
/// <https://learn.microsoft.com/en-us/microsoftteams/platform/bots/how-to/conversations/channel-and-group-conversations>
const THREAD: &str = ";messageid=";

/// <https://learn.microsoft.com/en-us/azure/bot-service/rest-api/bot-framework-rest-connector-api-reference#activity-object>
pub(super) fn read(body: &[u8]) -> Result<Named, Unreadable> {
    let body = Body::of(body);
    let document = body.document(NAMES)?;
    let activity = document.root();
    let conversation = activity.get("conversation");
    Ok(Named {
        // <https://learn.microsoft.com/en-us/microsoftteams/platform/bots/build-conversational-capability>
        team: first_id([
            activity.get("channelData").get("tenant").get("id"),
            conversation.get("tenantId"),
        ])?,
        names: name(activity)?.into_iter().collect(),
        conversations: conversations(activity)?,
    })
}

/// An activity's id is unique within its conversation. A message keeps its own when it is
/// edited, deleted and restored.
/// <https://learn.microsoft.com/en-us/microsoftteams/platform/bots/how-to/conversations/conversation-messages>
fn name(activity: Json<'_, '_>) -> Result<Option<Id>, Unreadable> {
    let conversation = activity.get("conversation").get("id").text()?;
    let (Some(conversation), Some(id)) = (conversation, activity.get("id").text()?) else {
        return Ok(None);
    };
    let (conversation, id) = (Open(&conversation), Closed(&id));
    let change = match activity.get("type").text()?.as_deref() {
        Some("messageUpdate") => "edit",
        Some("messageDelete") => "del",
        Some("typing") | None => return Ok(None),
        Some(_) => return Ok(Some(joined(&[conversation, id]))),
    };
    let at = activity.get("timestamp").text()?;
    Ok(at.map(|at| joined(&[Closed(change), conversation, id, Closed(&at)])))
}

/// A thread of a channel, or a chat.
fn conversations(activity: Json<'_, '_>) -> Result<Conversations, Unreadable> {
    let from = activity.get("from");
    let user = first([from.get("aadObjectId"), from.get("id")])?.map(Cow::into_owned);
    let Some(id) = activity.get("conversation").get("id").text()? else {
        return Ok(Conversations { user, ..Conversations::default() });
    };
    let (channel, thread) = match id.split_once(THREAD) {
        Some((channel, thread)) => {
            let (channel, thread) = (channel.to_owned(), thread.to_owned());
            (channel.clone(), Conversation::Thread { channel, thread })
        }
        None => (id.clone().into_owned(), Conversation::Channel(id.into_owned())),
    };
    Ok(Conversations { thread: Some(thread), channel: Some(channel), user })
}
