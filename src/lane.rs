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
//! Architecture Invariant: a caller that goes away never interrupts a batch.
//! Nothing cancels the task that owns the connection; a call that ended
//! before its batch began is left out of it.

use std::{future::Future, hash::Hash, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::Instant,
};

use crate::{
    backoff::Backoff,
    domain::limits::LEASE_TTL,
    store::{Reset, StoreError, Verdict},
    telemetry::LaneMetrics,
};

mod batch;

/// The most operations in one batch: beyond it a larger batch gains nothing and
/// only makes its callers wait. A batch request of the contract fits in one.
pub const MAX_BATCH: usize = 1_024;

/// The pause before a lane retries what a batch left undecided, while batches decide nothing. The
/// concurrent writer's batch takes about as long, and a store that hangs must not be asked at full
/// speed.
const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// How long work without a caller is retried: by then every lease that it could give
/// back has ended by itself.
const MAX_PERSISTENCE: Duration = *LEASE_TTL.end();

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

    /// The team that a write is for, whose rows a rule of the database's owner may reject.
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

struct Job<O: Op> {
    ops: Vec<O>,
    /// As far as they are decided, in the order of `ops`.
    answers: Vec<Option<Result<O::Answer, StoreError>>>,
    /// Where the answers go; none for work without a caller.
    reply: Option<oneshot::Sender<Answers<O>>>,
    begun: Instant,
    /// The job's share of the queue.
    _room: OwnedSemaphorePermit,
}

impl<O: Op> Job<O> {
    /// Whether the work is still to be done: its caller is there, or never was.
    fn is_wanted(&self) -> bool {
        self.reply.as_ref().is_none_or(|reply| !reply.is_closed())
    }

    /// How many of its operations are undecided.
    fn open(&self) -> usize {
        self.answers.iter().filter(|answer| answer.is_none()).count()
    }

    /// Whether a failed operation is retried: one without a caller is
    /// not lost to a store that is away for a while.
    fn persists(&self, error: &StoreError) -> bool {
        self.reply.is_none()
            && self.begun.elapsed() < MAX_PERSISTENCE
            && !matches!(
                error,
                StoreError::InvalidData(_) | StoreError::Rejected(_) | StoreError::Internal(_)
            )
    }

    /// Answers the job if it is decided, and gives it back if it is not.
    fn settle(self) -> Option<Self> {
        if self.open() > 0 {
            return self.is_wanted().then_some(self);
        }
        if let Some(reply) = self.reply {
            // A caller that has gone does not need its answers.
            let _ = reply.send(self.answers.into_iter().flatten().collect());
        }
        None
    }
}

/// The callers' end of a lane. Cheap to clone. The lane's task ends when the
/// last one is dropped and the queue is empty.
pub struct Lane<O: Op> {
    jobs: mpsc::Sender<Job<O>>,
    room: Arc<Semaphore>,
    metrics: LaneMetrics,
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
        let (jobs, queue) = mpsc::channel(capacity);
        let queue = Queue { jobs: queue, next: None, metrics: metrics.clone() };
        runtime.spawn(drive(store, queue, batch, metrics.clone()));
        Self { jobs, room: Arc::new(Semaphore::new(capacity)), metrics }
    }

    /// Asks for one operation, at once; the future waits for its answer. Dropping
    /// it takes the question back while its batch has not begun, and only the
    /// answer after that. It is small: a call may wait for long.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] at once when the queue is full.
    pub fn call(&self, op: O) -> impl Future<Output = Result<O::Answer, CallError>> + use<O> {
        let answers = self.call_all(vec![op]);
        async {
            let answer = answers.await?.pop();
            Ok(answer.ok_or_else(|| StoreError::internal("a lane returned no answer"))??)
        }
    }

    /// Asks for several operations, as [`Lane::call`] does for one. Answers each
    /// by itself, in order.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] at once when the queue has no room for all.
    pub fn call_all(
        &self,
        ops: Vec<O>,
    ) -> impl Future<Output = Result<Answers<O>, CallError>> + use<O> {
        let (reply, answers) = oneshot::channel();
        let queued = self.enqueue(ops, Some(reply));
        async {
            queued?;
            // Its task has ended, perhaps in the middle of this job.
            Ok(answers.await.map_err(|_| StoreError::unknown("the lane has stopped"))?)
        }
    }

    /// Leaves an operation to the lane, without waiting for its answer.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] when the queue is full, [`StoreError::Unavailable`] when the
    /// lane has stopped.
    pub fn post(&self, op: O) -> Result<(), CallError> {
        self.enqueue(vec![op], None)
    }

    fn enqueue(
        &self,
        ops: Vec<O>,
        reply: Option<oneshot::Sender<Answers<O>>>,
    ) -> Result<(), CallError> {
        let count = u32::try_from(ops.len()).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(count).ok();
        let answers = ops.iter().map(|_| None).collect();
        let begun = Instant::now();
        let job = room.map(|room| Job { ops, answers, reply, begun, _room: room });
        self.metrics.queued(1);
        let refused = match job.map(|job| self.jobs.try_send(job)) {
            Some(Ok(())) => return Ok(()),
            Some(Err(TrySendError::Closed(_))) => {
                StoreError::unavailable("the lane has stopped").into()
            }
            Some(Err(TrySendError::Full(_))) | None => {
                self.metrics.shed();
                CallError::Overloaded
            }
        };
        self.metrics.queued(-1);
        Err(refused)
    }
}

