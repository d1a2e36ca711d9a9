//! Turns.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use crate::{
    Delivery, Error, Stored,
    clock::now,
    errors::{Cause, Kept, Secret},
    failure::Problem,
    hold::{Command, Flow},
    options::duration,
    pb::TurnEnd,
    turn_flow::TurnFlow,
    view::view,
};

/// The least effort for an end whose result counts.
const FINISH_EFFORT: Duration = Duration::from_secs(5);

/// One event, claimed, in its conversation's turn. A clone is the same turn.
///
/// Handlers that [`TurnRequest::run`](crate::TurnRequest::run) calls only look at it. A turn of
/// [`TurnRequest::begin`](crate::TurnRequest::begin) is ended by its [`TurnScope`](crate::TurnScope).
#[derive(Clone)]
pub struct Turn {
    pub(crate) flow: Arc<TurnFlow>,
}

impl Turn {
    view!(flow.hold);

    /// Names the turn for [`Gate::adopt`](crate::Gate::adopt) in another process. Keep it secret.
    #[must_use]
    pub fn id(&self) -> String {
        self.flow.hold.state().id.clone()
    }

    /// The tenant, if the delivery or its session names it.
    #[must_use]
    pub fn team(&self) -> String {
        self.flow.hold.state().team.clone()
    }

    /// How many times the event has been claimed, this claim included. 0 if unguarded.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.flow.hold.state().attempt
    }

    /// The delivery; an empty one if the turn was adopted.
    #[must_use]
    pub fn delivery(&self) -> &Delivery {
        &self.flow.delivery
    }

    /// Refuses the event for good, because no retry can succeed: a handler returns this as its error,
    /// and its turn ends REJECTED.
    ///
    /// ```
    /// # use oncegate_client::{Error, Turn};
    /// # fn handler(turn: Turn) -> Result<(), Error> {
    /// return Err(turn.reject("the payload has no command"));
    /// # }
    /// ```
    #[must_use = "return it as the handler's error"]
    pub fn reject(&self, detail: impl Into<String>) -> Error {
        let (detail, is_kept) = (detail.into(), Kept::default());
        self.flow.hold.state().rejection = Some((detail.clone(), is_kept.downgrade()));
        Error::Rejected { detail, is_kept }
    }

    /// Ends the turn for good. The result is what the handler returned.
    pub(crate) async fn settle(&self, mut end: TurnEnd, result: &Stored) -> Result<(), Error> {
        let hold = &self.flow.hold;
        if !self.is_guarded() {
            return Ok(()); // nobody ends it, or another process does
        }
        if !hold.finish(None) {
            return Err(hold.over_by().with_value(result));
        }
        end.ttl = hold.config.event_ttl.or(self.flow.delivery.ttl).and_then(duration);
        let until = hold.trusted_end().max(now() + FINISH_EFFORT);
        let (answer, answered) = oneshot::channel();
        hold.command(Command::End { end, until, answer });
        // Without an answer, its keeper has ended with its runtime.
        let ended = answered.await.unwrap_or_else(|_| Err(Error::Closed.into()));
        ended.map_err(|problem| self.unsettled(problem, result))
    }

    /// Says what it means that an end has failed.
    fn unsettled(&self, problem: Problem, result: &Stored) -> Error {
        let source = match problem {
            Problem::Failed(failure) => {
                if let Some(reason) = failure.lost() {
                    return self.flow.hold.lost_by(reason, failure.source).with_value(result);
                }
                if !failure.retryable() {
                    return failure.public();
                }
                failure.source
            }
            Problem::Final(_) => Cause::default(), // the gate was closed
        };
        Error::OutcomeUnknown { turn_id: Secret::new(self.id()), value: result.clone(), source }
    }

    /// Ends the turn FAILED. Returns what is to be awaited, if somebody waits; the keeper does it anyway.
    pub(crate) fn fail(&self, detail: impl Into<String>) -> Option<oneshot::Receiver<()>> {
        let hold = &self.flow.hold;
        if !self.is_guarded() || !hold.finish(None) {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        hold.command(Command::GiveBack { detail: detail.into(), answer: Some(answer) });
        Some(answered)
    }

    /// Leaves the turn to another process, which has the TTL to [`Gate::adopt`](crate::Gate::adopt) the
    /// returned id; `None` if the handler runs without a turn. The turn is over here, and what its handler
    /// returns does not end it.
    ///
    /// # Errors
    ///
    /// [`Error::TurnLost`]; or [`Error::Unavailable`] and the like, and the turn stays here.
    pub async fn detach(&self) -> Result<Option<String>, Error> {
        self.check()?;
        if !self.held() {
            return Ok(None);
        }
        let hold = &self.flow.hold;
        let until = hold.trusted_end().min(now() + hold.config.patience);
        if let Err(problem) = self.flow.renew(until).await {
            return Err(match problem {
                Problem::Failed(failure) => match failure.lost() {
                    Some(reason) => hold.lost_by(reason, failure.source),
                    None => failure.public(),
                },
                Problem::Final(error) => error,
            });
        }
        if !hold.finish(None) {
            return Err(hold.over_by());
        }
        hold.state().detached = true;
        hold.command(Command::Leave);
        Ok(Some(self.id()))
    }

    fn is_guarded(&self) -> bool {
        let state = self.flow.hold.state();
        state.held && !state.detached
    }

    /// Why the handler refused the event, if its error is that, or still has that within it, or says so.
    pub(crate) fn rejection(&self, error: &impl fmt::Display) -> Option<String> {
        let (detail, kept) = self.flow.hold.state().rejection.clone()?;
        // Without a detail, the text of any refusal would do, such as that of another server.
        let is_said =
            || !detail.is_empty() && format!("{error:#}").contains(&format!("rejected: {detail}"));
        let is_it = kept.strong_count() > 0 || is_said();
        is_it.then_some(detail)
    }

    /// Another run may have the event: it was lost, or it is not known how it ended. There is none while the
    /// gate is closed or denied, and after `MaxHold` it would be as long again.
    #[cfg(feature = "slack")]
    pub(crate) fn is_uncertain(&self) -> bool {
        use crate::{
            EndOutcome::{Lost, Unknown},
            LossReason::{Closed, Denied, MaxHold},
        };
        let state = self.flow.hold.state();
        match state.loss {
            Some(reason) => !matches!(reason, MaxHold | Closed | Denied),
            None => matches!(state.ended, Some(Lost | Unknown)),
        }
    }

    /// The latest reason for which the handler refused the event.
    #[cfg(feature = "webhook")]
    pub(crate) fn latest_rejection(&self) -> Option<String> {
        self.flow.hold.state().rejection.clone().map(|(detail, _)| detail)
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Turn");
        shown.field("attempt", &self.attempt()).field("held", &self.held());
        shown.field("fence", &self.fence()).finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "slack"))]
