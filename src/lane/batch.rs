//! One batch: run as a whole, or in parts where an item of it is at fault.

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash},
    panic::AssertUnwindSafe,
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::{Executes, Job, Op};
use crate::{
    store::{StoreError, Verdict},
    telemetry::{LaneMetrics, WriteFailure, WriteHealth},
};

/// How many statements look for the item that a batch fails for, while all of them fail: six
/// halvings, which find one success where fewer than one item in 32 is at fault, wherever
/// those stand.
const MAX_FRUITLESS: usize = 64;
/// How long the parts of a batch that fails are tried: each may wait for a row that somebody
/// outside has locked, and all callers of the batch wait for it.
const MAX_ISOLATION: Duration = Duration::from_secs(3);

/// Runs what the batch takes of `jobs`, and notes the answers.
pub(super) async fn run<O: Op, S: Executes<O>>(
    store: &mut S,
    jobs: &mut [Job<O>],
    metrics: &LaneMetrics,
) {
    let (open, ops): (Vec<(usize, usize)>, Vec<&O>) = jobs
        .iter()
        .enumerate()
        .flat_map(|(job, of)| of.batched().map(move |(op, asked)| ((job, op), asked)))
        .unzip();

    // Equal keys come together, sorted: a statement over arrays must not hold a
    // key twice, and two statements that take their keys in one order cannot
    // deadlock. The sort is stable, so the first comer speaks for its group.
    let mut order: Vec<usize> = (0..ops.len()).collect();
    order.sort_by(|&a, &b| ops[a].key().cmp(&ops[b].key()));
    let groups: Vec<&[usize]> = order.chunk_by(|&a, &b| ops[a].key() == ops[b].key()).collect();
    let leaders: Vec<&O> = groups.iter().map(|group| ops[group[0]]).collect();

    let batch = AssertUnwindSafe(isolate(store, &leaders)).catch_unwind().await;
    let rows = batch.unwrap_or_else(|_| {
        store.reset();
        leaders.iter().map(|_| Err(StoreError::internal("a batch panicked"))).collect()
    });

    if let Some(writes) = &metrics.writes {
        note(writes, &leaders, &rows);
    }

    let mut decided = Vec::with_capacity(open.len());
    for (group, row) in groups.iter().zip(&rows) {
        for &member in *group {
            let answer = match row {
                Ok(Verdict::Decided(row)) => match ops[member].answer(row) {
                    Verdict::Decided(answer) => Ok(answer),
                    Verdict::Retry | Verdict::Failed(_) => continue,
                },
                Ok(Verdict::Retry | Verdict::Failed(_)) => continue,
                Err(error) if jobs[open[member].0].persists(error) => continue,
                Err(error) if ops[member].is_read() => Err(error.clone().of_read()),
                Err(error) => {
                    let is_asked = jobs[open[member].0].has_caller();
                    if is_asked && matches!(error, StoreError::OutcomeUnknown(_)) {
                        metrics.unknown_outcomes.inc();
                    }
                    Err(error.clone())
                }
            };
            decided.push((open[member], answer));
        }
    }
    for ((job, op), answer) in decided {
        jobs[job].decide(op, answer);
    }
}

/// Notes what became of a batch of writes. A row that another transaction goes before or has
/// locked, or whose text is at fault, says nothing about the store.
fn note<O: Op>(writes: &WriteHealth, ops: &[&O], rows: &[Result<Verdict<O::Row>, StoreError>]) {
    if rows.iter().any(|row| matches!(row, Ok(Verdict::Decided(_)))) {
        writes.succeeded();
        return;
    }
    for (op, row) in ops.iter().zip(rows) {
        match row {
            Ok(_)
            | Err(StoreError::InvalidData(_) | StoreError::LockTimeout(_) | StoreError::Conflict) =>
                {}
            Err(error) if is_common_to_all(error) => writes.failed(WriteFailure::OfAll),
            Err(StoreError::Unusable(_)) => writes.failed(WriteFailure::Unusable(hash(op.key()))),
            Err(_) => writes.failed(WriteFailure::Rejected(hash(op.team()))),
        }
    }
}

fn hash(subject: impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(subject)
}

/// Whether an error is one of every statement, whatever it is about.
const fn is_common_to_all(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_) | StoreError::Misconfigured(_)
    )
}

/// What an item is answered that was tried only in parts that failed with `failure`, which may
/// be another item's fault. Nothing of it was written.
fn untried(failure: &StoreError) -> StoreError {
    match failure {
        StoreError::InvalidData(cause) | StoreError::Rejected(cause) => StoreError::LockTimeout(
            format!("not attempted, because too many items of its batch failed: {cause}").into(),
        ),
        failure => failure.clone(),
    }
}

