//! What names an event or a session in a request.

use super::{pb, required};
use crate::domain::{
    Delivered, EventKey, Id, Invalid, PayloadDigest, SessionKey, SlackEvent, limits,
};

fn slack_event(slack: pb::SlackEvent) -> Result<SlackEvent, Invalid> {
    Ok(SlackEvent {
        event_id: Id::optional("slack.event_id", slack.event_id)?,
        client_msg_id: Id::optional("slack.client_msg_id", slack.client_msg_id)?,
        channel: Id::optional("slack.channel", slack.channel)?,
        ts: Id::optional("slack.ts", slack.ts)?,
        thread_ts: Id::optional("slack.thread_ts", slack.thread_ts)?,
        action_id: Id::optional("slack.action_id", slack.action_id)?,
        message_ts: Id::optional("slack.message_ts", slack.message_ts)?,
        user_id: Id::optional("slack.user_id", slack.user_id)?,
    })
}

/// The event of a delivery, with the digest that is given beside it.
pub(in crate::grpc) fn delivered(
    key: Option<pb::EventKey>,
    payload_digest: &[u8],
) -> Result<Delivered, Invalid> {
    let digest = PayloadDigest::optional("payload_digest", payload_digest)?;
    let read = |key: pb::EventKey| {
        let team = Id::parse("team_id", key.team_id)?;
        let event = match required("event_id", key.key)? {
            pb::event_key::Key::EventId(id) => EventKey::given(team, Id::parse("event_id", id)?),
            pb::event_key::Key::Slack(slack) => EventKey::slack(team, slack_event(slack)?)?,
            pb::event_key::Key::SlackPayload(_) | pb::event_key::Key::Delivery(_) => {
                return Err(Invalid::new("slack_payload", "is not supported"));
            }
        };
        if key.aliases.len() > limits::MAX_ALIASES {
            let (most, are) = (limits::MAX_ALIASES, key.aliases.len());
            return Err(Invalid::new("aliases", format!("must be at most {most}, are {are}")));
        }
        let alias = |(index, alias): (usize, String)| {
            let parsed = Id::parse("aliases", alias).map(Id::into_string);
            parsed.map_err(|invalid| Invalid::new(format!("aliases[{index}]"), invalid.problem))
        };
        let aliases = key.aliases.into_iter().enumerate().map(alias).collect::<Result<_, _>>()?;
        let consumer = Id::optional("consumer", key.consumer)?;
        Ok(Delivered::new(event, aliases, consumer.as_ref(), digest))
    };
    read(required("event", key)?).map_err(|invalid: Invalid| invalid.within("event"))
}

/// An event on record, which its aliases belong to.
pub(super) fn event_key(key: Option<pb::EventKey>) -> Result<EventKey, Invalid> {
    let Delivered { key, aliases, .. } = delivered(key, &[])?;
    if !aliases.is_empty() {
        return Err(Invalid::new("event.aliases", "must be empty: one name stands for all"));
    }
    Ok(key)
}

pub(in crate::grpc) fn session_key(key: Option<pb::SessionKey>) -> Result<SessionKey, Invalid> {
    let read = |key: pb::SessionKey| {
        let team = Id::parse("team_id", key.team_id)?;
        let consumer = Id::optional("consumer", key.consumer)?;
        let session = match required("session_id", key.key)? {
            pb::session_key::Key::SessionId(id) => {
                SessionKey::given(team, Id::parse("session_id", id)?)
            }
            pb::session_key::Key::Thread(pb::ThreadKey { channel_id, thread_ts }) => {
                let thread = || {
                    let channel = Id::parse("channel_id", channel_id)?;
                    SessionKey::thread(team, &channel, Id::parse("thread_ts", thread_ts)?)
                };
                thread().map_err(|invalid: Invalid| invalid.within("thread"))?
            }
            pb::session_key::Key::Slack(slack) => SessionKey::slack(team, slack_event(slack)?)?,
            pb::session_key::Key::SlackPayload(_) | pb::session_key::Key::Delivery(_) => {
                return Err(Invalid::new("slack_payload", "is not supported"));
            }
        };
        Ok(session.of_consumer(consumer.as_ref()))
    };
    read(required("session", key)?).map_err(|invalid: Invalid| invalid.within("session"))
}
