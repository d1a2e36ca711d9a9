//! Deliveries of platforms. The server reads the names from their payloads.

use std::{collections::HashMap, time::Duration};

use http::HeaderMap;
use serde_json::Value;

use crate::{Delivery, pb};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A delivery as its platform sent it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) platform: pb::Platform,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// Shows no content: texts of people.
impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Payload");
        shown.field("platform", &self.platform).field("body", &self.body.len());
        shown.finish_non_exhaustive()
    }
}

/// A delivery of Slack: the body of a request, or a Socket Mode frame or its payload. Verify the
/// signature first. Slack redelivers events that were not acknowledged, but not interactions and
/// commands.
#[must_use]
pub fn slack(body: &[u8]) -> Delivery {
    from_platform(pb::Platform::Slack, body).sent_once(!is_slack_event(body))
}

/// A delivery of a GitHub webhook. Verify `X-Hub-Signature-256` first. All webhooks of a repository
/// get the same delivery id: with several of them, set the gate's consumer. GitHub redelivers only
/// on request, so the event stays processed for 7 days.
#[must_use]
pub fn github(headers: &HeaderMap, body: &[u8]) -> Delivery {
    let mut delivery = from_platform(pb::Platform::Github, body);
    delivery.pick(headers, "X-GitHub-Delivery");
    delivery.ttl(WEEK).sent_once(true)
}

/// An interaction or a gateway event, as Discord sent it. Discord does not redeliver.
#[must_use]
pub fn discord(body: &[u8]) -> Delivery {
    from_platform(pb::Platform::Discord, body).sent_once(true)
}

/// An update of a Telegram bot. The team is the bot: an update does not name it. The event stays
/// processed for 2 days, because update ids may start again after a week.
#[must_use]
pub fn telegram(team: &str, body: &[u8]) -> Delivery {
    from_platform(pb::Platform::Telegram, body).team(team).ttl(2 * DAY)
}

/// An activity of Microsoft Teams. Verify the token first.
#[must_use]
pub fn teams(body: &[u8]) -> Delivery {
    from_platform(pb::Platform::Teams, body)
}

/// An event of Stripe. Verify `Stripe-Signature` first. Set [`Delivery::team`] for your own
/// account's events. Stripe retries for 3 days, so the event stays processed for 7 days.
#[must_use]
pub fn stripe(body: &[u8]) -> Delivery {
    from_platform(pb::Platform::Stripe, body).ttl(WEEK)
}

/// A request of a sender that follows <https://www.standardwebhooks.com>. Verify the signature
/// first. The request names no tenant, and there is no conversation. The event stays processed for
/// 7 days.
#[must_use]
pub fn standard_webhooks(team: &str, headers: &HeaderMap, body: &[u8]) -> Delivery {
    let mut delivery = from_platform(pb::Platform::StandardWebhooks, body);
    delivery.pick(headers, "webhook-id");
    delivery.team(team).ttl(WEEK)
}

fn from_platform(platform: pb::Platform, body: &[u8]) -> Delivery {
    let mut delivery = Delivery::default();
    delivery.payload = Some(Payload { platform, headers: HashMap::new(), body: cut(body) });
    delivery
}

impl Delivery {
    /// Takes over the header with this name.
    fn pick(&mut self, headers: &HeaderMap, name: &str) {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        if let (Some(payload), Some(value)) = (&mut self.payload, value) {
            payload.headers.insert(name.to_owned(), value.to_owned());
        }
    }
}

fn is_slack_event(body: &[u8]) -> bool {
    // A form, and a command's payload that is text, are no events.
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return false;
    };
    let is_callback = |value: &Value| value["type"] == "event_callback";
    is_callback(&value) || is_callback(&value["payload"])
}

/// A body of more bytes is cut: no longer texts, and no longer lists, than the following.
const LARGE_BODY: usize = 200 * 1024;
const LONG_TEXT: usize = 1024;
const LONG_LIST: usize = 16;

/// Leaves out what names nothing: the server takes 256 KiB, and GitHub sends up to 25 MB.
fn cut(body: &[u8]) -> Vec<u8> {
    if body.len() > LARGE_BODY
        && let Ok(mut value) = serde_json::from_slice(body)
    {
        shorten(&mut value);
        return value.to_string().into_bytes();
    }
    body.to_vec()
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > LONG_TEXT => text.clear(),
        Value::Array(items) => {
            items.truncate(LONG_LIST);
            items.iter_mut().for_each(shorten);
        }
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_payload_keeps_its_names() {
        let text = "x".repeat(LARGE_BODY);
        let body = format!(
            r#"{{"issue": {{"number": 5, "body": "{text}"}}, "id": 12345678901234567890}}"#
        );
        let payload = github(&HeaderMap::new(), body.as_bytes()).payload.expect("it has one");
        let expected = r#"{"id":12345678901234567890,"issue":{"body":"","number":5}}"#;
        assert_eq!(String::from_utf8_lossy(&payload.body), expected);
        let form = slack(format!("payload={text}").as_bytes()).payload.expect("it has one");
        assert_eq!(form.body.len(), text.len() + "payload=".len());
    }

    #[test]
    fn which_slack_deliveries_are_sent_again() {
        for (body, once) in [
            (r#"{"type": "event_callback"}"#, false),
            (r#"{"payload": {"type": "event_callback"}}"#, false),
            (r#"{"type": "block_actions"}"#, true),
            (r#"{"payload": "text"}"#, true),
            ("command=%2Fdeploy&trigger_id=1", true),
            (r#"{"type": "slash_commands", "payload": {"type": "x"}}"#, true),
        ] {
            assert_eq!(slack(body.as_bytes()).is_sent_once(), once, "{body}");
        }
    }
}
