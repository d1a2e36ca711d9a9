//! The operations on sessions that lanes batch.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Measured,
    grant::{AcquireCall, Delivery, Grant, Grants},
    queue::Queues,
};
use crate::{
    domain::{
        Acquire, Decision, Enqueue, Enqueued, Held, Lease, LeaseId, Obtained, PriorGrant, Release,
        Renew, Renewed, RequestId, SessionKey, SessionRow, StreamId,
    },
    lane::{Executes, Lanes, Op},
    store::{Connection, Reset, SessionAnswer, SessionBatch, SessionOp, StoreError, Verdict},
};

/// An operation on a session. All kinds share lanes, and so reads, statements and commits.
pub(super) enum SessionCall {
    Acquire(AcquireCall),
    Release(Release),
    Renew(RenewCall),
    Enqueue(EnqueueCall),
    Leave(LeaveCall),
    HandOn(SessionKey),
}

/// The reply to a [`SessionCall`].
pub(super) enum SessionReply {
    Acquired(Outcome),
    /// The request has this lease already: it is the caller's once that carries it on.
    Found(PriorGrant<LeaseId>),
    Released(bool),
    Renewed(Renewal),
    Enqueued(Enqueued),
    Left,
    HandedOn(Option<SessionRow>),
}

/// The result of a request for a lease.
pub(super) enum Outcome {
    Granted(Grant),
    Held(Measured<Held>),
    EpicMismatch(String),
}

/// Extends a lease.
pub(super) struct RenewCall {
    pub(super) renew: Renew,
    /// Up to so long since it was granted; the same for all.
    pub(super) max_hold: Duration,
}

/// What became of a lease that was to be extended.
pub(super) enum Renewal {
    Renewed(Measured<Lease>),
    /// It has ended, because it had been held for as long as any may be.
    HeldTooLong,
    /// Another stream has taken it over.
    Replaced,
    Lost,
}

/// Takes a place in a session's queue.
pub(super) struct EnqueueCall {
    pub(super) enqueue: Enqueue,
    /// Rises with each place, so that a batch keeps the order in which they came.
    pub(super) number: u64,
    pub(super) queues: Arc<Queues>,
    pub(super) lanes: Lanes<SessionCall>,
    pub(super) grants: Arc<Grants>,
}

/// Gives up a place.
pub(super) struct LeaveCall {
    pub(super) key: SessionKey,
    pub(super) lease: LeaseId,
    /// Whether it is kept for a call that repeats the request.
    pub(super) keep: bool,
    pub(super) queues: Arc<Queues>,
    /// Gives back the lease, if it had been given by then; none for a place that was found without
    /// a caller: by now it may have one that has accepted the lease.
    pub(super) grants: Option<Arc<Grants>>,
}

impl Drop for LeaveCall {
    fn drop(&mut self) {
        // However it ended: if the place is still there, the next heartbeat gives it up.
        self.queues.forget_leaving(self.lease);
    }
}

/// What an operation is, within its session: equal ones share an answer, and a batch runs those
/// of a session in this order.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Subject {
    /// The store notes who renews.
    Renew(LeaseId, Option<StreamId>),
    /// Before what could hand the lease to a caller that has left.
    Leave(LeaseId, bool),
    Release(LeaseId, Option<StreamId>),
    HandOn,
    /// Calls that return share an answer, streams do not: the store notes which has the
    /// lease, of those that name it.
    Acquire(RequestId, Option<StreamId>, Option<PriorGrant<LeaseId>>),
    Enqueue(u64),
}

/// What the store answered.
pub(super) struct Row {
    answer: SessionAnswer,
    /// When the statement began.
    asked: Instant,
    /// Of a lease that is given back if no caller accepts it.
    delivery: Option<Arc<Delivery>>,
}

impl SessionCall {
    pub(super) const fn session(&self) -> &SessionKey {
        match self {
            Self::Acquire(call) => &call.acquire.key,
            Self::Release(release) => &release.key,
            Self::Renew(call) => &call.renew.key,
            Self::Enqueue(call) => &call.enqueue.acquire.key,
            Self::Leave(call) => &call.key,
            Self::HandOn(key) => key,
        }
    }

    /// Leaves a release to `lanes`: nobody waits for the answer.
    pub(super) fn post_release(lanes: &Lanes<Self>, release: Release) {
        if lanes.of(release.key.shard()).post(Self::Release(release)).is_err() {
            // It ends with its TTL, as a crashed holder's does.
            tracing::warn!("lane is full; the lease of a disconnected caller expires with its TTL");
        }
    }

