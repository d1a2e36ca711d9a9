//! Stores that keep records, and leave every decision to the rules.

use std::{collections::BTreeMap, future::Future};

use super::{StoreError, Verdict};
use crate::{
    domain::{EventKey, LeaseId, SessionKey, Timestamp},
    rules::{Draft, Ids, Operation, Plan, RuleError, Snapshot, Wanted},
};

pub mod answers;
pub(super) mod place;
pub(super) mod state;

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

    /// Writes those of `plans` that hold, in their order, each as a whole. Answers in order.
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
#[derive(Debug, Clone)]
pub enum Applied {
    /// It is written; these are the tickets of the places that it adds.
    Written(Vec<(LeaseId, i64)>),
    /// Something that it rests on has changed: nothing of it is written.
    Conflict,
    /// The same, but an earlier run of the same statement may have written it.
    ConflictAfterLoss,
    /// Its statement failed, while other plans were written.
    Failed(StoreError),
}

/// Decides `ops`, in their order, and writes what they come to; several that are about the same
/// records are written together. Answers in order, each with the tickets of places that it
/// took: [`Verdict::Retry`] where another writer was faster.
pub(super) async fn execute<S: Records, O: Operation + Sync>(
    store: &mut S,
    ops: &[O],
) -> Result<Verdicts<O>, StoreError>
where
    O::Answer: Send,
{
    let mut answers: Verdicts<O> = ops.iter().map(|_| Verdict::Retry).collect();
    let mut open: Vec<usize> = (0..ops.len()).collect();
    let assumed = store.known_time().filter(|_| ops.iter().all(Operation::is_usually_new));
    // A wrong assumption is followed by a read. A conflict after that is for the caller to retry,
    // if it is still there: an operation of a caller that has gone must not take effect later than
    // what was asked since.
    for assumed in assumed.map(Some).into_iter().chain([None]) {
        match decide_once(store, ops, &open, assumed, &mut answers).await {
            Ok(conflicts) => open = conflicts,
            Err(error) if answers.iter().all(|verdict| matches!(verdict, Verdict::Retry)) => {
                return Err(error);
            }
            // What is decided has been committed.
            Err(error) => {
                let undecided = open.iter().filter(|&&place| {
                    // By now some of those that were open may be decided.
                    matches!(answers[place], Verdict::Retry)
                });
                for place in undecided.copied().collect::<Vec<_>>() {
                    answers[place] = Verdict::Failed(error.clone());
                }
                break;
            }
        }
        if open.is_empty() {
            break;
        }
    }
    Ok(answers)
}

/// Decides those of `ops` that are `open`, and notes what they come to; at the time `assumed`
/// without a read, as if there were no record. Answers those whose plans conflict, in order.
async fn decide_once<S: Records, O: Operation + Sync>(
    store: &mut S,
    ops: &[O],
    open: &[usize],
    assumed: Option<Timestamp>,
    answers: &mut Verdicts<O>,
) -> Result<Vec<usize>, StoreError>
where
    O::Answer: Send,
{
    let snapshot = if let Some(now) = assumed {
        Snapshot::empty(now)
    } else {
        let mut wanted = Wanted::default();
        for &place in open {
            ops[place].wants(&mut wanted);
        }
        store.read(&wanted).await?
    };
    let mut conflicts = Vec::new();
    let (mut plans, mut decided) = (Vec::new(), Vec::new());
    for group in groups(ops, open) {
        let (plan, of_group) =
            decide(&snapshot, store.ids(), ops, &group).map_err(StoreError::internal)?;
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
                    Applied::ConflictAfterLoss => {
                        ops[place].spend();
                        conflicts.push(place);
                    }
                    Applied::Failed(error) => answers[place] = Verdict::Failed(error.clone()),
                }
            }
        }
    }
    conflicts.sort_unstable();
    Ok(conflicts)
}

/// What the operations of a batch come to, in order, each with the tickets of its places.
type Verdicts<O> = Vec<Verdict<(<O as Operation>::Answer, Vec<(LeaseId, i64)>)>>;

/// What operations come to, each by its place in the batch.
type Answers<O> = Vec<(usize, <O as Operation>::Answer)>;

/// The plan of a group of operations, and what each of them comes to.
fn decide<O: Operation>(
    snapshot: &Snapshot,
    ids: &mut Ids,
    ops: &[O],
    group: &[usize],
) -> Result<(Plan, Answers<O>), RuleError> {
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
    for group in &mut groups {
        group.sort_unstable();
    }
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
    answer.ok_or_else(|| StoreError::internal("an operation has no answer"))
}

#[cfg(test)]
mod tests;
