//! What names an event or a session in a request.

use super::{pb, required};
use crate::{
    domain::{
        Conversations, Delivered, EventKey, Field, Id, Invalid, PayloadDigest, SessionKey,
        SessionScope, SlackEvent, limits,
    },
    platform::{self, Headers, Named, Platform},
};

/// The event of a delivery, with the digest that is given beside it.
pub(in crate::grpc) fn delivered(
    key: Option<pb::EventKey>,
    payload_digest: &[u8],
) -> Result<Delivered, Invalid> {
    Ok(delivery(key, payload_digest)?.0)
}

/// The event of a delivery, and the conversations that its payload names, if it has one.
pub(super) fn delivery(
    key: Option<pb::EventKey>,
    payload_digest: &[u8],
) -> Result<(Delivered, Option<Conversations>), Invalid> {
    let digest = PayloadDigest::optional("payload_digest", payload_digest)?;
    let key = required("event", key)?;
    let read = || {
        let team = Id::optional("team_id", key.team_id)?;
        let split = |named: Named| (named.team, named.names, Some(named.conversations));
        let (of_payload, mut names, conversations) = match required("event_id", key.key)? {
            pb::event_key::Key::EventId(id) => (None, vec![Id::parse("event_id", id)?], None),
            pb::event_key::Key::Slack(slack) => {
                (None, slack_event(slack)?.names(key.each_use)?, None)
            }
            pb::event_key::Key::SlackPayload(body) => {
                split(with_event(slack_payload(&body, key.each_use)?, "slack_payload")?)
            }
            pb::event_key::Key::Delivery(given) => {
                split(with_event(platform_delivery(&given, key.each_use)?, "delivery")?)
            }
        };
        let event = EventKey::given(required_team(team.or(of_payload))?, names.remove(0));
        let aliases = aliases(names, key.aliases)?;
        let consumer = Id::optional("consumer", key.consumer)?;
        Ok((Delivered::new(event, aliases, consumer.as_ref(), digest), conversations))
    };
    read().map_err(|invalid: Invalid| invalid.within("event"))
}

/// What a payload names, unless it names no event.
fn with_event(named: Named, field: &'static str) -> Result<Named, Invalid> {
    if named.names.is_empty() {
        return Err(Invalid::no_key(field, "names no event"));
    }
    Ok(named)
}

/// The further names of an event: those that its payload yields, and those that are given.
fn aliases(derived: Vec<Id>, given: Vec<String>) -> Result<Vec<String>, Invalid> {
    let (most, are) = (limits::MAX_ALIASES, derived.len() + given.len());
    if are > most {
        return Err(Invalid::new("aliases", format!("must be at most {most}, are {are}")));
    }
    let given = given.into_iter().enumerate().map(|(index, alias)| {
        Id::parse("aliases", alias)
            .map_err(|invalid| Invalid { field: format!("aliases[{index}]").into(), ..invalid })
    });
    let all = derived.into_iter().map(Ok).chain(given);
    all.map(|alias| Ok(alias?.into_string())).collect()
}

fn required_team(team: Option<Id>) -> Result<Id, Invalid> {
    team.ok_or_else(|| Invalid::new("team_id", "must not be empty"))
}

/// An event on record, which its aliases belong to.
pub(super) fn event_key(key: Option<pb::EventKey>) -> Result<EventKey, Invalid> {
    if key.as_ref().is_some_and(|key| !key.aliases.is_empty()) {
        return Err(Invalid::new("event.aliases", "must be empty: one name stands for all"));
    }
    Ok(delivered(key, &[])?.key)
}

/// The session of a request.
pub(in crate::grpc) fn session_key(key: Option<pb::SessionKey>) -> Result<SessionKey, Invalid> {
    let read = |key: pb::SessionKey| {
        let field = match key.key {
            Some(pb::session_key::Key::Delivery(_)) => "delivery",
            _ => "slack_payload",
        };
        let session = session(key, None)?;
        session.ok_or_else(|| Invalid::no_key(field, "names no conversation"))
    };
    read(required("session", key)?).map_err(|invalid: Invalid| invalid.within("session"))
}

/// The session of a turn, if its payload names one. `event` is the turn's own, with what its
/// payload names.
pub(super) fn turn_session(
    mut key: pb::SessionKey,
    event: &EventKey,
    conversations: Option<&Conversations>,
) -> Result<Option<SessionKey>, Invalid> {
    if key.team_id.is_empty() {
        key.team_id.clone_from(&event.team);
    }
    let session = session(key, conversations).map_err(|invalid| invalid.within("session"))?;
    if session.as_ref().is_some_and(|session| session.team != event.team) {
        return Err(Invalid::new("session.team_id", "must be the event's team_id"));
    }
    Ok(session)
}

