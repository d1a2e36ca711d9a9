//! How a turn ends.

use std::sync::Arc;

use super::{
    super::{Draft, Event, Operation, RuleError, State, Wanted, session::release},
    EventName, Own, ended, live_claim, name, own, wants_turn,
};
use crate::domain::{
    Attempts, EventRow, Finish, FinishAs, ProcessedBy, ResumedBy, SessionRow, Timestamp, TurnLost,
};

/// What became of a [`Finish`], and what that brought with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishAnswer {
    /// The event's row, if it is handled. It carries no digest: no caller needs it, and a store
    /// that ends a turn by a short statement does not read it.
    pub finished: Result<Option<EventRow>, TurnLost>,
    /// The session, if it went to the next caller.
    pub handover: Option<SessionRow>,
}

impl Operation for Finish {
    type Answer = FinishAnswer;

    fn wants(&self, wanted: &mut Wanted) {
        wants_turn(&self.turn, wanted);
    }

    fn spend(&self) {
        self.doubt.lose();
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<FinishAnswer, RuleError> {
        let (Self { turn, ending, .. }, now) = (self, draft.now());
        self.doubt.decide(false);
        if matches!(ending, FinishAs::Unanswered) {
            return self.give_back(draft);
        }
        let alone = |finished| Ok(FinishAnswer { finished, handover: None });
        let Own { event, attempts, session } = match own(draft, turn) {
            Ok(own) => own,
            Err(TurnLost::Claim) => return alone(self.done_before(draft)),
            Err(lost) => return alone(Err(lost)),
        };
        // A claim that was shortened or renewed after the clock was stepped back has another time: it
        // ends with its TTL.
        if matches!(ending, FinishAs::Abandoned(claim_time) if *claim_time != event.time) {
            return alone(Err(TurnLost::Claim));
        }
        let of_lease = session.as_ref().map(|(_, session)| session.resumed());
        if !self.may_end(&[Some(event.resumed), of_lease]) {
            return alone(Err(TurnLost::Replaced));
        }
        let ended = self.ending(&event, attempts, ending, now);
        let row = ended.row(now);
        // An event that is handled keeps the record of it; another is left to the next attempt.
        self.doubt.decide(matches!(row, EventRow::Claimed(_)));
        draft.update_event(&turn.event.team, &event, Some(ended));
        let mut handover = None;
        if let Some((key, mut session)) = session {
            handover = release(draft, key, &mut session)?;
        }
        Ok(FinishAnswer { finished: Ok(handled(row)), handover })
    }
}

impl Finish {
    /// Whether nobody else has carried on what it ends.
    fn may_end(&self, resumed: &[Option<ResumedBy>]) -> bool {
        let Some(stream) = self.unless_resumed else { return true };
        resumed.iter().flatten().all(|by| by.leaves_to(stream))
    }

    /// Gives back what a begin was granted that was not answered: the lease, with the claim or alone.
    /// A lease that has lapsed still stands for the claim, until another call has the session.
    fn give_back(&self, draft: &mut Draft<'_>) -> Result<FinishAnswer, RuleError> {
        let (EventName { team, event }, now) = (name(&self.turn), draft.now());
        let lost = |lost| Ok(FinishAnswer { finished: Err(lost), handover: None });
        let Some((key, lease)) = &self.turn.lease else { return lost(TurnLost::Claim) };
        let mut session = draft.session(key);
        let own = session.latest.as_ref().filter(|latest| latest.lease == *lease);
        let Some(own) = own.filter(|latest| !latest.released) else {
            return lost(TurnLost::Lease(None));
        };
        let is_live = own.is_live(now);
        let claimed = draft.event(team, event);
        let claimed = claimed.filter(|event| live_claim(event, self.turn.request, now).is_some());
        let of_event = claimed.as_ref().map(|event| event.resumed);
        if !self.may_end(&[Some(session.resumed()), of_event]) {
            return lost(TurnLost::Replaced);
        }
        let claimed = claimed.as_ref().and_then(|event| Some((event, event.attempts?)));
        if let Some((event, attempts)) = claimed {
            let ended = self.ending(event, attempts, &self.ending, now);
            draft.update_event(team, event, Some(ended));
        } else if !is_live {
            return lost(TurnLost::Lease(None));
        }
        let handover = if is_live { release(draft, key, &mut session)? } else { None };
        Ok(FinishAnswer { finished: Ok(None), handover })
    }

    /// What its turn leaves.
    fn ending(
        &self,
        event: &Event,
        mut attempts: Attempts,
        ending: &FinishAs,
        now: Timestamp,
    ) -> Event {
        let attempt = attempts.claimed;
        match ending {
            FinishAs::Succeeded(result, ttl) => Event {
                expire_time: now.after(*ttl),
                state: State::Handled(ProcessedBy::Turn(attempt), Some(Arc::clone(result))),
                ..ended(event, attempts, None, now)
            },
            FinishAs::Rejected(detail, ttl) => Event {
                expire_time: now.after(*ttl),
                state: State::Handled(ProcessedBy::Rejected(attempt), None),
                ..ended(event, attempts, detail.clone(), now)
            },
            FinishAs::Failed(detail) => {
                let mut ended = ended(event, attempts, detail.clone(), now);
                if attempts.are_spent(self.turn.max_attempts) {
                    ended.state = State::Handled(ProcessedBy::GaveUp(attempt), None);
                }
                ended
            }
            FinishAs::Broken => {
                attempts.uncounted += 1;
                ended(event, attempts, event.detail.clone(), now)
            }
            FinishAs::Abandoned(_) | FinishAs::Unanswered => {
                attempts.claimed -= 1;
                ended(event, attempts, event.detail.clone(), now)
            }
        }
    }

    /// What is known of a turn whose claim is not live: it may have ended as it is to.
    fn done_before(&self, draft: &mut Draft<'_>) -> Result<Option<EventRow>, TurnLost> {
        let (EventName { team, event }, now) = (name(&self.turn), draft.now());
        let row = draft.event(team, event).filter(|event| event.expire_time > now);
        let row = row.map(|event| event.row(now));
        match row.filter(|row| row.is_of(self.turn.request)) {
            Some(row) if self.is_already_applied(&row) => Ok(handled(row)),
            _ if self.doubt.may_be_done() => Ok(None),
            _ => Err(TurnLost::Claim),
        }
    }
}

/// An event's row without its digest, if it is handled.
fn handled(row: EventRow) -> Option<EventRow> {
    matches!(row, EventRow::Processed(_)).then(|| row.with_digest(None))
}
