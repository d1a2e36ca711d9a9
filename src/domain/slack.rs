//! What Slack sends, as far as it names an event and a conversation.

mod fields;

pub use fields::{SlackAction, SlackFields, Text};

use super::{
    Conversation, Field, Id, Invalid, SessionScope,
    name::{
        Part::{Closed, Open},
        joined,
    },
};

/// The identifying fields of one Slack delivery; see `SlackEvent` in the
/// contract. Checked one by one: what is present obeys the rules of an id.
#[derive(Debug, Clone, Default)]
pub struct SlackEvent {
    /// The Events API envelope's id.
    pub event_id: Option<Id>,
    /// The message's id as its sender's client chose it.
    pub client_msg_id: Option<Field>,
    /// The channel.
    pub channel: Option<Field>,
    /// The message's timestamp.
    pub ts: Option<Field>,
    /// The timestamp of the thread's first message.
    pub thread_ts: Option<Field>,
    /// The interaction's action.
    pub action_id: Option<Field>,
    /// The timestamp of the message interacted with.
    pub message_ts: Option<Field>,
    /// The user who interacted.
    pub user_id: Option<Field>,
    /// The type of the event or of the interaction, such as `message` or `view_submission`.
    pub kind: Option<Field>,
    /// The subtype of a message.
    pub subtype: Option<Field>,
    /// The short-lived id of an interaction.
    pub trigger_id: Option<Field>,
    /// The modal or home tab interacted with.
    pub view_id: Option<Field>,
    /// The block that holds the action's element.
    pub block_id: Option<Field>,
    /// The value of a button.
    pub value: Option<Field>,
    /// When the action was taken. Given where each use counts: with elements that are no
    /// buttons.
    pub action_ts: Option<Field>,
}

impl SlackEvent {
    /// The names of the event, its own first. With `each_use`, each click is an event.
    ///
    /// # Errors
    /// [`Invalid`] on `slack` or a field of it, when the fields name no event; on `each_use`,
    /// when they do not distinguish one click from the next.
    pub fn names(self, each_use: bool) -> Result<Vec<Id>, Invalid> {
        if each_use && self.is_use_without_time() {
            return Err(Invalid::new("each_use", "needs slack.action_ts or slack.trigger_id"));
        }
        let names = if self.has_type() {
            self.fields().names(each_use)
        } else {
            self.of_older_bots()?.into_iter().collect()
        };
        if names.is_empty() {
            return Err(Invalid::no_key(
                "slack",
                "names no event: give event_id, client_msg_id, action_id with message_ts and user_id, \
                 or channel with ts",
            ));
        }
        Ok(names)
    }

    /// The conversation that a session of `scope` covers.
    ///
    /// # Errors
    /// [`Invalid`] on the field that is needed for it, or that cannot be part of its name.
    pub fn conversation(self, scope: SessionScope) -> Result<Conversation, Invalid> {
        if !self.has_type() && scope == SessionScope::Thread {
            let (field, thread) = match &self {
                Self { thread_ts: Some(ts), .. } => ("slack.thread_ts", Some(ts)),
                Self { ts: Some(ts), .. } => ("slack.ts", Some(ts)),
                Self { message_ts, .. } => ("slack.message_ts", message_ts.as_ref()),
            };
            thread.map_or(Ok(()), |thread| thread.check_no_colon(field))?;
        }
        self.fields().conversations().of(scope).ok_or_else(|| {
            let (field, problem) = match scope {
                SessionScope::User => ("slack.user_id", "is needed to name a session"),
                SessionScope::Thread if self.channel.is_some() => {
                    ("slack.thread_ts", "or ts is needed to name a session")
                }
                _ => ("slack.channel", "is needed to name a session"),
            };
            Invalid::no_key(field, problem)
        })
    }

    /// Whether it is named by an action, and nothing distinguishes that from the next.
    fn is_use_without_time(&self) -> bool {
        self.event_id.is_none()
            && self.client_msg_id.is_none()
            && self.action_id.is_some()
            && self.action_ts.is_none()
            && self.trigger_id.is_none()
    }

