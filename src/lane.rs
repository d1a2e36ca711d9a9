//! The batching actor: between the callers of one kind of operation and one
//! store connection.
//!
//! A lane takes whatever has queued while it was busy, runs it as one batch,
//! and answers each caller after the commit. There is no timer: a lone call is
//! run at once, and under load the batches grow by themselves until the round
//! trip and the fsync cost next to nothing a row. That is group commit without
//! the delay that PostgreSQL's own has:
//! <https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-COMMIT-DELAY>.
//!
//! Operations queue by team, and each batch takes of every team in turn (`turns`): one team's
//! backlog never delays another's call by more than a batch.
//!
//! Architecture Invariant: a caller that goes away never interrupts a batch.
//! Nothing cancels the task that owns the connection; a call that ended
//! before its batch began is left out of it.

use std::{future::Future, hash::Hash, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{runtime::Handle, sync::oneshot, time::Instant};

use crate::{
    backoff::Backoff,
    store::{Reset, StoreError, Verdict},
    telemetry::{BatchSpan, LaneMetrics},
};

mod batch;
mod job;
mod queue;
#[cfg(test)]
mod tests;
mod turns;

use job::Job;
use queue::{LaneEnd, Queue};

/// The most operations in one batch: beyond it a larger batch gains nothing and
/// only makes its callers wait. A batch request of the contract fits in one.
pub const MAX_BATCH: usize = 1_024;

/// The pause before a lane retries what a batch left undecided, while batches decide nothing. The
/// concurrent writer's batch takes about as long, and a store that hangs must not be asked at full
/// speed.
const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// Why a lane did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The queue is full.
    #[error("the server's work queue is full")]
    Overloaded,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CallError {
    /// The same error, of a call that has changed something before.
    #[must_use]
    pub fn after_change(self) -> Self {
        match self {
            Self::Store(error) => Self::Store(error.after_change()),
            Self::Overloaded => StoreError::unknown("a later step found the queue full").into(),
        }
    }
}

/// One operation that lanes can batch.
pub trait Op: Send + Sync + 'static {
    /// What operations with equal keys share, the answer's row.
    type Key<'a>: Ord + Hash;
    /// What the store answers for one key.
    type Row: Send + Sync;
    /// The reply to the caller.
    type Answer: Send + 'static;

    /// The operation's key. Of equal ones the first comer's is run.
    fn key(&self) -> Self::Key<'_>;

    /// The team that it is for: lanes are fair between teams, and a rule of the database's owner
    /// may reject a team's rows. Empty for what is for none.
    #[expect(clippy::unnecessary_literal_bound, reason = "writes return a part of themselves")]
    fn team(&self) -> &str {
        ""
    }

    /// Whether it changes nothing, so that its outcome is never unknown.
    fn is_read(&self) -> bool {
        false
    }

    /// What the committed `row` means to this operation, which was run itself, or for which an
    /// equal one was run; [`Verdict::Retry`] if that does not answer it.
    fn answer(&self, row: &Self::Row) -> Verdict<Self::Answer>;
}

/// A connection that runs one kind of operation.
pub trait Executes<O: Op>: Reset + Send + 'static {
    /// Runs a batch: each operation is decided and written in one atomic step. `ops` are sorted by
    /// key and hold no key twice. Answers in order.
    fn execute(
        &mut self,
        ops: &[&O],
    ) -> impl Future<Output = Result<Vec<Verdict<O::Row>>, StoreError>> + Send;
}

type Answers<O> = Vec<Result<<O as Op>::Answer, StoreError>>;

/// The callers' end of a lane. Cheap to clone. The lane's task ends when the
/// last one is dropped and the queue is empty.
pub struct Lane<O: Op>(Arc<Callers<O>>);

/// What all clones of a lane share.
struct Callers<O: Op>(Arc<Queue<O>>);

