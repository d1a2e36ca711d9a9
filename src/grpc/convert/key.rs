//! What names an event or a session in a request.

use super::{pb, required};
use crate::{
    domain::{
        Conversations, Delivered, EventKey, Field, Id, Invalid, PayloadDigest, SessionKey,
        SessionScope, SlackEvent, Team, TeamScope, limits,
    },
    platform::{self, Headers, Named, Platform, Unreadable},
};

/// The event of a delivery, with the digest that is given beside it.
pub(in crate::grpc) fn delivered(
    teams: &TeamScope,
    key: Option<pb::EventKey>,
    payload_digest: &[u8],
) -> Result<Delivered, Invalid> {
    Ok(delivery(teams, key, payload_digest)?.0)
}

/// The event of a delivery, and the conversations that its payload names, if it has one.
pub(super) fn delivery(
    teams: &TeamScope,
    key: Option<pb::EventKey>,
    payload_digest: &[u8],
) -> Result<(Delivered, Option<Conversations>), Invalid> {
    let digest = PayloadDigest::optional("payload_digest", payload_digest)?;
    let key = required("event", key)?;
    let read = || {
        let team = Id::optional("team_id", key.team_id)?;
        let split = |named: Named| (named.team, named.names, Some(named.conversations));
        let (of_payload, mut names, conversations) = match key.key.ok_or_else(no_arm_of_event)? {
            pb::event_key::Key::EventId(id) => (None, vec![Id::parse("event_id", id)?], None),
            pb::event_key::Key::Slack(slack) => {
                (None, slack_event(slack)?.names(key.each_use)?, None)
            }
            pb::event_key::Key::SlackPayload(body) => {
                let named = slack_payload(&body, key.each_use)?;
                split(with_event(named, || Invalid::no_key("slack_payload", NO_EVENT))?)
            }
            pb::event_key::Key::Delivery(given) => {
                let named = platform_delivery(&given, key.each_use)?;
                split(with_event(named, || no_event(&given))?)
            }
        };
        let event = EventKey::given(required_team(teams, team.or(of_payload))?, names.remove(0));
        let aliases = aliases(names, key.aliases)?;
        let consumer = Id::optional("consumer", key.consumer)?;
        Ok((Delivered::new(event, aliases, consumer.as_ref(), digest), conversations))
    };
    read().map_err(|invalid: Invalid| invalid.within("event"))
}

fn no_arm_of_event() -> Invalid {
    Invalid::new("event_id", "is required, or slack, slack_payload or delivery")
}

fn no_arm_of_session() -> Invalid {
    Invalid::new("session_id", "is required, or thread, slack, slack_payload or delivery")
}

const NO_EVENT: &str = "names no event";

