//! What a store answers, where the rules decide.

use std::time::Duration;

use super::{Decided, Records, answer, answers, execute};
use crate::{
    domain::{
        Begin, Enqueued, EventKey, EventRow, Finish, LeaseId, Mark, RenewTurn, SessionKey,
        SessionRow,
    },
    rules::{
        Draft, Operation, RuleError, State, Wanted,
        event::ForgetEvent,
        queue::{HandOn, Leave},
        session::{BindEpic, CloseSession, ForceRelease, Released, RenewWithin},
        turn::{BeginAnswer, FinishAnswer, RenewTurnWithin},
    },
    store::{
        AdminChanges, EventStore, Look, Looked, RenewedTurn, SessionAnswer, SessionBatch,
        SessionOp, SessionStore, StoreError, TurnBatch, TurnStore, Verdict,
    },
};

impl<S: Decided> EventStore for S {
    async fn mark(&mut self, marks: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        answers(self, marks).await
    }

    async fn look_events(&mut self, asked: &[&Look]) -> Result<Vec<Option<Looked>>, StoreError> {
        look_events(self, asked).await
    }
}

/// Reads what is on record of events.
pub async fn look_events<S: Records>(
    store: &mut S,
    asked: &[&Look],
) -> Result<Vec<Option<Looked>>, StoreError> {
    let mut wanted = Wanted::default();
    for Look { key, with_result } in asked {
        wanted.event(&key.team, [key.event.as_str()], *with_result);
    }
    let snapshot = store.read(&wanted).await?;
    let looked = |look: &&Look| {
        let event = snapshot.events.get(&look.key)?;
        let result = match &event.state {
            State::Handled(_, result) if look.with_result => result.as_deref().cloned(),
            _ => None,
        };
        event.is_live(snapshot.now).then(|| (event.row(snapshot.now), result))
    };
    Ok(asked.iter().map(looked).collect())
}

impl Operation for SessionOp<'_> {
    /// And the session that it handed on.
    type Answer = (SessionAnswer, Option<SessionRow>);

    fn wants(&self, wanted: &mut Wanted) {
        match *self {
            Self::Acquire(acquire) => acquire.wants(wanted),
            Self::Release(release) => release.wants(wanted),
            Self::Renew(renew, max_hold) => RenewWithin(renew, max_hold).wants(wanted),
            Self::Enqueue(enqueue) => enqueue.wants(wanted),
            Self::Leave { key, lease, keep } => Leave { key, lease, keep }.wants(wanted),
            Self::HandOn(key) => HandOn(key).wants(wanted),
        }
    }

    fn spend(&self) {
        match self {
            Self::Acquire(acquire) => acquire.spend(),
            Self::Enqueue(enqueue) => enqueue.spend(),
            Self::Release(release) => release.spend(),
            _ => {}
        }
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Self::Answer, RuleError> {
        Ok(match *self {
            Self::Acquire(acquire) => (SessionAnswer::Acquired(acquire.decide(draft)?), None),
            Self::Release(release) => {
                let Released { ended, handover } = release.decide(draft)?;
                (SessionAnswer::Released(ended), handover)
            }
            Self::Renew(renew, max_hold) => {
                (SessionAnswer::Renewed(RenewWithin(renew, max_hold).decide(draft)?), None)
            }
            Self::Enqueue(enqueue) => (SessionAnswer::Enqueued(enqueue.decide(draft)?), None),
            Self::Leave { key, lease, keep } => {
                (SessionAnswer::Left(Leave { key, lease, keep }.decide(draft)?), None)
            }
            Self::HandOn(key) => {
                let (row, handover) = HandOn(key).decide(draft)?;
                (SessionAnswer::HandedOn(row), handover)
            }
        })
    }
}

