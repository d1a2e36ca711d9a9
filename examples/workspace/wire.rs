//! What the workspace and its bots tell each other: JSON, a line each, over the standard
//! input and output of a bot.

use serde::{Deserialize, Serialize};

/// What a bot is told.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToBot {
    /// A delivery of Slack's.
    Deliver(Delivery),
    /// What the time is, in microseconds since 1970.
    Tick(i64),
    /// What became of the effect of a call.
    Written(usize, Verdict),
}

/// One try to deliver one message.
#[derive(Debug, Serialize, Deserialize)]
pub struct Delivery {
    /// Names the try.
    pub call: usize,
    pub event_id: String,
    pub channel: String,
    pub ts: String,
    /// Empty for the message that starts a thread.
    pub thread_ts: String,
    /// Whether the message comes by another name, too.
    pub has_twin: bool,
    /// Whether to wait while another run works in the thread.
    pub waits: bool,
    /// Whether to use `RunTurn`, rather than `BeginTurn` and `FinishTurn`.
    pub keeps: bool,
}

/// What the resource says to an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is there, by this or before.
    Taken,
    /// A run with a higher fencing token has written since.
    Refused,
    /// The resource is out of order.
    Failed,
}

/// What a bot tells. Everything but the first two is about a call.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromBot {
    /// It serves.
    Ready,
    /// Its replica has the time that it was told.
    Ticked,
    /// The turn is its.
    Granted(usize, Grant),
    /// It writes its effect, under the fencing token of its grant.
    Effect(usize),
    /// How the delivery ended.
    Answer(usize, Answer),
}

/// A turn, as the bot was granted it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Grant {
    pub token: i64,
    pub attempt: i32,
    /// When its lease was granted, and when it lapses, in microseconds since 1970.
    pub since: i64,
    pub until: i64,
}

/// How a delivery ended, for the bot. Slack counts the first two as acknowledged.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Handled,
    /// With the result of the turn that handled the event.
    Duplicate(String),
    InProgress,
    Busy,
    /// The turn was ended as failed.
    Failed,
    /// The turn could not be ended: its claim or lease had lapsed.
    Lost,
    /// What should not happen.
    Wrong(String),
}

/// What a turn that handles the message `ts` leaves as its result.
pub fn result(ts: &str) -> String {
    format!("answered {ts}")
}
