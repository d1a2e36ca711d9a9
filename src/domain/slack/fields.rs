//! The one place that makes names of what Slack sends.

use std::borrow::Cow;

use crate::domain::{
    Conversation, Conversations, Id,
    name::{
        Part::{self, Closed, Open},
        joined,
    },
};

/// A text of a payload.
pub type Text<'a> = Cow<'a, str>;

/// What names one Slack payload and the conversation it belongs to, as Slack spells it.
/// What is empty is absent.
#[derive(Debug, Clone, Default)]
pub struct SlackFields<'a> {
    /// The type of the event or of the interaction; none if it is not known.
    pub kind: Option<Text<'a>>,
    /// The subtype of a message.
    pub subtype: Option<Text<'a>>,
    /// The Events API envelope's id.
    pub event_id: Option<Id>,
    /// The message's id as its sender's client chose it.
    pub client_msg_id: Option<Text<'a>>,
    /// The channel.
    pub channel: Option<Text<'a>>,
    /// Whether a bot sent the message.
    pub is_from_bot: bool,
    /// Whether the channel is known to be a direct message.
    pub is_direct: bool,
    /// Whether a payload without a thread belongs to its channel.
    pub belongs_to_channel: bool,
    /// The timestamp of the message that the event is.
    pub ts: Option<Text<'a>>,
    /// The timestamp of the message that the event or interaction is about.
    pub message_ts: Option<Text<'a>>,
    /// The timestamp of the thread's first message.
    pub thread_ts: Option<Text<'a>>,
    /// The timestamp of the edit that the event reports.
    pub edited_ts: Option<Text<'a>>,
    /// The user who caused it.
    pub user: Option<Text<'a>>,
    /// The short-lived id of an interaction.
    pub trigger_id: Option<Text<'a>>,
    /// The modal or home tab.
    pub view_id: Option<Text<'a>>,
    /// The first page of the modal.
    pub root_view_id: Option<Text<'a>>,
    /// The state of the modal or home tab: another each time that the app updates it.
    pub view_hash: Option<Text<'a>>,
    /// The id of the attachment or dialog that the elements belong to.
    pub callback_id: Option<Text<'a>>,
    /// What was done to elements.
    pub actions: Vec<SlackAction<'a>>,
}

/// What was done to one element.
#[derive(Debug, Clone, Default)]
pub struct SlackAction<'a> {
    /// The block, or the attachment.
    pub block_id: Option<Text<'a>>,
    /// The element.
    pub action_id: Option<Text<'a>>,
    /// The value of a button.
    pub value: Option<Text<'a>>,
    /// When it was done.
    pub action_ts: Option<Text<'a>>,
    /// Whether doing it twice means the same as doing it once.
    pub is_button: bool,
}

/// Asks for what a menu is to offer or whether the app is there, and nothing to be done once.
/// <https://docs.slack.dev/reference/interaction-payloads/block_suggestion-payload>
const QUESTIONS: [&str; 2] = ["block_suggestion", "dialog_suggestion"];

