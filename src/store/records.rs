//! Stores that keep records, and leave every decision to the rules.

use std::{collections::BTreeMap, future::Future, time::Duration};

use super::{
    AdminChanges, Changed, EventStore, Look, Looked, Prolonged, SessionStore, StoreError,
    TurnStore, Turned, Verdict,
};
use crate::{
    domain::{
        Acquire, Acquired, Begin, Enqueue, Enqueued, EventKey, EventRow, Finish, LeaseId, Mark,
        Prolong, Release, Renew, Renewed, SessionKey, SessionRow, Timestamp,
    },
    rules::{
        Draft, Ids, Operation, Plan, RuleError, Snapshot, State, Wanted,
        event::ForgetEvent,
        queue::{HandOn, Leave},
        session::{BindEpic, CloseSession, ForceRelease, Released, RenewWithin},
        turn::{BeginAnswer, FinishAnswer, ProlongWithin},
    },
};

/// How often an operation is decided in one go while other writers are faster.
const ROUNDS: usize = 3;

/// A connection to a store of records.
pub trait Records: Send {
    /// Reads what is wanted, as it stands at one moment.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written.
    fn read(
        &mut self,
        wanted: &Wanted,
    ) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// Writes those of `plans` that hold, in their order, each as a whole; all in one atomic
    /// step. Answers in order.
    ///
    /// # Errors
    /// [`StoreError`]; then no plan is known to be written.
    fn apply(
        &mut self,
        plans: Vec<Plan>,
    ) -> impl Future<Output = Result<Vec<Applied>, StoreError>> + Send;

    /// The store's time, if it is known without asking.
    fn known_time(&self) -> Option<Timestamp>;

    /// New ids.
    fn ids(&mut self) -> &mut Ids;
}

/// A connection that leaves every decision to the rules.
pub trait Decided: Records {}

/// What became of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It is written; these are the tickets of the places that it adds.
    Written(Vec<(LeaseId, i64)>),
    /// Something that it rests on has changed: nothing of it is written.
    Conflict,
}

/// Decides `ops`, in their order, and writes what they come to; several that are about the same
/// records are written together. Answers in order, each with the tickets of places that it
/// took: [`Verdict::Again`] where other writers were faster each time.
pub(super) async fn execute<S: Records, O: Operation + Sync>(
    store: &mut S,
    ops: &[O],
) -> Result<Vec<Verdict<(O::Answer, Vec<(LeaseId, i64)>)>>, StoreError>
where
    O::Answer: Send,
{
    let mut answers: Vec<_> = ops.iter().map(|_| Verdict::Again).collect();
    let mut open: Vec<usize> = (0..ops.len()).collect();
    for round in 0..ROUNDS {
        let assumed = store.known_time().filter(|_| round == 0);
        let snapshot = match assumed.filter(|_| ops.iter().all(Operation::is_usually_new)) {
            Some(now) => Snapshot::empty(now),
            None => {
                let mut wanted = Wanted::default();
                open.iter().for_each(|&place| ops[place].wants(&mut wanted));
                store.read(&wanted).await?
            }
        };
        let mut conflicts = Vec::new();
        let (mut plans, mut decided) = (Vec::new(), Vec::new());
        for group in groups(ops, &open) {
            let (plan, of_group) =
                decide(&snapshot, store.ids(), ops, &group).map_err(StoreError::fault)?;
            if plan.is_empty() {
                for (place, answer) in of_group {
                    answers[place] = Verdict::Decided((answer, Vec::new()));
                }
            } else {
                plans.push(plan);
                decided.push(of_group);
            }
        }
        if !plans.is_empty() {
            for (of_group, applied) in decided.into_iter().zip(store.apply(plans).await?) {
                for (place, answer) in of_group {
                    match &applied {
                        Applied::Written(tickets) => {
                            answers[place] = Verdict::Decided((answer, tickets.clone()));
                        }
                        Applied::Conflict => conflicts.push(place),
                    }
                }
            }
        }
        if conflicts.is_empty() {
            break;
        }
        conflicts.sort_unstable();
        open = conflicts;
    }
    Ok(answers)
}