/// What a payload names, or `otherwise` if it names no event.
fn with_event(named: Named, otherwise: impl FnOnce() -> Invalid) -> Result<Named, Invalid> {
    if named.names.is_empty() { Err(otherwise()) } else { Ok(named) }
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

fn required_team(teams: &TeamScope, team: Option<Id>) -> Result<Team, Invalid> {
    let team = team.ok_or_else(|| Invalid::new("team_id", "must not be empty"))?;
    teams.team_of("team_id", team)
}

/// An event on record, which its aliases belong to.
pub(super) fn event_key(teams: &TeamScope, key: Option<pb::EventKey>) -> Result<EventKey, Invalid> {
    if key.as_ref().is_some_and(|key| !key.aliases.is_empty()) {
        return Err(Invalid::new("event.aliases", "must be empty: one name stands for all"));
    }
    Ok(delivered(teams, key, &[])?.key)
}

/// The session of a request.
pub(in crate::grpc) fn session_key(
    teams: &TeamScope,
    key: Option<pb::SessionKey>,
) -> Result<SessionKey, Invalid> {
    let read = |key: pb::SessionKey| {
        let field = match key.key {
            Some(pb::session_key::Key::Delivery(_)) => "delivery",
            _ => "slack_payload",
        };
        let session = session(teams, key, None)?;
        session.ok_or_else(|| Invalid::no_key(field, "names no conversation"))
    };
    read(required("session", key)?).map_err(|invalid: Invalid| invalid.within("session"))
}

/// The session of a turn, if its payload names one. `event` is the turn's own, with what its
/// payload names.
pub(super) fn turn_session(
    teams: &TeamScope,
    mut key: pb::SessionKey,
    event: &EventKey,
    conversations: Option<&Conversations>,
) -> Result<Option<SessionKey>, Invalid> {
    if key.team_id.is_empty() {
        key.team_id = event.team.to_string();
    }
    let session =
        session(teams, key, conversations).map_err(|invalid| invalid.within("session"))?;
    if session.as_ref().is_some_and(|session| session.team != event.team) {
        return Err(Invalid::new("session.team_id", "must be the event's team_id"));
    }
    Ok(session)
}

/// The session that `key` names; none if that is a payload without a conversation. An empty
/// payload stands for the event's, which names `conversations`.
fn session(
    teams: &TeamScope,
    key: pb::SessionKey,
    conversations: Option<&Conversations>,
) -> Result<Option<SessionKey>, Invalid> {
    let team = Id::optional("team_id", key.team_id)?;
    let consumer = Id::optional("consumer", key.consumer)?;
    let scope = scope(key.scope)?;
    let of_event = || conversations.cloned().map(|named| (None, named));
    let (of_payload, named) = match key.key.ok_or_else(no_arm_of_session)? {
        pb::session_key::Key::SessionId(id) => {
            no_scope(scope)?;
            let session =
                SessionKey::given(required_team(teams, team)?, Id::parse("session_id", id)?);
            return Ok(Some(session.of_consumer(consumer.as_ref())));
        }
        pb::session_key::Key::Thread(pb::ThreadKey { channel_id, thread_ts }) => {
            no_scope(scope)?;
            let team = required_team(teams, team)?;
            let thread = || {
                let channel = Id::parse("channel_id", channel_id)?;
                SessionKey::thread(team, channel, Id::parse("thread_ts", thread_ts)?)
            };
            let session = thread().map_err(|invalid: Invalid| invalid.within("thread"))?;
            return Ok(Some(session.of_consumer(consumer.as_ref())));
        }
        pb::session_key::Key::Slack(slack) => {
            let conversation = slack_event(slack)?.conversation(scope.unwrap_or_default())?;
            let session = SessionKey::of(required_team(teams, team)?, &conversation);
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
    let team = required_team(teams, team.or(of_payload))?;
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

fn platform_delivery(given: &pb::Delivery, each_use: bool) -> Result<Named, Invalid> {
    let platform =
        platform(given).ok_or_else(|| Invalid::new("delivery.platform", "must be a Platform"))?;
    let headers = given.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Headers::new(headers)
        .and_then(|headers| platform::read(platform, &headers, &given.body, each_use))
        .map_err(Unreadable::in_delivery)
}

fn platform(given: &pb::Delivery) -> Option<Platform> {
    match given.platform() {
        pb::Platform::Slack => Some(Platform::Slack),
        pb::Platform::Github => Some(Platform::Github),
        pb::Platform::Discord => Some(Platform::Discord),
        pb::Platform::Telegram => Some(Platform::Telegram),
        pb::Platform::Teams => Some(Platform::Teams),
        pb::Platform::Stripe => Some(Platform::Stripe),
        pb::Platform::StandardWebhooks => Some(Platform::StandardWebhooks),
        pb::Platform::Unspecified => None,
    }
}

/// A delivery names no event.
fn no_event(given: &pb::Delivery) -> Invalid {
    match platform(given).and_then(Platform::id_header) {
        Some(header) => Invalid::no_key("delivery.headers", format!("must have {header}")),
        None => Invalid::no_key("delivery", NO_EVENT),
    }
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
