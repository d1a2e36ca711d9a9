//! Stripe's events.

use std::borrow::Cow;

use super::{
    Named, Unreadable,
    body::Body,
    json::{Json, first, first_id},
};
use crate::domain::{Conversation, Conversations};

/// The names of all fields that are read, and of those that lead to them.
const NAMES: &[&str] =
    &["account", "context", "customer", "data", "id", "object", "related_object"];

/// The account is named if it is a connected one.
/// <https://docs.stripe.com/api/events/object>
/// <https://docs.stripe.com/event-destinations>
pub(super) fn read(body: &[u8]) -> Result<Named, Unreadable> {
    let body = Body::of(body);
    let document = body.document(NAMES)?;
    let event = document.root();
    let is_event =
        matches!(event.get("object").text()?.as_deref(), Some("event" | "v2.core.event"));
    Ok(Named {
        team: first_id([event.get("account"), event.get("context")])?,
        // <https://docs.stripe.com/webhooks#handle-duplicate-events>
        names: event.get("id").id()?.filter(|_| is_event).into_iter().collect(),
        conversations: conversations(event)?,
    })
}

/// What the event is about; the user is the customer.
/// <https://docs.stripe.com/api/events/object#event_object-data-object>
fn conversations(event: Json<'_, '_>) -> Result<Conversations, Unreadable> {
    let about = event.get("data").get("object");
    let id = first([about.get("id"), event.get("related_object").get("id")])?;
    let id = id.map(Cow::into_owned);
    let is_customer = about.get("object").text()?.as_deref() == Some("customer");
    let customer = about.get("customer");
    let customer = first([customer, customer.get("id")])?.map(Cow::into_owned);
    Ok(Conversations {
        thread: id.clone().map(Conversation::Channel),
        user: customer.or_else(|| id.clone().filter(|_| is_customer)),
        channel: id,
    })
}