    /// Whether any field is present that the older bots do not know.
    fn has_type(&self) -> bool {
        [
            &self.kind,
            &self.subtype,
            &self.trigger_id,
            &self.view_id,
            &self.block_id,
            &self.value,
            &self.action_ts,
        ]
        .into_iter()
        .any(Option::is_some)
    }

    /// The name that the older bots give the event, from the first of these fields that is
    /// present. It is on record in their table, and never changes unless it is too long for
    /// an id.
    fn of_older_bots(&self) -> Result<Option<Id>, Invalid> {
        if let Some(event_id) = &self.event_id {
            return Ok(Some(event_id.clone()));
        }
        if let Some(client_msg_id) = &self.client_msg_id {
            return Ok(Some(joined(&[Closed("msg"), Open(client_msg_id.as_str())])));
        }
        if let (Some(action), Some(ts), Some(user)) =
            (&self.action_id, &self.message_ts, &self.user_id)
        {
            ts.check_no_colon("slack.message_ts")?;
            user.check_no_colon("slack.user_id")?;
            let parts = [Open(action.as_str()), Closed(ts.as_str()), Closed(user.as_str())];
            return Ok(Some(joined(&parts)));
        }
        if let (Some(channel), Some(ts)) = (&self.channel, &self.ts) {
            ts.check_no_colon("slack.ts")?;
            let parts = [Closed("ts"), Open(channel.as_str()), Closed(ts.as_str())];
            return Ok(Some(joined(&parts)));
        }
        Ok(None)
    }

    fn fields(&self) -> SlackFields<'_> {
        let action = self.action_id.is_some().then(|| SlackAction {
            block_id: text(self.block_id.as_ref()),
            action_id: text(self.action_id.as_ref()),
            value: text(self.value.as_ref()),
            action_ts: text(self.action_ts.as_ref()),
            is_button: self.action_ts.is_none(),
        });
        SlackFields {
            kind: text(self.kind.as_ref()),
            subtype: text(self.subtype.as_ref()),
            event_id: self.event_id.clone(),
            client_msg_id: text(self.client_msg_id.as_ref()),
            channel: text(self.channel.as_ref()),
            ts: text(self.ts.as_ref()),
            message_ts: text(self.message_ts.as_ref()),
            thread_ts: text(self.thread_ts.as_ref()),
            user: text(self.user_id.as_ref()),
            trigger_id: text(self.trigger_id.as_ref()),
            view_id: text(self.view_id.as_ref()),
            actions: action.into_iter().collect(),
            ..SlackFields::default()
        }
    }
}

