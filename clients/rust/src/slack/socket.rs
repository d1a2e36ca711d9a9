//! Socket Mode.

use std::fmt;

use serde_json::{Value, json};

use super::{Answer, Delivered, Guard, Handler, LAST_RETRY, name_of};

/// What handles the messages of Socket Mode. [`Guard::socket`] makes it.
#[derive(Clone)]
pub struct Socket {
    pub(super) guard: Guard,
    pub(super) handler: Handler,
}

impl Socket {
    /// Handles a text message of Socket Mode, and returns the acknowledgement, to be sent over any connection
    /// of the app. There is none if Slack is to deliver again, or if the message is no envelope. Do not wait
    /// for it before the next message is read: it takes as long as the handler.
    pub async fn message(&self, text: &str) -> Option<String> {
        let mut message: Value = serde_json::from_str(text).ok()?;
        let envelope = message["envelope_id"].as_str()?.to_owned();
        let retry = message["retry_attempt"].as_u64().unwrap_or_default();
        let delivery = crate::slack(text.as_bytes());
        let payload = message["payload"].take();
        let event = name_of(&payload);
        let on_busy = self.guard.on_busy.clone().filter(|_| delivery.is_sent_once());
        let report = on_busy.map(|report| {
            let payload = payload.clone();
            Box::new(move || report(payload)) as _
        });
        let run = (self.handler)(payload).ok()?;
        let can_refuse = !delivery.is_sent_once() && retry < LAST_RETRY;
        let delivered = Delivered { delivery, event, can_refuse, report, run };
        match self.guard.run(delivered).await {
            Answer::Acknowledge => Some(json!({ "envelope_id": envelope }).to_string()),
            Answer::Refuse(_) => None,
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("guard", &self.guard).finish_non_exhaustive()
    }
}