    const fn as_op(&self) -> SessionOp<'_> {
        match self {
            Self::Acquire(call) => SessionOp::Acquire(&call.acquire),
            Self::Release(release) => SessionOp::Release(release),
            Self::Renew(call) => SessionOp::Renew(&call.renew, call.max_hold),
            Self::Enqueue(call) => SessionOp::Enqueue(&call.enqueue),
            Self::Leave(LeaveCall { key, lease, keep, .. }) => {
                SessionOp::Leave { key, lease: *lease, keep: *keep }
            }
            Self::HandOn(key) => SessionOp::HandOn(key),
        }
    }

    /// What an answer of the store means; nothing where it is one to another kind of operation.
    fn row(&self, answer: SessionAnswer, asked: Instant) -> Verdict<Row> {
        let delivery = match (self, &answer) {
            (Self::Acquire(call), SessionAnswer::Acquired(acquired)) => {
                let (Acquire { key, stream, .. }, lease) = (&call.acquire, acquired.row.lease.id);
                acquired.obtained.and_then(|obtained| {
                    if obtained.is_new() {
                        return Some(call.grants.deliver(key, lease));
                    }
                    // It has taken the place of the stream that would have given the lease back.
                    let stream = obtained.taken_over(*stream)?;
                    Some(call.grants.deliver_to(key, lease, stream))
                })
            }
            (Self::Release(_), SessionAnswer::Released(_))
            | (Self::Renew(_), SessionAnswer::Renewed(_))
            | (Self::Enqueue(_), SessionAnswer::Enqueued(_))
            | (Self::Leave(_), SessionAnswer::Left(_))
            | (Self::HandOn(_), SessionAnswer::HandedOn(_)) => None,
            _ => return Verdict::Failed(StoreError::unknown("answer to another operation")),
        };
        Verdict::Decided(Row { answer, asked, delivery })
    }
}

impl Op for SessionCall {
    type Key<'a> = (&'a SessionKey, Subject);
    type Row = Row;
    type Answer = SessionReply;

    fn key(&self) -> (&SessionKey, Subject) {
        let subject = match self {
            Self::Acquire(AcquireCall { acquire, .. }) => {
                Subject::Acquire(acquire.request, acquire.stream, acquire.resumes)
            }
            Self::Release(release) => Subject::Release(release.lease, release.unless_resumed),
            Self::Renew(RenewCall { renew, .. }) => Subject::Renew(renew.lease, renew.stream),
            Self::Enqueue(call) => Subject::Enqueue(call.number),
            Self::Leave(call) => Subject::Leave(call.lease, call.keep),
            Self::HandOn(_) => Subject::HandOn,
        };
        (self.session(), subject)
    }

    fn team(&self) -> &str {
        &self.session().team
    }

    fn answer(&self, row: &Row) -> Verdict<SessionReply> {
        let Row { answer, asked, delivery } = row;
        let reply = match (self, answer) {
            (Self::Acquire(call), SessionAnswer::Acquired(acquired)) => {
                match acquired.row.decision(&call.acquire) {
                    Decision::Granted(lease) => match acquired.obtained {
                        Some(Obtained::Found(resumed)) => {
                            SessionReply::Found(PriorGrant { id: lease.id, resumed })
                        }
                        obtained => {
                            let lease = Measured::new(lease, *asked);
                            let is_fresh = obtained.is_some_and(Obtained::is_new);
                            let grant = Grant::new(lease, is_fresh, delivery.clone());
                            SessionReply::Acquired(Outcome::Granted(grant))
                        }
                    },
                    Decision::Held(held) => {
                        SessionReply::Acquired(Outcome::Held(Measured::new(held, *asked)))
                    }
                    Decision::EpicMismatch(bound) => {
                        SessionReply::Acquired(Outcome::EpicMismatch(bound))
                    }
                    // The first of the group was refused: the next one asks.
                    Decision::Free => return Verdict::Retry,
                }
            }
            (Self::Release(_), SessionAnswer::Released(released)) => {
                SessionReply::Released(*released)
            }
            (Self::Renew(call), SessionAnswer::Renewed(renewed)) => {
                SessionReply::Renewed(call.renewal(renewed, *asked))
            }
            (Self::Enqueue(call), SessionAnswer::Enqueued(enqueued)) => {
                call.enqueued(*enqueued);
                SessionReply::Enqueued(*enqueued)
            }
            (Self::Leave(call), SessionAnswer::Left(was_there)) => {
                call.left(*was_there);
                SessionReply::Left
            }
            (Self::HandOn(_), SessionAnswer::HandedOn(row)) => SessionReply::HandedOn(row.clone()),
            // Rows are of the operation's own kind.
            _ => return Verdict::Retry,
        };
        Verdict::Decided(reply)
    }
}

