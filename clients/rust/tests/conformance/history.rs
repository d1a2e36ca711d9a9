//! What happened in random runs.

use std::{
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use oncegate_client::Outcome;
use serde_json::Value;
use tokio::{sync::oneshot, time::sleep};

use crate::mapping::{Fault, error_fields};

/// How long the library may read what came in time while it was held up.
pub(crate) const SETTLE_TIME: Duration = Duration::from_millis(500);
/// A pulse that is later than this has stood still.
const LATE_BEAT: Duration = Duration::from_millis(40);
const BEAT: Duration = Duration::from_millis(20);

/// A write of a body, after a check that passed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Write {
    /// When the check began.
    pub(crate) checked: Instant,
    /// The trusted end, read after it.
    pub(crate) trusted: Instant,
}

/// A handler's body.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub(crate) run: usize,
    pub(crate) event: String,
    pub(crate) session: String,
    pub(crate) attempt: u32,
    pub(crate) fence: i64,
    pub(crate) entered: Instant,
    pub(crate) trusted_at_entry: Instant,
    /// It checks before each write. Else it relies on the library's interruption.
    pub(crate) checks: bool,
    pub(crate) writes: Vec<Write>,
    /// When its last statement ran.
    pub(crate) left: Instant,
    /// Its last trusted end then.
    pub(crate) trusted: Instant,
}

/// What one delivery of an event came to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) run: usize,
    pub(crate) event: String,
    pub(crate) came: Result<Outcome<String>, Fault>,
    pub(crate) at: Instant,
}

impl Answer {
    pub(crate) fn is_ran(&self) -> bool {
        matches!(self.came, Ok(Outcome::Ran(_)))
    }

    pub(crate) fn is_duplicate(&self) -> bool {
        matches!(self.came, Ok(Outcome::Duplicate(_)))
    }

    /// Nobody need handle the event any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_ran() || self.is_duplicate() || matches!(self.came, Ok(Outcome::GaveUp(_)))
    }

    /// There was no turn, as is to be expected.
    pub(crate) fn is_refused(&self) -> bool {
        self.came.is_ok() && !self.is_ran()
    }

    /// The value of the run, or of the one that handled the event.
    pub(crate) fn value(&self) -> Option<&str> {
        match &self.came {
            Ok(Outcome::Ran(value)) => Some(value),
            Ok(Outcome::Duplicate(duplicate)) => duplicate.result.as_deref(),
            _ => None,
        }
    }

    pub(crate) fn kind(&self) -> String {
        match &self.came {
            Ok(Outcome::Ran(_)) => "ran",
            Ok(Outcome::Rejected { .. }) => "rejected",
            Ok(Outcome::Duplicate(_)) => "duplicate",
            Ok(Outcome::GaveUp(_)) => "gave up",
            Ok(Outcome::InProgress(_)) => "in progress",
            Ok(Outcome::Busy(_)) => "busy",
            Ok(Outcome::Dropped) => "dropped",
            Ok(_) => "another outcome",
            Err(fault) => return crate::mapping::text(&error_fields(fault)["kind"]),
        }
        .to_owned()
    }
}

/// A session was released by force, which raised its fence. The next holds may have raised it further
/// before it was read.
#[derive(Debug, Clone)]
pub(crate) struct Forced {
    pub(crate) session: String,
    pub(crate) before: i64,
    pub(crate) after: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) planned: Vec<usize>,
    pub(crate) bodies: Vec<Body>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) forced: Vec<Forced>,
    /// The kinds of those that were done.
    pub(crate) faults: Vec<String>,
    /// When this process stood still, as one of the faults, or because other processes ran. They do not
    /// overlap: one pulse records them.
    pub(crate) pauses: Vec<(Instant, Instant)>,
    /// The events as the server has them at the end.
    pub(crate) records: Vec<(String, Value)>,
}

#[derive(Debug)]
pub(crate) struct History {
    pub(crate) margin: Duration,
    pub(crate) max_attempts: usize,
    events: Mutex<Events>,
}

impl History {
    pub(crate) fn new(margin: Duration, max_attempts: usize) -> Self {
        Self { margin, max_attempts, events: Mutex::default() }
    }

    pub(crate) fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().expect("it is not poisoned")
    }

    /// Records when the process stands still, until it is stopped.
    pub(crate) async fn beat(&self, mut stopped: oneshot::Receiver<()>) {
        let mut is_stopped = false;
        while !is_stopped {
            let due = Instant::now() + BEAT;
            tokio::select! {
                () = sleep(BEAT) => {}
                _ = &mut stopped => is_stopped = true,
            }
            let now = Instant::now();
            if now.saturating_duration_since(due) > LATE_BEAT {
                self.events().pauses.push((due, now));
            }
        }
    }
}

impl Events {
    /// How much of this time the process did not stand still.
    pub(crate) fn awake(&self, since: Instant, until: Instant) -> Duration {
        let paused: Duration = self
            .pauses
            .iter()
            .map(|(began, ended)| {
                (*ended).min(until).saturating_duration_since((*began).max(since))
            })
            .sum();
        until.saturating_duration_since(since).saturating_sub(paused)
    }

    /// Whether the session was released by force between the grants of two holds, as far as the fences
    /// say. The release can overtake a grant that is on its way.
    pub(crate) fn is_forced(&self, one: &Body, other: &Body) -> bool {
        let (low, high) = (one.fence.min(other.fence), one.fence.max(other.fence));
        let between = |forced: &Forced| {
            forced.session == one.session && forced.before < high && low < forced.after
        };
        low != high && self.forced.iter().any(between)
    }

    /// Each body of a session with each that was entered later.
    pub(crate) fn pairs(&self) -> Vec<(&Body, &Body)> {
        let mut ordered: Vec<_> = self.bodies.iter().collect();
        ordered.sort_by_key(|body| body.entered);
        let mut pairs = Vec::new();
        for (index, after) in ordered.iter().enumerate() {
            let before = ordered[..index].iter().filter(|before| before.session == after.session);
            pairs.extend(before.map(|before| (*before, *after)));
        }
        pairs
    }

    /// The last answer for each event.
    pub(crate) fn last_answers(&self) -> Vec<&Answer> {
        let mut last = std::collections::BTreeMap::new();
        for answer in &self.answers {
            last.insert(&answer.event, answer);
        }
        last.into_values().collect()
    }
}

/// An error of the library, or the handler's own.
pub(crate) fn is_known(fault: &Fault) -> bool {
    error_fields(fault)["kind"] != "unexpected"
}
