//! The one place that derives keys from Slack's fields.

use super::{Id, Invalid};

/// The identifying fields of one Slack delivery; see `SlackEvent` in the
/// contract. Checked one by one: what is present obeys the rules of an id.
#[derive(Debug, Clone, Default)]
pub struct SlackEvent {
    /// The Events API envelope's id.
    pub event_id: Option<Id>,
    /// The message's id as its sender's client chose it.
    pub client_msg_id: Option<Id>,
    /// The channel.
    pub channel: Option<Id>,
    /// The message's timestamp.
    pub ts: Option<Id>,
    /// The timestamp of the thread's first message.
    pub thread_ts: Option<Id>,
    /// The interaction's action.
    pub action_id: Option<Id>,
    /// The timestamp of the message interacted with.
    pub message_ts: Option<Id>,
    /// The user who interacted.
    pub user_id: Option<Id>,
}

impl SlackEvent {
    /// The stored event id, from the first of the contract's fields that is
    /// present.
    pub(super) fn into_event_id(self) -> Result<String, Invalid> {
        if let Some(event_id) = self.event_id {
            return Ok(event_id.into_string());
        }
        if let Some(client_msg_id) = self.client_msg_id {
            return Ok(format!("msg:{}", client_msg_id.as_str()));
        }
        if let (Some(action), Some(ts), Some(user)) =
            (self.action_id, self.message_ts, self.user_id)
        {
            let ts = ts.without_colon("slack.message_ts")?;
            let user = user.without_colon("slack.user_id")?;
            return Ok(format!("{}:{}:{}", action.as_str(), ts.as_str(), user.as_str()));
        }
        if let (Some(channel), Some(ts)) = (self.channel, self.ts) {
            let ts = ts.without_colon("slack.ts")?;
            return Ok(format!("ts:{}:{}", channel.as_str(), ts.as_str()));
        }
        Err(Invalid::new(
            "slack",
            "has no key: give event_id, client_msg_id, action_id with message_ts and user_id, \
             or channel with ts",
        ))
    }

    /// The channel, and the thread's first message.
    pub(super) fn into_thread(self) -> Result<(Id, Id), Invalid> {
        let channel = self
            .channel
            .ok_or_else(|| Invalid::new("slack.channel", "is needed to name a session"))?;
        let (field, thread) = self
            .thread_ts
            .map(|ts| ("slack.thread_ts", ts))
            .or(self.ts.map(|ts| ("slack.ts", ts)))
            .or(self.message_ts.map(|ts| ("slack.message_ts", ts)))
            .ok_or_else(|| Invalid::new("slack.thread_ts", "or ts is needed to name a session"))?;
        Ok((channel, thread.without_colon(field)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "every field of SlackEvent is optional")]
    fn id(value: &str) -> Option<Id> {
        Some(Id::parse("id", value.to_owned()).unwrap())
    }

    fn full() -> SlackEvent {
        SlackEvent {
            event_id: id("Ev1"),
            client_msg_id: id("9f2c"),
            channel: id("C1"),
            ts: id("17.5"),
            thread_ts: id("16.0"),
            action_id: id("approve"),
            message_ts: id("15.0"),
            user_id: id("U1"),
        }
    }

    #[test]
    fn the_first_field_present_names_the_event() {
        let mut slack = full();
        assert_eq!(slack.clone().into_event_id().unwrap(), "Ev1");
        slack.event_id = None;
        assert_eq!(slack.clone().into_event_id().unwrap(), "msg:9f2c");
        slack.client_msg_id = None;
        assert_eq!(slack.clone().into_event_id().unwrap(), "approve:15.0:U1");
        slack.user_id = None;
        assert_eq!(slack.clone().into_event_id().unwrap(), "ts:C1:17.5");
        slack.ts = None;
        assert_eq!(slack.into_event_id().unwrap_err().field, "slack");
    }

    #[test]
    fn the_thread_is_the_parent_or_else_the_message_itself() {
        let thread = |slack: SlackEvent| slack.into_thread().map(|(_, ts)| ts.into_string());
        let mut slack = full();
        assert_eq!(thread(slack.clone()).unwrap(), "16.0");
        slack.thread_ts = None;
        assert_eq!(thread(slack.clone()).unwrap(), "17.5");
        slack.ts = None;
        assert_eq!(thread(slack.clone()).unwrap(), "15.0");
        slack.message_ts = None;
        assert_eq!(thread(slack.clone()).unwrap_err().field, "slack.thread_ts");
        slack.channel = None;
        assert_eq!(thread(slack).unwrap_err().field, "slack.channel");
    }

    #[test]
    fn no_two_sets_of_fields_make_one_key() {
        let slack = SlackEvent {
            action_id: id("a"),
            message_ts: id("b:15.0"),
            user_id: id("U1"),
            ..SlackEvent::default()
        };
        assert_eq!(slack.into_event_id().unwrap_err().field, "slack.message_ts");
        let slack = SlackEvent { channel: id("C1"), ts: id("17:5"), ..SlackEvent::default() };
        assert_eq!(slack.into_event_id().unwrap_err().field, "slack.ts");
    }
}