impl RenewCall {
    fn renewal(&self, renewed: &Renewed, asked: Instant) -> Renewal {
        match renewed {
            Renewed::Resumed => Renewal::Replaced,
            Renewed::Found(row) if row.live => {
                Renewal::Renewed(Measured::new(row.lease.clone(), asked))
            }
            Renewed::Found(SessionRow { lease, .. }) if lease.held_for() >= self.max_hold => {
                Renewal::HeldTooLong
            }
            _ => Renewal::Lost,
        }
    }
}

impl EnqueueCall {
    /// Looks after what the store has answered, whether the caller is still there or not.
    fn enqueued(&self, enqueued: Enqueued) {
        if let Enqueued::TookOver(_, earlier) = enqueued {
            self.queues.taken_over(earlier);
        }
        let Acquire { key, lease: own, .. } = &self.enqueue.acquire;
        let has_place =
            matches!(enqueued, Enqueued::Waits(_) | Enqueued::TookOver(..) | Enqueued::Given);
        if has_place && !self.queues.is_wanted(own.id()) {
            // The caller has gone, and may have left before the place was there; by now the
            // lease may have been given.
            let leave = LeaveCall {
                key: key.clone(),
                lease: own.id(),
                keep: false,
                queues: Arc::clone(&self.queues),
                grants: Some(Arc::clone(&self.grants)),
            };
            let _ = self.lanes.of(key.shard()).post(SessionCall::Leave(leave));
        }
    }
}

impl LeaveCall {
    fn left(&self, was_there: bool) {
        self.queues.left(&self.key, self.lease);
        if !was_there && let Some(grants) = &self.grants {
            grants.give_back(&self.key, self.lease);
        }
    }
}

/// Runs batches of operations on sessions, and informs the queues of this replica.
pub(super) struct SessionWorker<S> {
    pub(super) store: S,
    pub(super) queues: Weak<Queues>,
}

impl<S: Connection> Reset for SessionWorker<S> {
    fn reset(&mut self) {
        self.store.reset();
    }
}

impl<S: Connection> Executes<SessionCall> for SessionWorker<S> {
    async fn execute(&mut self, calls: &[&SessionCall]) -> Result<Vec<Verdict<Row>>, StoreError> {
        let ops: Vec<SessionOp<'_>> = calls.iter().map(|call| call.as_op()).collect();
        let asked = Instant::now();
        let changed = self.store.change_sessions(&ops).await;
        let acquires = calls.iter().enumerate().filter_map(|(place, call)| match call {
            SessionCall::Acquire(call) => Some((place, call)),
            _ => None,
        });
        for (place, AcquireCall { acquire, latest_run, .. }) in acquires {
            match &changed {
                Ok(batch) => latest_run.answered(&acquire.lease, &batch.answers[place]),
                Err(error) => latest_run.failed(&acquire.lease, error),
            }
        }
        let SessionBatch { answers, handovers } = changed?;
        // Here, where it reaches the waiters even if the callers of this batch have gone.
        if let Some(queues) = self.queues.upgrade() {
            for row in handovers {
                queues.deliver(row, asked);
            }
            for (call, answer) in calls.iter().zip(&answers) {
                if let Verdict::Decided(SessionAnswer::HandedOn(Some(row))) = answer {
                    queues.saw(call.session(), row, asked);
                }
            }
        }
        let row = |(call, answer): (&&SessionCall, _)| match answer {
            Verdict::Decided(answer) => call.row(answer, asked),
            Verdict::Retry => Verdict::Retry,
            Verdict::Failed(error) => Verdict::Failed(error),
        };
        Ok(calls.iter().zip(answers).map(row).collect())
    }
}

/// Reads a session's row.
pub(super) struct ReadSession(pub(super) SessionKey);

impl Op for ReadSession {
    type Key<'a> = &'a SessionKey;
    type Row = Option<SessionRow>;
    type Answer = Option<SessionRow>;

    fn key(&self) -> &SessionKey {
        &self.0
    }

    fn team(&self) -> &str {
        &self.0.team
    }

    fn is_read(&self) -> bool {
        true
    }

    fn answer(&self, row: &Option<SessionRow>) -> Verdict<Option<SessionRow>> {
        Verdict::Decided(row.clone())
    }
}

impl<S: Connection> Executes<ReadSession> for S {
    async fn execute(
        &mut self,
        ops: &[&ReadSession],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let keys: Vec<&SessionKey> = ops.iter().map(|look| &look.0).collect();
        Ok(self.look_sessions(&keys).await?.into_iter().map(Verdict::Decided).collect())
    }
}
