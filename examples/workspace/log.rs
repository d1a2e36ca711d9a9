//! The resource that bots write to, which knows fencing tokens; and the judge of what it
//! sees: whether every effect happened once, by one run at a time.

use crate::{
    plan::Message,
    wire::{Grant, Verdict, result},
};

/// A turn that was granted.
#[derive(Debug, Clone)]
pub struct Run {
    pub call: usize,
    pub message: usize,
    pub grant: Grant,
}

#[derive(Default)]
struct Thread {
    /// The highest token that has written.
    fence: i64,
    /// Whose it is.
    fenced_by: Option<Run>,
    /// Those that were granted, and whose effect is not answered: so they cannot have
    /// ended, and nobody else may be granted the thread before they lapse.
    working: Vec<Run>,
}

#[derive(Default)]
struct Event {
    /// Whose effect it was last.
    writer: Option<Run>,
    /// A turn was ended with success.
    is_handled: bool,
}

/// What was seen of the effects.
#[derive(Debug, Default)]
pub struct Seen {
    pub granted: u64,
    pub attempted_again: u64,
    /// Stale writes that were refused.
    pub refused: u64,
    /// Effects that came again, of runs that took over from one that had lapsed.
    pub repeated: u64,
    /// Ends of runs that had lapsed, which the server refused.
    pub lost: u64,
    /// Effects that came again though nothing excuses it.
    pub twice: u64,
}

pub struct Log {
    threads: Vec<Thread>,
    events: Vec<Event>,
    pub seen: Seen,
    /// What must not be.
    pub wrongs: Vec<String>,
}

impl Log {
    pub fn new(threads: usize, messages: usize) -> Self {
        Self {
            threads: std::iter::repeat_with(Thread::default).take(threads).collect(),
            events: std::iter::repeat_with(Event::default).take(messages).collect(),
            seen: Seen::default(),
            wrongs: Vec::new(),
        }
    }

    pub fn is_handled(&self, message: usize) -> bool {
        self.events[message].is_handled
    }

    /// A run tells of its turn, which nobody else may have had since it was granted.
    pub fn begin(&mut self, thread: usize, run: &Run) {
        let Grant { since, attempt, .. } = run.grant;
        self.seen.granted += 1;
        self.seen.attempted_again += u64::from(attempt > 1);
        let working = &mut self.threads[thread].working;
        working.retain(|other| other.grant.until > since);
        for other in working.iter() {
            self.wrongs.push(format!("two runs at once: {other:?} and {run:?}"));
        }
        working.push(run.clone());
    }

    /// A run writes its effect.
    pub fn write(&mut self, thread: usize, run: &Run, now: i64) -> Verdict {
        let thread = &mut self.threads[thread];
        if run.grant.token <= thread.fence {
            self.seen.refused += 1;
            if run.grant.until > now {
                let by = &thread.fenced_by;
                self.wrongs.push(format!("fenced off by {by:?}, but alive: {run:?}"));
            }
            return Verdict::Refused;
        }
        thread.fence = run.grant.token;
        thread.fenced_by = Some(run.clone());
        let event = &mut self.events[run.message];
        if let Some(before) = event.writer.replace(run.clone()) {
            // Once more, by a run that took over from one that lapsed before it had ended.
            if event.is_handled || before.grant.until > run.grant.since {
                self.seen.twice += 1;
                self.wrongs.push(format!("twice: {before:?} and {run:?}"));
            } else {
                self.seen.repeated += 1;
            }
        }
        Verdict::Taken
    }

    /// A run is told what became of its effect: from now on it may have ended.
    pub fn answer(&mut self, thread: usize, call: usize) {
        self.threads[thread].working.retain(|run| run.call != call);
    }

    /// A run says that it has ended its turn with success.
    pub fn handled(&mut self, run: &Run, answered_at: i64) {
        if run.grant.until <= answered_at {
            self.wrongs.push(format!("ended after it had lapsed: {run:?}"));
        }
        self.events[run.message].is_handled = true;
    }

    /// A run says that it could not end its turn.
    pub fn lost(&mut self, run: &Run, now: i64) {
        self.seen.lost += 1;
        if run.grant.until > now {
            self.wrongs.push(format!("lost before it had lapsed: {run:?}"));
        }
    }

    /// A bot was told that an event is a duplicate, with this result.
    pub fn duplicate(&mut self, message: usize, plan: &[Message], told: &str) {
        let ts = &plan[message].ts;
        if self.events[message].writer.is_none() {
            self.wrongs.push(format!("a duplicate that was never handled: {ts}"));
        }
        if told != result(ts) {
            self.wrongs.push(format!("a duplicate of {ts} with the result {told:?}"));
        }
    }

    /// How many events have no effect.
    pub fn missing(&self) -> usize {
        self.events.iter().filter(|event| event.writer.is_none()).count()
    }
}