mod tests {
    use super::*;
    use crate::{EndOutcome, Gate, LossReason, hold::Hold};

    #[tokio::test]
    async fn what_another_turn_finds_out() {
        use LossReason::{ClaimLost, Closed, Denied, Expired, LeaseLost, MaxHold};
        let gate = Gate::builder().server("127.0.0.1:1").build().expect("a gate");
        let turn = || {
            let hold = Hold::new(gate.inner.clone(), gate.inner.config.clone(), false);
            Turn { flow: TurnFlow::new(hold, Delivery::default()) }
        };
        for reason in [ClaimLost, LeaseLost, Expired, MaxHold, Closed, Denied] {
            let turn = turn();
            assert!(turn.flow.hold.lose(reason, Cause::default()));
            assert_eq!(
                turn.is_uncertain(),
                matches!(reason, ClaimLost | LeaseLost | Expired),
                "{reason}"
            );
        }
        for outcome in
            [EndOutcome::Succeeded, EndOutcome::Failed, EndOutcome::Lost, EndOutcome::Unknown]
        {
            let turn = turn();
            assert!(turn.flow.hold.finish(None));
            turn.flow.hold.has_ended(outcome);
            let is_uncertain = matches!(outcome, EndOutcome::Lost | EndOutcome::Unknown);
            assert_eq!(turn.is_uncertain(), is_uncertain, "{outcome:?}");
        }
    }
}