/// The plan of a group of operations, and what each of them comes to.
fn decide<O: Operation>(
    snapshot: &Snapshot,
    ids: &mut Ids,
    ops: &[O],
    group: &[usize],
) -> Result<(Plan, Vec<(usize, O::Answer)>), RuleError> {
    let mut draft = Draft::new(snapshot, ids);
    let mut answers = Vec::with_capacity(group.len());
    for &place in group {
        answers.push((place, ops[place].decide(&mut draft)?));
    }
    Ok((draft.into_plan(), answers))
}

/// Parts operations into groups that are about different records, each in its order.
fn groups<O: Operation>(ops: &[O], open: &[usize]) -> Vec<Vec<usize>> {
    if let [_] = open {
        return vec![open.to_vec()];
    }
    let mut sessions: BTreeMap<SessionKey, usize> = BTreeMap::new();
    let mut events: BTreeMap<EventKey, usize> = BTreeMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::with_capacity(open.len());
    for &place in open {
        let mut wanted = Wanted::default();
        ops[place].wants(&mut wanted);
        let of_sessions = wanted.sessions.keys().filter_map(|key| sessions.get(key));
        let of_events = wanted.events.keys().filter_map(|key| events.get(key));
        let mut met: Vec<usize> = of_sessions.chain(of_events).copied().collect();
        met.sort_unstable();
        met.dedup();
        let own = met.first().copied().unwrap_or_else(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        for other in met.into_iter().skip(1) {
            let joined = std::mem::take(&mut groups[other]);
            groups[own].extend(joined);
            let moved = sessions.values_mut().chain(events.values_mut());
            moved.filter(|group| **group == other).for_each(|group| *group = own);
        }
        groups[own].push(place);
        sessions.extend(wanted.sessions.into_keys().map(|key| (key, own)));
        events.extend(wanted.events.into_keys().map(|key| (key, own)));
    }
    groups.retain(|group| !group.is_empty());
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

/// What operations come to, in order, where no tickets are to be known.
pub(super) async fn answers<S: Records, O: Operation + Sync>(
    store: &mut S,
    ops: &[O],
) -> Result<Vec<Verdict<O::Answer>>, StoreError>
where
    O::Answer: Send,
{
    let answers = execute(store, ops).await?;
    Ok(answers.into_iter().map(|verdict| verdict.map(|(answer, _)| answer)).collect())
}

/// What one operation comes to.
pub(super) async fn answer<S: Records, O: Operation + Sync>(
    store: &mut S,
    op: O,
) -> Result<Verdict<O::Answer>, StoreError>
where
    O::Answer: Send,
{
    let answer = answers(store, &[op]).await?.pop();
    answer.ok_or_else(|| StoreError::fault("an operation has no answer"))
}

impl<S: Decided> EventStore for S {
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

/// Takes leases, and gives leases back.
pub(super) async fn change<S: Records>(
    store: &mut S,
    acquires: &[&Acquire],
    releases: &[&Release],
) -> Result<Changed, StoreError> {
    let acquires = acquires.iter().map(|acquire| Change::Acquire(acquire));
    let releases = releases.iter().map(|release| Change::Release(release));
    let acquired = acquires.len();
    let mut changed = Changed {
        taken: vec![Verdict::Again; acquired],
        ended: vec![Verdict::Again; releases.len()],
        handed: Vec::new(),
    };
    let ops: Vec<Change<'_>> = acquires.chain(releases).collect();
    for (place, verdict) in answers(store, &ops).await?.into_iter().enumerate() {
        match verdict {
            Verdict::Decided(ChangeAnswer::Acquired((row, handed))) => {
                changed.handed.extend(handed);
                changed.taken[place] = Verdict::Decided(row);
            }
            Verdict::Decided(ChangeAnswer::Released(Released { ended, handed })) => {
                changed.handed.extend(handed);
                changed.ended[place - acquired] = Verdict::Decided(ended);
            }
            _ => {}
        }
    }
    Ok(changed)
}

/// Takes places in queues.
pub(super) async fn enqueue<S: Records>(
    store: &mut S,
    asked: &[&Enqueue],
) -> Result<Vec<Verdict<Enqueued>>, StoreError> {
    let enqueued = execute(store, asked).await?.into_iter().zip(asked);
    Ok(enqueued
        .map(|(verdict, asked)| {
            verdict.map(|(enqueued, tickets)| {
                let ticket = tickets.iter().find(|(lease, _)| *lease == asked.lease);
                ticket.map_or(enqueued, |(_, ticket)| Enqueued::Waits(*ticket))
            })
        })
        .collect())
}

/// Hands sessions on.
pub(super) async fn hand_on<S: Records>(
    store: &mut S,
    keys: &[&SessionKey],
) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
    let ops: Vec<_> = keys.iter().map(|key| HandOn(key)).collect();
    let verdicts = answers(store, &ops).await?;
    Ok(verdicts.into_iter().map(|verdict| verdict.map(|(row, _)| row)).collect())
}

impl<S: Decided> SessionStore for S {
    async fn change(
        &mut self,
        acquires: &[&Acquire],
        releases: &[&Release],
    ) -> Result<Changed, StoreError> {
        change(self, acquires, releases).await
    }

    async fn enqueue(&mut self, asked: &[&Enqueue]) -> Result<Vec<Verdict<Enqueued>>, StoreError> {
        enqueue(self, asked).await
    }

    async fn hand_on(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        hand_on(self, keys).await
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
        renew(self, asked, max_hold).await
    }

    async fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Option<SessionRow>>, StoreError> {
        let mut wanted = Wanted::default();
        keys.iter().for_each(|key| wanted.session(key));
        let snapshot = self.read(&wanted).await?;
        Ok(keys.iter().map(|key| snapshot.sessions.get(*key)?.row(snapshot.now)).collect())
    }
}

/// Lets leases run on.
pub(super) async fn renew<S: Records>(
    store: &mut S,
    asked: &[&Renew],
    max_hold: Duration,
) -> Result<Vec<Verdict<Renewed>>, StoreError> {
    let ops: Vec<_> = asked.iter().map(|renew| RenewWithin(renew, max_hold)).collect();
    answers(store, &ops).await
}

/// Lets turns run on.
pub(super) async fn prolong_turns<S: Records>(
    store: &mut S,
    asked: &[&Prolong],
    max_hold: Duration,
) -> Result<Vec<Verdict<Prolonged>>, StoreError> {
    let ops: Vec<_> = asked.iter().map(|prolong| ProlongWithin(prolong, max_hold)).collect();
    answers(store, &ops).await
}

/// Leaves places, which answers only once it is done.
pub(super) async fn leave<S: Records>(
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

/// Begins turns, and ends turns.
pub(super) async fn change_turns<S: Records>(
    store: &mut S,
    begins: &[&Begin],
    finishes: &[&Finish],
) -> Result<Turned, StoreError> {
    let mut turned = Turned::nothing(begins.len(), finishes.len());
    let finished = finishes.len();
    let finishes = finishes.iter().map(|finish| TurnChange::Finish(finish));
    let begins = begins.iter().map(|begin| TurnChange::Begin(begin));
    let ops: Vec<TurnChange<'_>> = finishes.chain(begins).collect();
    for (place, verdict) in answers(store, &ops).await?.into_iter().enumerate() {
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
                turned.begun[place - finished] = Verdict::Decided(begun);
            }
            _ => {}
        }
    }
    Ok(turned)
}

impl<S: Decided> TurnStore for S {
    async fn change_turns(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
    ) -> Result<Turned, StoreError> {
        change_turns(self, begins, finishes).await
    }

    async fn prolong_turns(
        &mut self,
        asked: &[&Prolong],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Prolonged>>, StoreError> {
        prolong_turns(self, asked, max_hold).await
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
