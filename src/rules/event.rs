//! Whether an event is handled.
//!
//! | on record under one of its names | a mark | its own mark, repeated | forgotten by an operator |
//! |---|---|---|---|
//! | nothing, or what has expired | first: on record as handled, under all of its names | | deleted, not reported |
//! | a claim that has lapsed or ended | first, the claim and its attempts forgotten | | deleted; not reported if no attempt is left of it |
//! | a claim that runs | in progress, to the request that claims as well | | deleted, its turn is lost |
//! | handled | a duplicate | first | deleted |
//!
//! What is forgotten is deleted under all names that it was taken with, apart from those that
//! another event has taken since.

use super::{Draft, Event, Notice, Operation, RuleError, State, Version, Wanted};
use crate::domain::{Delivered, EventKey, EventRow, Mark, ProcessedBy, ResumedBy};

impl Operation for Mark {
    /// The event's row, with its state: the mark's own, if it is the first.
    type Answer = EventRow;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.event(&self.event.key.team, self.event.names(), false);
    }

    fn is_usually_new(&self) -> bool {
        true
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<EventRow, RuleError> {
        let Delivered { key, digest, .. } = &self.event;
        let now = draft.now();
        let mut live = Vec::new();
        for name in self.event.names() {
            let event = draft.event(&key.team, name).filter(|event| event.is_live(now));
            live.extend(event.map(|event| (name.to_owned(), event.row(now))));
        }
        if let Some(row) = self.event.answering_record(self.request, live) {
            return Ok(row);
        }
        let event = Event {
            version: Version(0),
            names: self.event.names().map(str::to_owned).collect(),
            request: Some(self.request),
            digest: *digest,
            time: now,
            expire_time: now.after(self.ttl),
            state: State::Handled(ProcessedBy::Mark, None),
            attempts: None,
            holder: None,
            detail: None,
            resumed: ResumedBy::Nobody,
        };
        let row = event.row(now);
        draft.put_event(&key.team, event);
        Ok(row)
    }
}

/// Forgets an event, under all of its names.
#[derive(Debug, Clone)]
pub struct ForgetEvent<'a>(pub &'a EventKey);

impl Operation for ForgetEvent<'_> {
    /// How it stood, if it had not expired and anybody knew of it.
    type Answer = Option<EventRow>;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.event(&self.0.team, [self.0.event.as_str()], false);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Self::Answer, RuleError> {
        let (EventKey { team, event }, now) = (self.0, draft.now());
        let Some(found) = draft.event(team, event) else { return Ok(None) };
        draft.only_once();
        draft.update_event(team, &found, None);
        if let Some(request) = found.request {
            draft.notify(Notice::Forgotten(request));
        }
        // A claim of no attempt was never answered to anybody.
        let was_claimed = found.attempts.is_none_or(|attempts| attempts.claimed > 0);
        Ok(Some(found.row(now)).filter(|_| found.expire_time > now && was_claimed))
    }
}