impl<O: Op> Drop for Callers<O> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<O: Op> Lane<O> {
    /// Starts a lane on `runtime` that owns `store`, queues at most `capacity`
    /// operations, and runs at most `batch` of them at once.
    pub fn start<S: Executes<O>>(
        runtime: &Handle,
        store: S,
        capacity: usize,
        batch: usize,
        metrics: LaneMetrics,
    ) -> Self {
        let queue = Arc::new(Queue::new(capacity, batch, metrics.clone()));
        runtime.spawn(drive(store, LaneEnd(Arc::clone(&queue)), metrics));
        Self(Arc::new(Callers(queue)))
    }

    /// Asks for one operation, at once; the future waits for its answer. Dropping
    /// it takes the question back while its batch has not begun, and only the
    /// answer after that. It is small: a call may wait for long.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] when the queue is full: at once; or later, if another
    /// team's call took the room before the batch began.
    pub fn call(&self, op: O) -> impl Future<Output = Result<O::Answer, CallError>> + use<O> {
        let answers = self.ask(vec![op]);
        async {
            let answer = answers.await?.pop();
            Ok(answer.ok_or_else(|| StoreError::internal("a lane returned no answer"))??)
        }
    }

    /// Asks for several operations, as [`Lane::call`] does for one. Answers each by itself, in
    /// order. The operations of each team are queued, or refused, together.
    pub fn call_all(
        &self,
        ops: Vec<O>,
    ) -> impl Future<Output = Vec<Result<O::Answer, CallError>>> + use<O> {
        let count = ops.len();
        let parts = by_team(ops).into_iter().map(|(places, ops)| {
            let answers = self.ask(ops);
            async move { (places, answers.await) }
        });
        let parts = join_all(parts);
        async move {
            let mut all: Vec<_> = (0..count).map(|_| None).collect();
            for (places, answers) in parts.await {
                let answers: Vec<_> = match answers {
                    Ok(answers) => answers.into_iter().map(|a| a.map_err(Into::into)).collect(),
                    Err(error) => places.iter().map(|_| Err(error.clone())).collect(),
                };
                for (place, answer) in places.into_iter().zip(answers) {
                    all[place] = Some(answer);
                }
            }
            let missing = || Err(StoreError::internal("a lane returned no answer").into());
            all.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect()
        }
    }

    /// Leaves an operation to the lane, without waiting for its answer.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] when the queue is full, [`StoreError::Unavailable`] when the
    /// lane has stopped.
    pub fn post(&self, op: O) -> Result<(), CallError> {
        self.0.0.push(vec![op], None)
    }

    /// Whether `count` operations of a team are sure to be refused now.
    fn would_refuse(&self, team: &str, count: usize) -> bool {
        self.0.0.would_refuse(team, count)
    }

    /// Queues operations of one team.
    fn ask(&self, ops: Vec<O>) -> impl Future<Output = Result<Answers<O>, CallError>> + use<O> {
        let (reply, answers) = oneshot::channel();
        let queued = self.0.0.push(ops, Some(reply));
        async {
            queued?;
            // Its task has ended, perhaps in the middle of this job.
            answers.await.map_err(|_| StoreError::unknown("the lane has stopped"))?
        }
    }
}

impl<O: Op> Clone for Lane<O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Splits operations by team, each part with the places of its operations. What a team is due in
/// a lane then does not depend on whose operations share a call with its own.
fn by_team<O: Op>(ops: Vec<O>) -> Vec<(Vec<usize>, Vec<O>)> {
    let Some(first) = ops.first() else { return Vec::new() };
    if ops.iter().all(|op| op.team() == first.team()) {
        return vec![((0..ops.len()).collect(), ops)];
    }
    let mut order: Vec<(usize, O)> = ops.into_iter().enumerate().collect();
    // Stable: a team's operations stay in order.
    order.sort_by(|(_, a), (_, b)| a.team().cmp(b.team()));
    let mut parts: Vec<(Vec<usize>, Vec<O>)> = Vec::new();
    for (place, op) in order {
        match parts.last_mut().filter(|(_, ops)| ops[0].team() == op.team()) {
            Some((places, ops)) => {
                places.push(place);
                ops.push(op);
            }
            None => parts.push((vec![place], vec![op])),
        }
    }
    parts
}