impl SlackFields<'_> {
    /// The names of the event, the first of them its own. None if it names no event.
    ///
    /// With `each_use`, each click of a button is an event.
    #[must_use]
    pub fn names(&self, each_use: bool) -> Vec<Id> {
        let kind = self.kind.as_deref();
        let mut names: Vec<Id> = self.event_id.iter().cloned().collect();
        match kind {
            Some("message" | "app_mention") => names.extend(self.message()),
            Some("view_closed") => names.extend(closed(self.view_id.as_deref())),
            Some(kind) if QUESTIONS.contains(&kind) => {}
            _ if !self.actions.is_empty() => names.extend(self.used(each_use)),
            _ if self.trigger_id.is_some() => names.extend(triggered(self.trigger_id.as_deref())),
            Some(_) => {}
            None => names.extend(self.message()),
        }
        names
    }

    /// What all deliveries of one message have in common: Slack sends it under several event
    /// ids, and both as `message` and as `app_mention`. What people write carries a
    /// `client_msg_id`, what bots write their `bot_id`, the rest a subtype. An event with none of
    /// these goes by its event id alone.
    /// <https://docs.slack.dev/reference/events/message>
    /// <https://docs.slack.dev/reference/events/app_mention>
    fn message(&self) -> Vec<Id> {
        let channel = self.channel.as_deref();
        let name = |kind, parts: &[Option<&str>]| whole(kind, channel, parts);
        let (message, edited) = (self.message_ts.as_deref(), self.edited_ts.as_deref());
        let made = match self.subtype.as_deref() {
            // <https://docs.slack.dev/reference/events/message/message_changed>
            Some("message_changed") => [name("edit", &[message, edited]), None],
            // <https://docs.slack.dev/reference/events/message/message_deleted>
            Some("message_deleted") => [name("del", &[message]), None],
            // A thread's first message has another reply: no message of its own.
            // <https://docs.slack.dev/reference/events/message/message_replied>
            Some("message_replied") => [None, None],
            _ => {
                let sent = self.client_msg_id.as_deref();
                let is_message = self.event_id.is_none()
                    || sent.is_some()
                    || self.is_from_bot
                    || self.subtype.is_some();
                [
                    sent.map(|id| joined(&[Closed("msg"), Open(id)])),
                    name("ts", &[self.ts.as_deref()]).filter(|_| is_message),
                ]
            }
        };
        made.into_iter().flatten().collect()
    }

    /// What was done to elements, by whom and where. Slack asks action ids to be unique within
    /// one block only, and block ids within one message. A view keeps its id when the app updates
    /// it, and its buttons may then be clicked again.
    /// <https://docs.slack.dev/reference/interaction-payloads/block_actions-payload>
    /// <https://docs.slack.dev/reference/block-kit/block-elements/button-element>
    fn used(&self, each_use: bool) -> Option<Id> {
        let user = self.user.as_deref()?;
        let within = self.view_id.as_deref().or(self.callback_id.as_deref());
        if self.message_ts.is_none() && within.is_none() {
            return None;
        }
        let mut parts = vec![
            Closed("action"),
            part(self.channel.as_deref()),
            part(self.message_ts.as_deref()),
            part(within),
            Closed(user),
        ];
        for action in &self.actions {
            let element = Closed(action.action_id.as_deref()?);
            parts.extend([part(action.block_id.as_deref()), element]);
            if action.is_button && !each_use {
                parts.extend([part(action.value.as_deref()), part(self.view_hash.as_deref())]);
            } else {
                let when = action.action_ts.as_deref().or(self.trigger_id.as_deref())?;
                parts.extend([Closed(""), Closed(when)]);
            }
        }
        Some(joined(&parts))
    }

    /// The conversations that the payload belongs to.
    #[must_use]
    pub fn conversations(&self) -> Conversations {
        let owned = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
        Conversations {
            thread: self.thread(),
            channel: owned(&self.channel),
            user: owned(&self.user),
        }
    }

    /// The thread; a direct message outside a thread is one conversation as a whole.
    /// <https://docs.slack.dev/messaging/#threading>
    fn thread(&self) -> Option<Conversation> {
        let (ts, message) = (self.ts.as_deref(), self.message_ts.as_deref());
        let own = if self.kind.is_some() { message.or(ts) } else { ts.or(message) };
        let parent = self.thread_ts.as_deref();
        if let (Some(channel), Some(thread)) = (self.channel.as_deref(), parent.or(own)) {
            let is_reply = parent.is_some() && parent != own;
            return Some(if self.is_direct(channel) && !is_reply {
                Conversation::Channel(channel.to_owned())
            } else {
                Conversation::Thread { channel: channel.to_owned(), thread: thread.to_owned() }
            });
        }
        if let Some(view) = self.root_view_id.as_deref().or(self.view_id.as_deref()) {
            return Some(Conversation::View(view.to_owned()));
        }
        let channel = self.channel.as_deref().filter(|_| self.belongs_to_channel)?;
        Some(Conversation::Channel(channel.to_owned()))
    }

    /// The id of a direct message begins with `D`, that of a group of people does not.
    /// <https://docs.slack.dev/apis/web-api/using-the-conversations-api>
    fn is_direct(&self, channel: &str) -> bool {
        self.is_direct || self.kind.is_some() && channel.starts_with('D')
    }
}

/// A modal is closed once, and no trigger goes with that.
/// <https://docs.slack.dev/reference/interaction-payloads/view-interactions-payload#view_closed>
fn closed(view_id: Option<&str>) -> Option<Id> {
    view_id.map(|id| joined(&[Closed("closed"), Open(id)]))
}

/// A trigger is made for one interaction: a submission, a shortcut, a command.
/// <https://docs.slack.dev/interactivity/handling-user-interaction#modal_responses>
fn triggered(trigger_id: Option<&str>) -> Option<Id> {
    trigger_id.map(|id| joined(&[Closed("act"), Open(id)]))
}

/// A name within a channel, if none of its parts is absent.
fn whole(kind: &str, channel: Option<&str>, parts: &[Option<&str>]) -> Option<Id> {
    let mut name = vec![Closed(kind), Open(channel?)];
    for part in parts {
        name.push(Closed((*part)?));
    }
    Some(joined(&name))
}

fn part(text: Option<&str>) -> Part<'_> {
    Closed(text.unwrap_or_default())
}