/// The session that `key` names; none if that is a payload without a conversation. An empty
/// payload stands for the event's, which names `conversations`.
fn session(
    key: pb::SessionKey,
    conversations: Option<&Conversations>,
) -> Result<Option<SessionKey>, Invalid> {
    let team = Id::optional("team_id", key.team_id)?;
    let consumer = Id::optional("consumer", key.consumer)?;
    let scope = scope(key.scope)?;
    let of_event = || conversations.cloned().map(|named| (None, named));
    let (of_payload, named) = match required("session_id", key.key)? {
        pb::session_key::Key::SessionId(id) => {
            no_scope(scope)?;
            let session = SessionKey::given(required_team(team)?, Id::parse("session_id", id)?);
            return Ok(Some(session.of_consumer(consumer.as_ref())));
        }
        pb::session_key::Key::Thread(pb::ThreadKey { channel_id, thread_ts }) => {
            no_scope(scope)?;
            let team = required_team(team)?;
            let thread = || {
                let channel = Id::parse("channel_id", channel_id)?;
                SessionKey::thread(team, channel, Id::parse("thread_ts", thread_ts)?)
            };
            let session = thread().map_err(|invalid: Invalid| invalid.within("thread"))?;
            return Ok(Some(session.of_consumer(consumer.as_ref())));
        }
        pb::session_key::Key::Slack(slack) => {
            let conversation = slack_event(slack)?.conversation(scope.unwrap_or_default())?;
            let session = SessionKey::of(required_team(team)?, &conversation);
            return Ok(Some(session.of_consumer(consumer.as_ref())));
        }
        pb::session_key::Key::SlackPayload(body) => match of_event() {
            Some(of_event) if body.is_empty() => of_event,
            _ => {
                let named = slack_payload(&body, false)?;
                (named.team, named.conversations)
            }
        },
        pb::session_key::Key::Delivery(given) => match of_event() {
            Some(of_event) if given == pb::Delivery::default() => of_event,
            _ => {
                let named = platform_delivery(&given, false)?;
                (named.team, named.conversations)
            }
        },
    };
    let team = required_team(team.or(of_payload))?;
    let conversation = named.of(scope.unwrap_or_default());
    let session = conversation.map(|conversation| SessionKey::of(team, &conversation));
    Ok(session.map(|session| session.of_consumer(consumer.as_ref())))
}

/// How much one session covers; none if that is not given.
fn scope(scope: i32) -> Result<Option<SessionScope>, Invalid> {
    match pb::SessionScope::try_from(scope) {
        Ok(pb::SessionScope::Unspecified) => Ok(None),
        Ok(pb::SessionScope::Thread) => Ok(Some(SessionScope::Thread)),
        Ok(pb::SessionScope::Channel) => Ok(Some(SessionScope::Channel)),
        Ok(pb::SessionScope::User) => Ok(Some(SessionScope::User)),
        Err(_) => Err(Invalid::new("scope", "must be a SessionScope")),
    }
}

fn no_scope(scope: Option<SessionScope>) -> Result<(), Invalid> {
    match scope {
        None => Ok(()),
        Some(_) => Err(Invalid::new("scope", "must be unset with session_id or thread")),
    }
}

fn slack_payload(body: &[u8], each_use: bool) -> Result<Named, Invalid> {
    platform::read(Platform::Slack, &Headers::default(), body, each_use)
        .map_err(|unreadable| unreadable.in_field("slack_payload"))
}

/// The most headers of a delivery.
const MAX_HEADERS: usize = 64;

fn platform_delivery(given: &pb::Delivery, each_use: bool) -> Result<Named, Invalid> {
    let platform = match given.platform() {
        pb::Platform::Slack => Platform::Slack,
        pb::Platform::Github => Platform::Github,
        pb::Platform::Discord => Platform::Discord,
        pb::Platform::Telegram => Platform::Telegram,
        pb::Platform::Teams => Platform::Teams,
        pb::Platform::Stripe => Platform::Stripe,
        pb::Platform::StandardWebhooks => Platform::StandardWebhooks,
        pb::Platform::Unspecified => {
            return Err(Invalid::new("delivery.platform", "must be a Platform"));
        }
    };
    if given.headers.len() > MAX_HEADERS {
        let problem = format!("must be at most {MAX_HEADERS}, are {}", given.headers.len());
        return Err(Invalid::new("delivery.headers", problem));
    }
    let headers: Headers<'_> =
        given.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    platform::read(platform, &headers, &given.body, each_use)
        .map_err(|unreadable| unreadable.in_field("delivery.body"))
}

fn slack_event(slack: pb::SlackEvent) -> Result<SlackEvent, Invalid> {
    Ok(SlackEvent {
        event_id: Id::optional("slack.event_id", slack.event_id)?,
        client_msg_id: Field::optional("slack.client_msg_id", slack.client_msg_id)?,
        channel: Field::optional("slack.channel", slack.channel)?,
        ts: Field::optional("slack.ts", slack.ts)?,
        thread_ts: Field::optional("slack.thread_ts", slack.thread_ts)?,
        action_id: Field::optional("slack.action_id", slack.action_id)?,
        message_ts: Field::optional("slack.message_ts", slack.message_ts)?,
        user_id: Field::optional("slack.user_id", slack.user_id)?,
        kind: Field::optional("slack.type", slack.r#type)?,
        subtype: Field::optional("slack.subtype", slack.subtype)?,
        trigger_id: Field::optional("slack.trigger_id", slack.trigger_id)?,
        view_id: Field::optional("slack.view_id", slack.view_id)?,
        block_id: Field::optional("slack.block_id", slack.block_id)?,
        value: Field::any("slack.value", slack.value)?,
        action_ts: Field::optional("slack.action_ts", slack.action_ts)?,
    })
}
