//! A lane's queue, between the callers and the lane's task.
//!
//! Jobs wait by team, and a batch takes of all teams ([`super::turns`]). A queue that is full
//! refuses the team that has most in it: a call of another team evicts that team's newest calls of
//! which no batch has had a part. The callers' ends do that themselves, so the queue is behind a
//! mutex rather than a channel.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{
    CallError, Op,
    job::{Job, Reply},
    turns::{TeamHash, Waiting},
};
use crate::{
    store::StoreError,
    telemetry::{LaneMetrics, call},
};

/// Both ends of a queue.
pub(super) struct Queue<O: Op> {
    waiting: Mutex<Waiting<O>>,
    arrived: Notify,
    hasher: RandomState,
    capacity: usize,
    batch: usize,
    metrics: LaneMetrics,
}

impl<O: Op> Queue<O> {
    pub(super) fn new(capacity: usize, batch: usize, metrics: LaneMetrics) -> Self {
        metrics.started(capacity);
        Self {
            waiting: Mutex::new(Waiting::new()),
            arrived: Notify::new(),
            hasher: RandomState::new(),
            capacity,
            batch,
            metrics,
        }
    }

    fn team(&self, name: &str) -> TeamHash {
        TeamHash(self.hasher.hash_one(name))
    }

    /// Whether `count` more operations of a team are sure to be refused.
    pub(super) fn would_refuse(&self, team: &str, count: usize) -> bool {
        self.lock().would_refuse(self.capacity, self.team(team), count)
    }

    /// Counts a call that was refused without being queued.
    pub(super) fn shed(&self) {
        self.metrics.shed();
    }

    /// Queues a call's operations, which are of one team.
    ///
    /// # Errors
    /// [`CallError::Overloaded`], [`StoreError::Unavailable`] if the lane has stopped.
    pub(super) fn push(&self, ops: Vec<O>, reply: Option<Reply<O>>) -> Result<(), CallError> {
        let team = self.team(ops.first().map_or("", Op::team));
        let (now, count) = (Instant::now(), ops.len());
        let job = Job::new(team, ops, reply, now, call::queued(self.metrics.lane()));
        let mut waiting = self.lock();
        if waiting.has_stopped {
            return Err(StoreError::unavailable("the lane has stopped").into());
        }
        let Some(evicted) = waiting.make_room(self.capacity, team, count) else {
            drop(waiting);
            self.shed();
            return Err(CallError::Overloaded);
        };
        waiting.put(None, job);
        waiting.hold(team, count);
        self.metrics.took(count);
        let is_idle = std::mem::take(&mut waiting.is_idle);
        // Jobs are dropped without the lock: what is in them may call this lane.
        drop(waiting);
        if is_idle {
            self.arrived.notify_one();
        }
        for (_, job) in evicted {
            self.metrics.freed(job.size());
            self.metrics.shed();
            job.refuse();
        }
        Ok(())
    }

    /// Nobody can call the lane any more.
    pub(super) fn close(&self) {
        self.lock().has_callers = false;
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<O>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lane's own end of its queue. Whatever waits when it is dropped ends without an answer.
pub(super) struct LaneEnd<O: Op>(pub(super) Arc<Queue<O>>);

impl<O: Op> LaneEnd<O> {
    /// Waits for the jobs of the next batch: after `pause`, unless a job comes before that
    /// of which it may have a part. None once nobody can call any more, and none waits.
    pub(super) async fn next(&self, pause: Duration) -> Option<Vec<Job<O>>> {
        let queue = &*self.0;
        let mut due = (!pause.is_zero()).then(|| Instant::now() + pause);
        loop {
            {
                let mut waiting = queue.lock();
                if due.is_none() || waiting.would_begin(queue.batch) {
                    let jobs = waiting.take(queue.batch);
                    if !jobs.is_empty() {
                        return Some(jobs);
                    }
                    if !waiting.has_callers {
                        return None;
                    }
                }
                waiting.is_idle = true;
            }
            match due {
                None => queue.arrived.notified().await,
                Some(end) => {
                    if timeout_at(end, queue.arrived.notified()).await.is_err() {
                        due = None;
                    }
                }
            }
        }
    }

    /// Ends a batch: `undecided` go first among their teams', and the room of `done` is free.
    pub(super) fn settle(&self, undecided: Vec<Job<O>>, done: &[Job<O>]) {
        let mut waiting = self.0.lock();
        for job in undecided.into_iter().rev() {
            waiting.put(Some(0), job);
        }
        for job in done {
            waiting.release(job.team, job.size());
            self.0.metrics.freed(job.size());
        }
    }
}

impl<O: Op> Drop for LaneEnd<O> {
    fn drop(&mut self) {
        let (held, jobs) = self.0.lock().stop();
        self.0.metrics.freed(held);
        self.0.metrics.ended(self.0.capacity);
        // Without the lock: what is in them may call this lane.
        drop(jobs);
    }
}