async fn drive<O: Op, S: Executes<O>>(mut store: S, queue: LaneEnd<O>, metrics: LaneMetrics) {
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    let mut pause = Duration::ZERO;
    while let Some(mut jobs) = queue.next(pause).await {
        let (mut wanted, mut done) = (Vec::with_capacity(jobs.len()), Vec::new());
        for job in jobs.drain(..) {
            if job.is_wanted() { wanted.push(job) } else { done.push(job) }
        }
        let size = wanted.iter().map(Job::slice).sum();
        let open: usize = wanted.iter().map(Job::open).sum();
        let mut is_stuck = false;
        if size > 0 {
            let begun = Instant::now();
            let queued = wanted.iter_mut().filter_map(Job::span);
            let _span = BatchSpan::begin(queued, metrics.lane(), size);
            batch::run(&mut store, &mut wanted, &metrics).await;
            metrics.batch(size, begun.elapsed());
            is_stuck = wanted.iter().map(Job::open).sum::<usize>() >= open;
        }
        pause = if is_stuck { backoff.take() } else { Duration::ZERO };
        if !is_stuck {
            backoff.reset();
        }
        for job in wanted {
            if job.open() > 0 && job.is_wanted() { jobs.push(job) } else { done.push(job) }
        }
        // Before the answers: a caller that has one finds the room that it had free.
        queue.settle(jobs, &done);
        done.into_iter().for_each(Job::answer);
    }
}

/// Lanes of one kind. Which of them decides on a key is a matter of speed alone: lanes that meet at
/// a record conflict, as replicas do.
pub struct Lanes<O: Op>(Arc<[Lane<O>]>);

impl<O: Op> Lanes<O> {
    /// Starts `count` lanes, spread over `runtimes`.
    pub fn start(
        count: usize,
        runtimes: &[Handle],
        mut start: impl FnMut(&Handle) -> Lane<O>,
    ) -> Self {
        Self(runtimes.iter().cycle().take(count.max(1)).map(&mut start).collect())
    }

    /// Those of the lanes that run on the runtime at `worker`, of `workers`; or
    /// one of another's, where it has none.
    #[must_use]
    pub fn near(&self, worker: usize, workers: usize) -> Self {
        let own: Vec<_> = self.0.iter().skip(worker).step_by(workers).cloned().collect();
        if own.is_empty() { Self([self.at(worker).clone()].into()) } else { Self(own.into()) }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Which of them has the keys of `shard`.
    #[must_use]
    pub fn index(&self, shard: u64) -> usize {
        usize::try_from(shard % self.0.len() as u64).unwrap_or(0)
    }

    /// The lane that has the keys of `shard`.
    #[must_use]
    pub fn of(&self, shard: u64) -> &Lane<O> {
        self.at(self.index(shard))
    }

    /// Whether there may be room for `count` operations of a team: not if each lane is sure to refuse an
    /// equal share of them.
    #[must_use]
    pub fn may_have_room(&self, team: &str, count: usize) -> bool {
        let share = count / self.0.len();
        share == 0 || !self.0.iter().all(|lane| lane.would_refuse(team, share))
    }

    /// Refuses a call of `count` operations of a team for which there is no room. To know that before
    /// they are read saves most of what a refusal costs.
    ///
    /// # Errors
    /// [`CallError::Overloaded`].
    pub fn check_room(&self, team: &str, count: usize) -> Result<(), CallError> {
        if self.may_have_room(team, count) {
            return Ok(());
        }
        self.0[0].0.0.shed();
        Err(CallError::Overloaded)
    }

    /// The lane at `index`, counted around.
    #[must_use]
    pub fn at(&self, index: usize) -> &Lane<O> {
        &self.0[index % self.0.len()]
    }
}

impl<O: Op> Clone for Lanes<O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