/// Runs `ops` as one batch. If one of them may be what the store fails for, runs halves of
/// it, and so on down to the one that is at fault.
///
/// The largest parts go first, so that a success shows early that the failure is not common
/// to all. Without one, [`MAX_FRUITLESS`] statements are enough: a failure that is common to
/// all items must not cost two statements for each of them. After [`MAX_ISOLATION`] no
/// further part is tried.
async fn isolate<O: Op, S: Executes<O>>(
    store: &mut S,
    ops: &[&O],
) -> Vec<Result<Verdict<O::Row>, StoreError>> {
    let mut answers: Vec<_> = ops.iter().map(|_| None).collect();
    let mut open: VecDeque<Vec<usize>> = VecDeque::new();
    open.push_back((0..ops.len()).collect());
    let (begun, mut tried, mut succeeded) = (Instant::now(), 0, false);
    // What the rest is answered, once no further part is tried.
    let mut rest: Option<StoreError> = None;
    let mut latest: Option<StoreError> = None;
    while let Some(part) = open.pop_front() {
        if begun.elapsed() >= MAX_ISOLATION {
            rest = rest.or_else(|| latest.as_ref().map(untried));
        }
        if let Some(failure) = &rest {
            for place in part {
                answers[place] = Some(Err(failure.clone()));
            }
            continue;
        }
        tried += 1;
        let asked: Vec<&O> = part.iter().map(|&place| ops[place]).collect();
        let (failed, failure) = match store.execute(&asked).await {
            Ok(rows) if rows.len() == part.len() => {
                let (mut failed, mut failure, mut common) = (Vec::new(), None, None);
                for (place, row) in part.iter().copied().zip(rows) {
                    answers[place] = Some(match row {
                        // It may have been written. A second run, beside others that are tried again, would not
                        // know that.
                        Verdict::Failed(error) if is_common_to_all(&error) => {
                            common = Some(error.clone());
                            Err(error)
                        }
                        Verdict::Failed(error) => {
                            failed.push(place);
                            failure = Some(error.clone());
                            Err(error)
                        }
                        row => {
                            succeeded = true;
                            Ok(row)
                        }
                    });
                }
                let Some(failure) = failure.or(common) else { continue };
                (failed, failure)
            }
            Err(StoreError::Conflict) => {
                for place in part {
                    answers[place] = Some(Ok(Verdict::Retry));
                }
                continue;
            }
            Ok(_) => (
                part.clone(),
                StoreError::internal("the store answered for more or fewer than it was asked"),
            ),
            // A statement before this one may have changed something.
            Err(failure) if tried > 1 && is_common_to_all(&failure) => {
                (part.clone(), failure.after_change())
            }
            Err(failure) => (part.clone(), failure),
        };
        if is_common_to_all(&failure) {
            // Those that failed beside others know their own error.
            rest = Some(failure.clone());
        } else if !succeeded && tried >= MAX_FRUITLESS {
            rest = Some(untried(&failure));
        }
        let is_alone = part.len() == 1 || rest.is_some();
        for &place in &failed {
            answers[place] = Some(Err(match &answers[place] {
                Some(Err(own)) => own.clone(),
                _ => failure.clone(),
            }));
        }
        if !is_alone {
            let (one, other) = failed.split_at(failed.len() / 2);
            let halves = [one.to_vec(), other.to_vec()];
            open.extend(halves.into_iter().filter(|half| !half.is_empty()));
        }
        latest = Some(failure);
    }
    let missing = || Err(StoreError::internal("the store returned no answer for an item"));
    answers.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Reset;

    /// What the store answers to an item.
    #[derive(Clone, Copy, PartialEq)]
    enum Item {
        Fine,
        AtFault,
        Unknown,
    }

    impl Op for Item {
        type Key<'a> = ();
        type Row = ();
        type Answer = ();

        fn key(&self) {}

        fn team(&self) -> &'static str {
            ""
        }

        fn answer(&self, (): &()) -> Verdict<()> {
            Verdict::Decided(())
        }
    }

    /// How many unknown outcomes there were.
    struct Answering(usize);

    impl Reset for Answering {
        fn reset(&mut self) {}
    }

    impl Executes<Item> for Answering {
        async fn execute(&mut self, ops: &[&Item]) -> Result<Vec<Verdict<()>>, StoreError> {
            self.0 += ops.iter().filter(|op| ***op == Item::Unknown).count();
            let verdict = |op: &&Item| match op {
                Item::Fine => Verdict::Decided(()),
                Item::AtFault => Verdict::Failed(StoreError::Rejected("a rule".into())),
                Item::Unknown => Verdict::Failed(StoreError::OutcomeUnknown("lost".into())),
            };
            Ok(ops.iter().map(verdict).collect())
        }
    }

    /// A second run would not know that the first may have been written.
    #[tokio::test]
    async fn what_may_have_been_written_is_not_run_again_beside_an_item_at_fault() {
        use Item::{AtFault, Fine, Unknown};
        for items in [[Unknown, AtFault, Fine], [AtFault, Fine, Unknown], [Fine, Unknown, AtFault]]
        {
            let mut store = Answering(0);
            let ops: Vec<&Item> = items.iter().collect();
            let answers = isolate(&mut store, &ops).await;
            assert_eq!(store.0, 1);
            for (item, answer) in items.iter().zip(answers) {
                assert!(match item {
                    Fine => matches!(answer, Ok(Verdict::Decided(()))),
                    AtFault => matches!(answer, Err(StoreError::Rejected(_))),
                    Unknown => matches!(answer, Err(StoreError::OutcomeUnknown(_))),
                });
            }
        }
    }
}
