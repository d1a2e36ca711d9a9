//! GitHub's webhooks.

use std::borrow::Cow;

use super::{
    Headers, Named, Unreadable,
    body::Body,
    json::{Json, first_id, first_scalar},
};
use crate::domain::{Conversation, Conversations};

/// The names of all fields that are read, and of those that lead to them.
const NAMES: &[&str] = &[
    "discussion",
    "full_name",
    "id",
    "installation",
    "issue",
    "number",
    "organization",
    "owner",
    "pull_request",
    "ref",
    "ref_type",
    "repository",
    "sender",
];

/// The header of the delivery's id.
pub(super) const ID: &str = "X-GitHub-Delivery";

/// The delivery's id is the same for all hooks that it is sent to, and when it is sent again.
/// <https://docs.github.com/en/webhooks/webhook-events-and-payloads#delivery-headers>
pub(super) fn read(headers: &Headers<'_>, body: &[u8]) -> Result<Named, Unreadable> {
    let body = Body::of(body);
    let document = body.document(NAMES)?;
    let payload = document.root();
    Ok(Named {
        // <https://docs.github.com/en/webhooks/webhook-events-and-payloads#webhook-payload-object-common-properties>
        team: first_id([
            payload.get("installation").get("id"),
            payload.get("organization").get("id"),
            payload.get("repository").get("owner").get("id"),
        ])?,
        names: headers.id(ID)?.into_iter().collect(),
        conversations: conversations(payload)?,
    })
}

/// An issue, a pull request or a discussion, which share their numbers within a repository;
/// else the branch or tag.
/// <https://docs.github.com/en/webhooks/webhook-events-and-payloads#issues>
/// <https://docs.github.com/en/webhooks/webhook-events-and-payloads#push>
fn conversations(payload: Json<'_, '_>) -> Result<Conversations, Unreadable> {
    let repository = payload.get("repository").get("full_name").text()?.map(Cow::into_owned);
    let number = first_scalar([
        payload.get("issue").get("number"),
        payload.get("pull_request").get("number"),
        payload.get("discussion").get("number"),
        payload.get("number"),
    ])?;
    let thread =
        number.map_or_else(|| reference(payload), |number| Ok(Some(number.into_owned())))?;
    Ok(Conversations {
        thread: repository
            .clone()
            .zip(thread)
            .map(|(channel, thread)| Conversation::Thread { channel, thread }),
        channel: repository,
        user: payload.get("sender").get("id").scalar()?.map(Cow::into_owned),
    })
}

/// `push` has the whole name of a reference, `create` and `delete` have its last part.
/// <https://docs.github.com/en/webhooks/webhook-events-and-payloads#create>
fn reference(payload: Json<'_, '_>) -> Result<Option<String>, Unreadable> {
    let Some(reference) = payload.get("ref").text()? else { return Ok(None) };
    let prefix = match payload.get("ref_type").text()?.as_deref() {
        Some("branch") => "refs/heads/",
        Some("tag") => "refs/tags/",
        _ => "",
    };
    Ok(Some(format!("{prefix}{reference}")))
}
