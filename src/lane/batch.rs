//! One batch: run as a whole, or in parts where an item of it is at fault.

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;

use super::{Executes, Job, Op};
use crate::{
    store::{StoreError, Verdict},
    telemetry::WriteHealth,
};

/// How many statements look for the item that a batch fails for, and for how long, while
/// all of them fail: six halvings, which find one success where fewer than one item in
/// 32 is at fault, wherever those stand.
const MAX_FRUITLESS: usize = 64;
const MAX_FRUITLESS_TIME: Duration = Duration::from_secs(3);

/// Runs what is undecided of `jobs` as one batch, and notes the answers.
pub(super) async fn run<O: Op, S: Executes<O>>(
    store: &mut S,
    jobs: &mut [Job<O>],
    writes: Option<&WriteHealth>,
) {
    let open: Vec<(usize, usize)> = jobs
        .iter()
        .enumerate()
        .flat_map(|(job, Job { answers, .. })| {
            let open = answers.iter().enumerate().filter(|(_, answer)| answer.is_none());
            open.map(move |(op, _)| (job, op))
        })
        .collect();
    let ops: Vec<&O> = open.iter().map(|&(job, op)| &jobs[job].ops[op]).collect();

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
        leaders.iter().map(|_| Err(StoreError::fault("a batch panicked"))).collect()
    });

    if let Some(writes) = writes {
        note(writes, &rows);
    }

    let mut decided = Vec::with_capacity(open.len());
    for (group, row) in groups.iter().zip(&rows) {
        for &member in *group {
            let answer = match row {
                Ok(Verdict::Decided(row)) => match ops[member].answer(row) {
                    Verdict::Decided(answer) => Ok(answer),
                    Verdict::Again => continue,
                },
                Ok(Verdict::Again) => continue,
                Err(error) if jobs[open[member].0].persists(error) => continue,
                Err(error) => Err(error.clone()),
            };
            decided.push((open[member], answer));
        }
    }
    for ((job, op), answer) in decided {
        jobs[job].answers[op] = Some(answer);
    }
}

/// Notes what became of a batch of writes. One that another goes before, or whose text is
/// at fault, tells nothing.
fn note<T>(writes: &WriteHealth, rows: &[Result<Verdict<T>, StoreError>]) {
    if rows.iter().any(|row| matches!(row, Ok(Verdict::Decided(_)))) {
        writes.succeeded();
    } else if let Some(Err(error)) = rows.iter().find(|row| row.is_err())
        && !matches!(error, StoreError::Refused(_))
    {
        writes.failed(is_common_to_all(error));
    }
}

/// Whether an error is one of every statement, whatever it is about.
const fn is_common_to_all(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_) | StoreError::Misconfigured(_))
}

/// Runs `ops` as one batch. If one of them may be what the store fails for, runs halves of
/// it, and so on down to the one that is at fault.
///
/// The largest parts go first, so that a success shows early that the failure is not common
/// to all. Without one, [`MAX_FRUITLESS`] statements are enough: a failure that is common to
/// all items must not cost two statements for each of them.
async fn isolate<O: Op, S: Executes<O>>(
    store: &mut S,
    ops: &[&O],
) -> Vec<Result<Verdict<O::Row>, StoreError>> {
    let mut answers: Vec<_> = ops.iter().map(|_| None).collect();
    let mut open = VecDeque::new();
    open.push_back(0..ops.len());
    let (begun, mut tried, mut succeeded) = (Instant::now(), 0, false);
    while let Some(part) = open.pop_front() {
        tried += 1;
        let failure = match store.execute(&ops[part.clone()]).await {
            Ok(rows) if rows.len() == part.len() => {
                succeeded = true;
                for (answer, row) in answers[part].iter_mut().zip(rows) {
                    *answer = Some(Ok(row));
                }
                continue;
            }
            Err(StoreError::Overtaken) => {
                answers[part].fill_with(|| Some(Ok(Verdict::Again)));
                continue;
            }
            Ok(_) => StoreError::fault("the store answered for more or fewer than it was asked"),
            Err(failure) => failure,
        };
        let is_common = is_common_to_all(&failure)
            || !succeeded && (tried >= MAX_FRUITLESS || begun.elapsed() >= MAX_FRUITLESS_TIME);
        if is_common || part.len() == 1 {
            answers[part].fill_with(|| Some(Err(failure.clone())));
        } else {
            let middle = part.start + part.len() / 2;
            open.extend([part.start..middle, middle..part.end]);
        }
        if is_common {
            // What is left fails like it.
            for part in open.drain(..) {
                answers[part].fill_with(|| Some(Err(failure.clone())));
            }
        }
    }
    let missing = || Err(StoreError::fault("an item without an answer"));
    answers.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect()
}
