//! Bugs that are planted between the core and its store, one at a time, to see that the checker
//! finds each.

use std::time::Duration;

use oncegate::rules::{Plan, Snapshot, State, Wanted};

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A plan does not say what it rests on.
    ForgottenExpectation,
    /// One replica decides by a clock that is ahead what has expired.
    WrongClock,
    /// The floor of fencing tokens is not raised when a session is deleted: it matters once the
    /// clock is stepped back.
    FenceReused,
    /// A session is handed to callers whose replica is dead.
    DeadWaiter,
    /// A turn is finished though its lease has run out.
    FinishWithoutLease,
    /// An event is taken under some of its names.
    HalfAlias,
    /// A write is answered before it is committed, and lost.
    AnswerBeforeCommit,
    /// An attempt is not counted once its claim has lapsed.
    UncountedAttempt,
    /// The first in a queue is passed over.
    PassedOver,
    /// A mark that was forgotten is still answered from memory.
    StaleMemory,
}

impl Bug {
    pub const ALL: [Self; 10] = [
        Self::ForgottenExpectation,
        Self::WrongClock,
        Self::FenceReused,
        Self::DeadWaiter,
        Self::FinishWithoutLease,
        Self::HalfAlias,
        Self::AnswerBeforeCommit,
        Self::UncountedAttempt,
        Self::PassedOver,
        Self::StaleMemory,
    ];

    /// What a decision sees.
    pub fn of_snapshot(self, wanted: &Wanted, snapshot: &mut Snapshot) {
        match self {
            Self::WrongClock => snapshot.now = snapshot.now.plus(Duration::from_secs(2)),
            Self::DeadWaiter => {
                let queues = snapshot.sessions.values_mut().flat_map(|session| &mut session.queue);
                queues.for_each(|waiter| (waiter.is_there, waiter.left_at) = (true, None));
            }
            Self::PassedOver => {
                snapshot.sessions.values_mut().for_each(|session| session.queue.reverse());
            }
            // Of one that ends or renews a turn.
            Self::FinishWithoutLease
                if !wanted.events.is_empty() && wanted.events.values().all(|result| !result) =>
            {
                let latest = snapshot.sessions.values_mut().filter_map(|one| one.latest.as_mut());
                for latest in latest.filter(|latest| !latest.released) {
                    latest.expire_time =
                        latest.expire_time.max(snapshot.now.plus(Duration::from_secs(1)));
                }
            }
            Self::UncountedAttempt => {
                for event in snapshot.events.values_mut() {
                    if let (State::Claimed(until), Some(attempts)) =
                        (&event.state, &mut event.attempts)
                        && *until <= snapshot.now
                        && *until > event.time
                    {
                        attempts.claimed = attempts.claimed.saturating_sub(1);
                    }
                }
            }
            _ => {}
        }
    }

    /// What a decision comes to.
    pub fn of_plan(self, plan: &mut Plan) {
        match self {
            Self::ForgottenExpectation => {
                plan.sessions.clear();
                plan.events.clear();
            }
            Self::WrongClock => plan.from = oncegate::domain::Timestamp::from_micros(i64::MIN),
            Self::FenceReused => (plan.writes.floor, plan.token) = (None, None),
            Self::HalfAlias => {
                plan.writes.puts.retain(|(key, event)| event.names.first() == Some(&key.event));
            }
            _ => {}
        }
    }

    /// What the first violation that it leads to says: one of these.
    #[cfg(test)]
    pub fn shows_as(self) -> &'static [&'static str] {
        match self {
            // What was answered does not last: any of what depends on it may be seen first.
            Self::ForgottenExpectation | Self::AnswerBeforeCommit => &[
                "two firsts",
                "is handled until",
                "not the first when repeated",
                "but is lost",
                "held by two at once",
                "is lost before its end",
            ],
            // A lease or claim of that replica ends later than its holder counts.
            Self::WrongClock => &[
                "held by two at once",
                "is lost before its end",
                "is handled until",
                "ended after its end",
            ],
            Self::FenceReused => &["of Lease("],
            Self::DeadWaiter => &["held by nobody"],
            Self::FinishWithoutLease => &["ended after its end"],
            Self::HalfAlias => &["two firsts", "is handled until"],
            Self::UncountedAttempt => &["of Turn("],
            Self::PassedOver => &["went to"],
            Self::StaleMemory => &["but was forgotten", "not the first when repeated"],
        }
    }
}
