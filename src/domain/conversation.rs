//! Where a delivery belongs.

use super::{
    SessionKey, Team,
    name::{
        Part::{Closed, Open},
        joined,
    },
};

/// How much one session covers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SessionScope {
    /// A thread; a conversation outside threads, such as a direct message, as a whole.
    #[default]
    Thread,
    /// A channel with all of its threads.
    Channel,
    /// Everything that one user does.
    User,
}

/// One conversation of a team.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conversation {
    /// A thread of a channel.
    Thread {
        /// The channel.
        channel: String,
        /// The timestamp or id of the thread's first message.
        thread: String,
    },
    /// A channel.
    Channel(String),
    /// A modal with all of its pages, or a home tab.
    View(String),
    /// A user.
    User(String),
}

/// The conversations that one delivery belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversations {
    /// The narrowest of them; none if the delivery is no part of a conversation.
    pub thread: Option<Conversation>,
    /// The channel it happened in.
    pub channel: Option<String>,
    /// The user who caused it.
    pub user: Option<String>,
}

impl Conversations {
    /// The conversation that a session of `scope` covers, if the delivery names it.
    #[must_use]
    pub fn of(&self, scope: SessionScope) -> Option<Conversation> {
        match scope {
            SessionScope::Thread => self.thread.clone(),
            SessionScope::Channel => self.channel.clone().map(Conversation::Channel),
            SessionScope::User => self.user.clone().map(Conversation::User),
        }
    }
}

impl SessionKey {
    /// The session of a conversation: `{team}:{channel}:{thread}`, `{team}:{channel}`,
    /// `{team}:view:{view}` or `{team}:user:{user}`. Long parts are replaced by a digest; so is
    /// a channel with a `:` in it unless a thread stands behind it.
    #[must_use]
    pub fn of(team: Team, conversation: &Conversation) -> Self {
        // The key holds the team as well, so that a `:` in it makes nothing ambiguous.
        let owner = Open(team.as_str());
        let session = match conversation {
            Conversation::Thread { channel, thread } => {
                joined(&[owner, Open(channel), Closed(thread)])
            }
            Conversation::Channel(channel) => joined(&[owner, Closed(channel)]),
            Conversation::View(view) => joined(&[owner, Closed("view"), Closed(view)]),
            Conversation::User(user) => joined(&[owner, Closed("user"), Closed(user)]),
        };
        Self { team, session: session.into_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::MAX_ID_BYTES;

    #[test]
    fn each_conversation_has_a_session_of_its_own() {
        let team = Team::stored("T1");
        let key = |conversation: &Conversation| SessionKey::of(team.clone(), conversation).session;
        let thread = |channel: &str, thread: &str| Conversation::Thread {
            channel: channel.to_owned(),
            thread: thread.to_owned(),
        };
        assert_eq!(key(&thread("C1", "17.5")), "T1:C1:17.5");
        assert_eq!(key(&thread("19:x@thread.v2", "17.5")), "T1:19:x@thread.v2:17.5");
        assert_eq!(key(&Conversation::Channel("D1".into())), "T1:D1");
        assert_eq!(key(&Conversation::View("V1".into())), "T1:view:V1");
        assert_eq!(key(&Conversation::User("U1".into())), "T1:user:U1");
        assert_ne!(key(&Conversation::Channel("C1:17.5".into())), "T1:C1:17.5");
    }

    #[test]
    fn a_session_id_does_not_outgrow_an_id() {
        let longest = |letter: &str| letter.repeat(MAX_ID_BYTES);
        let team = Team::stored(longest("t"));
        for (channel, thread) in [("c", "d"), ("c", "e"), ("d", "d")] {
            let conversation =
                Conversation::Thread { channel: longest(channel), thread: longest(thread) };
            let key = SessionKey::of(team.clone(), &conversation);
            assert!(key.session.len() <= MAX_ID_BYTES);
            assert_eq!(key.team, team);
        }
    }
}
