//! Deliveries and sessions.

use std::time::Duration;

use bytes::Bytes;

use crate::{pb, platforms::Payload};

/// One delivery of an event: what names the event and its conversation, and whether its sender
/// redelivers. [`slack`](fn@crate::slack), [`github`](crate::github) and so on make one of a
/// platform's payload; [`Delivery::new`] one by hand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delivery {
    pub(crate) team: String,
    event: String,
    session: Option<Session>,
    scope: Scope,
    aliases: Vec<String>,
    pub(crate) digest: Bytes,
    pub(crate) ttl: Option<Duration>,
    pub(crate) sent_once: bool,
    each_use: bool,
    consumer: String,
    pub(crate) payload: Option<Payload>,
}

/// A conversation of a tenant: by an id of the caller's, or by a channel and a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub(crate) team: String,
    pub(crate) name: SessionName,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SessionName {
    Id(String),
    Thread { channel: String, ts: String },
}

/// How much of a payload's conversation is one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Scope {
    /// The thread.
    #[default]
    Thread,
    /// The whole channel.
    Channel,
    /// Everything that one user does.
    User,
    /// No session; the event alone is claimed.
    Event,
}

impl Session {
    /// A session by an id of the caller's.
    #[must_use]
    pub fn new(team: impl Into<String>, id: impl Into<String>) -> Self {
        Self { team: team.into(), name: SessionName::Id(id.into()) }
    }

    /// A channel's thread, by the timestamp or id of its first message.
    #[must_use]
    pub fn thread(
        team: impl Into<String>,
        channel: impl Into<String>,
        ts: impl Into<String>,
    ) -> Self {
        Self {
            team: team.into(),
            name: SessionName::Thread { channel: channel.into(), ts: ts.into() },
        }
    }

    pub(crate) fn key(&self, consumer: &str) -> pb::SessionKey {
        let key = match &self.name {
            SessionName::Id(id) => pb::session_key::Key::SessionId(id.clone()),
            SessionName::Thread { channel, ts } => pb::session_key::Key::Thread(pb::ThreadKey {
                channel_id: channel.clone(),
                thread_ts: ts.clone(),
            }),
        };
        pb::SessionKey {
            team_id: self.team.clone(),
            consumer: consumer.to_owned(),
            key: Some(key),
            ..Default::default()
        }
    }
}

/// An id of the caller's, of the tenant of the event.
impl From<&str> for Session {
    fn from(id: &str) -> Self {
        Self::new("", id)
    }
}

/// An id of the caller's, of the tenant of the event.
impl From<String> for Session {
    fn from(id: String) -> Self {
        Self::new("", id)
    }
}

impl Delivery {
    /// An event by its tenant and its id.
    #[must_use]
    pub fn new(team: impl Into<String>, event: impl Into<String>) -> Self {
        Self { team: team.into(), event: event.into(), ..Self::default() }
    }

    /// The tenant. A payload usually names it.
    #[must_use]
    pub fn team(mut self, team: impl Into<String>) -> Self {
        self.team = team.into();
        self
    }

    /// The conversation: a [`Session`], or its id. Without one, only the event is claimed; a
    /// payload names its own.
    #[must_use]
    pub fn session(mut self, session: impl Into<Session>) -> Self {
        self.session = Some(session.into());
        self
    }

    /// How much of a payload's conversation is one session.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Another name of the same event. At most 8.
    #[must_use]
    pub fn alias(mut self, alias: impl Into<String>) -> Self {
        self.aliases.push(alias.into());
        self
    }

    /// A digest of the payload, at most 32 bytes: another payload under the same name is
    /// [`Error::PayloadMismatch`](crate::Error::PayloadMismatch).
    #[must_use]
    pub fn digest(mut self, digest: impl Into<Vec<u8>>) -> Self {
        self.digest = digest.into().into();
        self
    }

    /// How long the event stays processed: 1 s to 30 days; unset: 24 h.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Whether the sender does not deliver again what was refused.
    #[must_use]
    pub fn sent_once(mut self, sent_once: bool) -> Self {
        self.sent_once = sent_once;
        self
    }

    /// Whether the sender does not deliver again what was refused.
    #[must_use]
    pub fn is_sent_once(&self) -> bool {
        self.sent_once
    }

    /// For Slack interactions: every click is an event of its own. Otherwise a second click of the
    /// same user on the same button is the same event.
    #[must_use]
    pub fn each_use(mut self, each_use: bool) -> Self {
        self.each_use = each_use;
        self
    }

    /// The application that handles the event. Unset: the gate's.
    #[must_use]
    pub fn consumer(mut self, consumer: impl Into<String>) -> Self {
        self.consumer = consumer.into();
        self
    }

    /// The event alone.
    pub(crate) fn without_session(mut self) -> Self {
        self.session = None;
        self.scope = Scope::Event;
        self
    }

    /// The platform, for logs.
    pub(crate) fn kind(&self) -> &'static str {
        self.payload.as_ref().map_or("delivery", |payload| {
            payload.platform.as_str_name().trim_start_matches("PLATFORM_")
        })
    }

    pub(crate) fn event_key(&self, consumer: &str) -> pb::EventKey {
        use pb::event_key::Key;
        let key = match &self.payload {
            None => Key::EventId(self.event.clone()),
            Some(payload) if payload.platform == pb::Platform::Slack => {
                Key::SlackPayload(payload.body.clone())
            }
            Some(payload) => Key::Delivery(pb::Delivery {
                platform: payload.platform.into(),
                headers: payload.headers.clone(),
                body: payload.body.clone(),
            }),
        };
        pb::EventKey {
            team_id: self.team.clone(),
            key: Some(key),
            aliases: self.aliases.clone(),
            consumer: self.consumer_or(consumer).to_owned(),
            each_use: self.each_use,
        }
    }

    pub(crate) fn consumer_or<'a>(&'a self, consumer: &'a str) -> &'a str {
        crate::errors::or_else(&self.consumer, consumer)
    }

    /// The conversation in a request that also has the event.
    pub(crate) fn session_key(&self, consumer: &str) -> Option<pb::SessionKey> {
        use pb::session_key::Key;
        if let Some(session) = &self.session {
            let mut key = session.key(consumer);
            if key.team_id.is_empty() {
                key.team_id.clone_from(&self.team);
            }
            return Some(key);
        }
        let payload = self.payload.as_ref()?;
        let scope = match self.scope {
            Scope::Thread => pb::SessionScope::Thread,
            Scope::Channel => pb::SessionScope::Channel,
            Scope::User => pb::SessionScope::User,
            Scope::Event => return None,
        };
        // The event in the same request has the payload: it is sent once.
        let key = if payload.platform == pb::Platform::Slack {
            Key::SlackPayload(Vec::new())
        } else {
            Key::Delivery(pb::Delivery::default())
        };
        Some(pb::SessionKey {
            key: Some(key),
            consumer: consumer.to_owned(),
            scope: scope.into(),
            ..Default::default()
        })
    }
}