/// Runs operations on sessions.
pub async fn change_sessions<S: Records>(
    store: &mut S,
    asked: &[SessionOp<'_>],
) -> Result<SessionBatch, StoreError> {
    let mut batch = SessionBatch::open(asked.len());
    let verdicts = execute(store, asked).await?.into_iter().zip(asked);
    for ((verdict, asked), open) in verdicts.zip(&mut batch.answers) {
        *open = verdict.map(|((answer, handover), tickets)| {
            batch.handovers.extend(handover);
            with_ticket(answer, asked, &tickets)
        });
    }
    Ok(batch)
}

/// The answer with the ticket that the store gave a new place.
fn with_ticket(
    answer: SessionAnswer,
    asked: &SessionOp<'_>,
    tickets: &[(LeaseId, i64)],
) -> SessionAnswer {
    let (SessionAnswer::Enqueued(enqueued), SessionOp::Enqueue(enqueue)) = (&answer, asked) else {
        return answer;
    };
    let ticket = tickets.iter().find(|(lease, _)| *lease == enqueue.acquire.lease.id());
    SessionAnswer::Enqueued(match (enqueued, ticket) {
        (Enqueued::Waits(_), Some((_, ticket))) => Enqueued::Waits(*ticket),
        // The earlier place is of the same batch.
        (Enqueued::TookOver(_, was), Some((_, ticket))) => Enqueued::TookOver(*ticket, *was),
        (enqueued, _) => *enqueued,
    })
}

/// Reads how sessions stand.
pub async fn look_sessions<S: Records>(
    store: &mut S,
    keys: &[&SessionKey],
) -> Result<Vec<Option<SessionRow>>, StoreError> {
    let mut wanted = Wanted::default();
    for key in keys {
        wanted.session(key);
    }
    let snapshot = store.read(&wanted).await?;
    Ok(keys.iter().map(|key| snapshot.sessions.get(*key)?.row(snapshot.now)).collect())
}

impl<S: Decided> SessionStore for S {
    async fn change_sessions(
        &mut self,
        asked: &[SessionOp<'_>],
    ) -> Result<SessionBatch, StoreError> {
        change_sessions(self, asked).await
    }

    async fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Option<SessionRow>>, StoreError> {
        look_sessions(self, keys).await
    }
}

/// Lets turns run on.
pub async fn renew_turns<S: Records>(
    store: &mut S,
    asked: &[&RenewTurn],
    max_hold: Duration,
) -> Result<Vec<Verdict<RenewedTurn>>, StoreError> {
    let ops: Vec<_> = asked.iter().map(|renew| RenewTurnWithin(renew, max_hold)).collect();
    answers(store, &ops).await
}

/// Begins a turn, or ends one.
enum TurnChange<'a> {
    Begin(&'a Begin),
    Finish(&'a Finish),
}

/// What became of a [`TurnChange`].
#[expect(clippy::large_enum_variant, reason = "an allocation for each turn costs more")]
enum TurnAnswer {
    Begun(BeginAnswer),
    Finished(FinishAnswer),
}

impl Operation for TurnChange<'_> {
    type Answer = TurnAnswer;

    fn wants(&self, wanted: &mut Wanted) {
        match self {
            Self::Begin(begin) => begin.wants(wanted),
            Self::Finish(finish) => finish.wants(wanted),
        }
    }

    fn spend(&self) {
        match self {
            Self::Begin(begin) => begin.spend(),
            Self::Finish(finish) => finish.spend(),
        }
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<TurnAnswer, RuleError> {
        match self {
            Self::Begin(begin) => begin.decide(draft).map(TurnAnswer::Begun),
            Self::Finish(finish) => finish.decide(draft).map(TurnAnswer::Finished),
        }
    }
}

/// Begins turns, and ends turns.
pub async fn change_turns<S: Records>(
    store: &mut S,
    begins: &[&Begin],
    finishes: &[&Finish],
) -> Result<TurnBatch, StoreError> {
    let mut batch = TurnBatch::open(begins.len(), finishes.len());
    let first_begin = finishes.len();
    let finishes = finishes.iter().map(|finish| TurnChange::Finish(finish));
    let begins = begins.iter().map(|begin| TurnChange::Begin(begin));
    let ops: Vec<TurnChange<'_>> = finishes.chain(begins).collect();
    for (place, verdict) in answers(store, &ops).await?.into_iter().enumerate() {
        match verdict {
            Verdict::Decided(TurnAnswer::Finished(FinishAnswer { finished, handover })) => {
                batch.handovers.extend(handover);
                batch.finishes[place] = Verdict::Decided(finished);
            }
            Verdict::Decided(TurnAnswer::Begun(answer)) => {
                let BeginAnswer { begun, orphan, lapsed, gave_up, handover } = answer;
                batch.handovers.extend(handover);
                batch.orphans.extend(orphan);
                batch.lapsed += u64::from(lapsed);
                batch.gave_up += u64::from(gave_up);
                batch.begins[place - first_begin] = Verdict::Decided(begun);
            }
            Verdict::Retry => {}
            // Its outcome may be unknown: decided again, it would be answered otherwise.
            Verdict::Failed(error) if place < first_begin => {
                batch.finishes[place] = Verdict::Failed(error);
            }
            Verdict::Failed(error) => batch.begins[place - first_begin] = Verdict::Failed(error),
        }
    }
    Ok(batch)
}

impl<S: Decided> TurnStore for S {
    async fn change_turns(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
    ) -> Result<TurnBatch, StoreError> {
        change_turns(self, begins, finishes).await
    }

    async fn renew_turns(
        &mut self,
        asked: &[&RenewTurn],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<RenewedTurn>>, StoreError> {
        renew_turns(self, asked, max_hold).await
    }
}

impl<S: Records> AdminChanges for S {
    async fn bind_epic(
        &mut self,
        key: &SessionKey,
        epic: Option<&str>,
    ) -> Result<Verdict<()>, StoreError> {
        answer(self, BindEpic(key, epic)).await
    }

    async fn force_release(&mut self, key: &SessionKey) -> Result<Verdict<bool>, StoreError> {
        answer(self, ForceRelease(key)).await
    }

    async fn close_session(&mut self, key: &SessionKey) -> Result<Verdict<bool>, StoreError> {
        answer(self, CloseSession(key)).await
    }

    async fn forget_event(
        &mut self,
        key: &EventKey,
    ) -> Result<Verdict<Option<EventRow>>, StoreError> {
        answer(self, ForgetEvent(key)).await
    }
}