impl<O: Op> Clone for Lane<O> {
    fn clone(&self) -> Self {
        Self {
            jobs: self.jobs.clone(),
            room: Arc::clone(&self.room),
            metrics: self.metrics.clone(),
        }
    }
}

/// The lane's own end of its queue.
struct Queue<O: Op> {
    jobs: mpsc::Receiver<Job<O>>,
    /// One that came, and did not fit.
    next: Option<Job<O>>,
    metrics: LaneMetrics,
}

impl<O: Op> Queue<O> {
    /// Waits for a job; there is none once nobody can ask for one any more.
    async fn recv(&mut self) -> Option<Job<O>> {
        if self.next.is_none() {
            self.next = self.jobs.recv().await;
        }
        self.next.take().inspect(|_| self.metrics.queued(-1))
    }

    /// The job that is there already, if its operations are `room` at most.
    fn fitting(&mut self, room: usize) -> Option<Job<O>> {
        if self.next.is_none() {
            self.next = self.jobs.try_recv().ok();
        }
        self.next.take_if(|job| job.ops.len() <= room).inspect(|_| self.metrics.queued(-1))
    }

    /// Waits until a job is there whose operations are `room` at most.
    async fn ready(&mut self, room: usize) {
        if self.next.is_none() {
            self.next = self.jobs.recv().await;
        }
        if self.next.as_ref().is_none_or(|job| job.ops.len() > room) {
            std::future::pending::<()>().await;
        }
    }
}

async fn drive<O: Op, S: Executes<O>>(
    mut store: S,
    mut queue: Queue<O>,
    batch: usize,
    metrics: LaneMetrics,
) {
    // What the last batch left undecided goes first, and does not wait.
    let mut jobs: Vec<Job<O>> = Vec::new();
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    let mut pause = Duration::ZERO;
    loop {
        if jobs.is_empty() {
            let Some(job) = queue.recv().await else {
                return;
            };
            jobs.push(job);
        } else {
            // Sleep up to `pause`, or until a job arrives that fits the batch.
            let room = batch.saturating_sub(jobs.iter().map(Job::open).sum());
            let _ = tokio::time::timeout(pause, queue.ready(room)).await;
        }
        let mut size = jobs.iter().map(Job::open).sum();
        while let Some(job) = queue.fitting(batch.saturating_sub(size)) {
            size += job.ops.len();
            jobs.push(job);
        }
        jobs.retain(Job::is_wanted);
        if jobs.is_empty() {
            continue;
        }
        let begun = Instant::now();
        batch::run(&mut store, &mut jobs, metrics.writes.as_ref()).await;
        metrics.batch(size, begun.elapsed());
        jobs = jobs.into_iter().filter_map(Job::settle).collect();
        let stuck = jobs.iter().map(Job::open).sum::<usize>() >= size;
        pause = if stuck { backoff.take() } else { Duration::ZERO };
        if !stuck {
            backoff.reset();
        }
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