fn text(field: Option<&Field>) -> Option<Text<'_>> {
    field.map(|field| Text::Borrowed(field.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::MAX_ID_BYTES;

    #[expect(clippy::unnecessary_wraps, reason = "every field of SlackEvent is optional")]
    fn id(value: &str) -> Option<Id> {
        Some(Id::parse("id", value.to_owned()).unwrap())
    }

    fn field(value: &str) -> Option<Field> {
        Field::optional("field", value.to_owned()).unwrap()
    }

    fn full() -> SlackEvent {
        SlackEvent {
            event_id: id("Ev1"),
            client_msg_id: field("9f2c"),
            channel: field("C1"),
            ts: field("17.5"),
            thread_ts: field("16.0"),
            action_id: field("approve"),
            message_ts: field("15.0"),
            user_id: field("U1"),
            ..SlackEvent::default()
        }
    }

    fn names(slack: SlackEvent) -> Vec<String> {
        slack.names(false).unwrap().into_iter().map(Id::into_string).collect()
    }

    #[test]
    fn the_first_field_present_names_the_event() {
        let mut slack = full();
        assert_eq!(names(slack.clone()), ["Ev1"]);
        slack.event_id = None;
        assert_eq!(names(slack.clone()), ["msg:9f2c"]);
        slack.client_msg_id = None;
        assert_eq!(names(slack.clone()), ["approve:15.0:U1"]);
        slack.user_id = None;
        assert_eq!(names(slack.clone()), ["ts:C1:17.5"]);
        slack.ts = None;
        assert_eq!(slack.names(false).unwrap_err().field, "slack");
    }

    #[test]
    fn the_thread_is_the_parent_or_else_the_message_itself() {
        let thread = |slack: SlackEvent| match slack.conversation(SessionScope::Thread) {
            Ok(Conversation::Thread { channel, thread }) => Ok((channel, thread)),
            other => Err(other.unwrap_err().field),
        };
        let of = |ts: &str| Ok(("C1".to_owned(), ts.to_owned()));
        let mut slack = full();
        assert_eq!(thread(slack.clone()), of("16.0"));
        slack.thread_ts = None;
        assert_eq!(thread(slack.clone()), of("17.5"));
        slack.ts = None;
        assert_eq!(thread(slack.clone()), of("15.0"));
        slack.message_ts = None;
        assert_eq!(thread(slack.clone()), Err("slack.thread_ts".into()));
        slack.channel = None;
        assert_eq!(thread(slack), Err("slack.channel".into()));
    }

    #[test]
    fn no_two_sets_of_fields_make_one_key() {
        let slack = SlackEvent {
            action_id: field("a"),
            message_ts: field("b:15.0"),
            user_id: field("U1"),
            ..SlackEvent::default()
        };
        assert_eq!(slack.names(false).unwrap_err().field, "slack.message_ts");
        let slack = SlackEvent { channel: field("C1"), ts: field("17:5"), ..SlackEvent::default() };
        assert_eq!(slack.names(false).unwrap_err().field, "slack.ts");
    }

    #[test]
    fn an_action_id_of_255_characters_fits_in_any_script() {
        let click = |action: &str| {
            let [name] = &names(SlackEvent {
                action_id: field(&action.repeat(255)),
                message_ts: field("15.0"),
                user_id: field("U1"),
                ..SlackEvent::default()
            })[..] else {
                unreachable!("one name")
            };
            assert!(name.len() <= MAX_ID_BYTES);
            name.clone()
        };
        assert_eq!(click("x"), format!("{}:15.0:U1", "x".repeat(255)));
        assert_ne!(click("承"), click("認"));
        assert!(click("承").ends_with(":15.0:U1"));
    }

    #[test]
    fn a_type_makes_the_fields_name_what_the_payload_would() {
        let message = SlackEvent { kind: field("message"), ..full() };
        assert_eq!(names(message.clone()), ["Ev1", "msg:9f2c", "ts:C1:17.5"]);
        let replied = SlackEvent { subtype: field("message_replied"), ..message };
        assert_eq!(names(replied), ["Ev1"]);
        let press = SlackEvent {
            block_id: field("b1"),
            value: field("row 1"),
            event_id: None,
            ts: None,
            ..full()
        };
        assert_eq!(names(press.clone()), ["action:C1:15.0::U1:b1:approve:row 1:"]);
        let choice = SlackEvent { action_ts: field("18.1"), ..press };
        assert_eq!(names(choice), ["action:C1:15.0::U1:b1:approve::18.1"]);
        let submission = SlackEvent {
            kind: field("view_submission"),
            trigger_id: field("1.2.a"),
            view_id: field("V1"),
            ..SlackEvent::default()
        };
        assert_eq!(names(submission.clone()), ["act:1.2.a"]);
        assert_eq!(
            submission.conversation(SessionScope::Thread).unwrap(),
            Conversation::View("V1".to_owned())
        );
    }

    #[test]
    fn each_use_needs_the_time_of_the_use() {
        let press = SlackEvent { event_id: None, client_msg_id: None, ..full() };
        assert_eq!(press.clone().names(true).unwrap_err().field, "each_use");
        let typed = SlackEvent { kind: field("block_actions"), ..press.clone() };
        assert_eq!(typed.names(true).unwrap_err().field, "each_use");
        let timed = SlackEvent { action_ts: field("18.1"), ..press };
        assert!(timed.names(true).is_ok());
        assert!(full().names(true).is_ok());
    }

    #[test]
    fn a_session_covers_as_much_as_is_asked_for() {
        let of = |scope| full().conversation(scope).unwrap();
        assert_eq!(of(SessionScope::Channel), Conversation::Channel("C1".to_owned()));
        assert_eq!(of(SessionScope::User), Conversation::User("U1".to_owned()));
        let error = SlackEvent::default().conversation(SessionScope::User).unwrap_err();
        assert_eq!(error.field, "slack.user_id");
    }
}
