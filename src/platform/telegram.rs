//! Telegram's updates, from its webhook or by polling.

use std::borrow::Cow;

use super::{Named, Unreadable, body::Body, json::Json};
use crate::domain::{Conversation, Conversations};

/// What an update may hold that belongs to a chat or a user.
/// <https://core.telegram.org/bots/api#update>
const KINDS: [&str; 23] = [
    "message",
    "edited_message",
    "channel_post",
    "edited_channel_post",
    "business_connection",
    "business_message",
    "edited_business_message",
    "deleted_business_messages",
    "message_reaction",
    "message_reaction_count",
    "inline_query",
    "chosen_inline_result",
    "callback_query",
    "shipping_query",
    "pre_checkout_query",
    "purchased_paid_media",
    "poll_answer",
    "my_chat_member",
    "chat_member",
    "chat_join_request",
    "chat_boost",
    "removed_chat_boost",
    "managed_bot",
];

/// The names of the other fields that are read.
const FIELDS: [&str; 6] = ["chat", "from", "id", "message_thread_id", "update_id", "user"];

/// Updates are counted for each bot, and the body does not say for which: the tenant is the
/// caller's to give.
/// <https://core.telegram.org/bots/api#update>
pub(super) fn read(body: &[u8]) -> Result<Named, Unreadable> {
    let body = Body::of(body);
    let document = body.document(&[&KINDS[..], &FIELDS].concat())?;
    let update = document.root();
    let content =
        KINDS.into_iter().map(|kind| update.get(kind)).find(|content| content.is_object());
    Ok(Named {
        names: update.get("update_id").id()?.into_iter().collect(),
        conversations: content.map_or_else(|| Ok(Conversations::default()), conversations)?,
        ..Named::default()
    })
}

/// A topic of a chat, or the chat.
/// <https://core.telegram.org/bots/api#message>
/// <https://core.telegram.org/bots/api#callbackquery>
fn conversations(content: Json<'_, '_>) -> Result<Conversations, Unreadable> {
    let message = content.get("message");
    let message = if message.is_object() { message } else { content };
    let chat = message.get("chat").get("id").scalar()?.map(Cow::into_owned);
    let topic = message.get("message_thread_id").scalar()?.map(Cow::into_owned);
    let user = ["from", "user"].into_iter().map(|name| content.get(name).get("id"));
    let user = user.map(Json::scalar).find_map(Result::transpose).transpose()?;
    Ok(Conversations {
        thread: chat.clone().map(|channel| match topic {
            Some(thread) => Conversation::Thread { channel, thread },
            None => Conversation::Channel(channel),
        }),
        channel: chat,
        user: user.map(Cow::into_owned),
    })
}
