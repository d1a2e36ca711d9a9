//! What a store answers whose every decision is the rules'.

use std::time::Duration;

use super::{Records, answer, answers, execute};
use crate::{
    domain::{
        Acquire, Acquired, Begin, Enqueue, Enqueued, EventKey, EventRow, Finish, LeaseId, Mark,
        Prolong, Release, Renew, Renewed, SessionKey, SessionRow,
    },
    rules::{
        Draft, Operation, RuleError, State, Wanted,
        event::ForgetEvent,
        queue::{HandOn, Leave},
        session::{BindEpic, CloseSession, ForceRelease, Released, RenewWithin},
        turn::{BeginAnswer, FinishAnswer, ProlongWithin},
    },
    store::{
        AdminChanges, Changed, EventStore, Look, Looked, Prolonged, SessionStore, StoreError,
        TurnStore, Turned, Verdict,
    },
};

impl<S: Records> EventStore for S {
    async fn mark(&mut self, marks: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        answers(self, marks).await
    }

    async fn look_events(&mut self, asked: &[&Look]) -> Result<Vec<Option<Looked>>, StoreError> {
        let mut wanted = Wanted::default();
        for Look { key, with_result } in asked {
            wanted.event(&key.team, [key.event.as_str()], *with_result);
        }
        let snapshot = self.read(&wanted).await?;
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
}

/// Takes a lease, or gives one back.
enum Change<'a> {
    Acquire(&'a Acquire),
    Release(&'a Release),
}

/// What became of a [`Change`].
enum ChangeAnswer {
    Acquired((Acquired, Option<SessionRow>)),
    Released(Released),
}

impl Operation for Change<'_> {
    type Answer = ChangeAnswer;

    fn wants(&self, wanted: &mut Wanted) {
        match self {
            Self::Acquire(acquire) => acquire.wants(wanted),
            Self::Release(release) => release.wants(wanted),
        }
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<ChangeAnswer, RuleError> {
        match self {
            Self::Acquire(acquire) => acquire.decide(draft).map(ChangeAnswer::Acquired),
            Self::Release(release) => release.decide(draft).map(ChangeAnswer::Released),
        }
    }
}

impl<S: Records> SessionStore for S {
    async fn change(
        &mut self,
        acquires: &[&Acquire],
        releases: &[&Release],
    ) -> Result<Changed, StoreError> {
        let acquires = acquires.iter().map(|acquire| Change::Acquire(acquire));
        let releases = releases.iter().map(|release| Change::Release(release));
        let first_release = acquires.len();
        let mut changed = Changed {
            taken: vec![Verdict::Again; first_release],
            ended: vec![Verdict::Again; releases.len()],
            handed: Vec::new(),
        };
        let ops: Vec<Change<'_>> = acquires.chain(releases).collect();
        for (place, verdict) in answers(self, &ops).await?.into_iter().enumerate() {
            match verdict {
                Verdict::Decided(ChangeAnswer::Acquired((row, handed))) => {
                    changed.handed.extend(handed);
                    changed.taken[place] = Verdict::Decided(row);
                }
                Verdict::Decided(ChangeAnswer::Released(Released { ended, handed })) => {
                    changed.handed.extend(handed);
                    changed.ended[place - first_release] = Verdict::Decided(ended);
                }
                Verdict::Again => {}
                // It may have been committed: to decide it again would answer otherwise.
                Verdict::Unknown if place < first_release => {
                    changed.taken[place] = Verdict::Unknown;
                }
                Verdict::Unknown => changed.ended[place - first_release] = Verdict::Unknown,
            }
        }
        Ok(changed)
    }

    async fn enqueue(&mut self, asked: &[&Enqueue]) -> Result<Vec<Verdict<Enqueued>>, StoreError> {
        let enqueued = execute(self, asked).await?.into_iter().zip(asked);
        Ok(enqueued
            .map(|(verdict, asked)| {
                verdict.map(|(enqueued, tickets)| {
                    let ticket = tickets.iter().find(|(lease, _)| *lease == asked.lease);
                    ticket.map_or(enqueued, |(_, ticket)| Enqueued::Waits(*ticket))
                })
            })
            .collect())
    }

    async fn hand_on(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let ops: Vec<_> = keys.iter().map(|key| HandOn(key)).collect();
        let verdicts = answers(self, &ops).await?;
        Ok(verdicts.into_iter().map(|verdict| verdict.map(|(row, _)| row)).collect())
    }

    async fn leave(&mut self, places: &[(&SessionKey, LeaseId)]) -> Result<Vec<bool>, StoreError> {
        leave(self, places, false).await
    }

    async fn keep_places(
        &mut self,
        places: &[(&SessionKey, LeaseId)],
    ) -> Result<Vec<bool>, StoreError> {
        leave(self, places, true).await
    }

    async fn renew(
        &mut self,
        asked: &[&Renew],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Renewed>>, StoreError> {
        let ops: Vec<_> = asked.iter().map(|renew| RenewWithin(renew, max_hold)).collect();
        answers(self, &ops).await
    }

    async fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Option<SessionRow>>, StoreError> {
        let mut wanted = Wanted::default();
        for key in keys {
            wanted.session(key);
        }
        let snapshot = self.read(&wanted).await?;
        Ok(keys.iter().map(|key| snapshot.sessions.get(*key)?.row(snapshot.now)).collect())
    }
}

/// Leaves places, which answers only once it is done.
async fn leave<S: Records>(
    store: &mut S,
    places: &[(&SessionKey, LeaseId)],
    keep: bool,
) -> Result<Vec<bool>, StoreError> {
    let ops: Vec<_> = places.iter().map(|&(key, lease)| Leave { key, lease, keep }).collect();
    let verdicts = answers(store, &ops).await?;
    let left = verdicts.into_iter().map(|verdict| match verdict {
        Verdict::Decided(was_there) => Ok(was_there),
        _ => Err(StoreError::Overtaken),
    });
    left.collect()
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

    fn decide(&self, draft: &mut Draft<'_>) -> Result<TurnAnswer, RuleError> {
        match self {
            Self::Begin(begin) => begin.decide(draft).map(TurnAnswer::Begun),
            Self::Finish(finish) => finish.decide(draft).map(TurnAnswer::Finished),
        }
    }
}

impl<S: Records> TurnStore for S {
    async fn change_turns(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
    ) -> Result<Turned, StoreError> {
        let mut turned = Turned::nothing(begins.len(), finishes.len());
        let first_begin = finishes.len();
        let finishes = finishes.iter().map(|finish| TurnChange::Finish(finish));
        let begins = begins.iter().map(|begin| TurnChange::Begin(begin));
        let ops: Vec<TurnChange<'_>> = finishes.chain(begins).collect();
        for (place, verdict) in answers(self, &ops).await?.into_iter().enumerate() {
            match verdict {
                Verdict::Decided(TurnAnswer::Finished(FinishAnswer { kept, handed })) => {
                    turned.handed.extend(handed);
                    turned.kept[place] = Verdict::Decided(kept);
                }
                Verdict::Decided(TurnAnswer::Begun(answer)) => {
                    let BeginAnswer { begun, idle, lapsed, gave_up, handed } = answer;
                    turned.handed.extend(handed);
                    turned.idle.extend(idle);
                    turned.lapsed += u64::from(lapsed);
                    turned.gave_up += u64::from(gave_up);
                    turned.begun[place - first_begin] = Verdict::Decided(begun);
                }
                Verdict::Again => {}
                // It may have been committed: to decide it again would answer otherwise.
                Verdict::Unknown if place < first_begin => turned.kept[place] = Verdict::Unknown,
                Verdict::Unknown => turned.begun[place - first_begin] = Verdict::Unknown,
            }
        }
        Ok(turned)
    }

    async fn prolong_turns(
        &mut self,
        asked: &[&Prolong],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Prolonged>>, StoreError> {
        let ops: Vec<_> = asked.iter().map(|prolong| ProlongWithin(prolong, max_hold)).collect();
        answers(self, &ops).await
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

    async fn forget_event(&mut self, key: &EventKey) -> Result<Option<EventRow>, StoreError> {
        match answer(self, ForgetEvent(key)).await? {
            Verdict::Decided(row) => Ok(row),
            _ => Err(StoreError::Overtaken),
        }
    }
}
