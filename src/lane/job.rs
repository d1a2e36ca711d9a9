//! What one call asks of a lane.

use std::time::Duration;

use tokio::{sync::oneshot, time::Instant};

use super::{Answers, CallError, Op, turns::TeamHash};
use crate::{domain::limits::LEASE_TTL, store::StoreError, telemetry::QueuedSpan};

/// How long work without a caller is retried: by then every lease that it could give
/// back has ended by itself.
const MAX_PERSISTENCE: Duration = *LEASE_TTL.end();

/// Where the answers of a job go.
pub(super) type Reply<O> = oneshot::Sender<Result<Answers<O>, CallError>>;

/// The operations of one call, all of one team.
pub(super) struct Job<O: Op> {
    pub(super) team: TeamHash,
    ops: Vec<O>,
    /// As far as they are decided, in the order of `ops`.
    answers: Vec<Option<Result<O::Answer, StoreError>>>,
    /// How many are undecided.
    open: usize,
    /// How many of those, from the first, the present batch takes.
    slice: usize,
    /// Whether a batch has had a part of it.
    has_begun: bool,
    /// None for work without a caller.
    reply: Option<Reply<O>>,
    queued_at: Instant,
    /// Its part of the call's trace.
    span: Option<Box<QueuedSpan>>,
}

impl<O: Op> Job<O> {
    pub(super) fn new(
        team: TeamHash,
        ops: Vec<O>,
        reply: Option<Reply<O>>,
        now: Instant,
        span: Option<Box<QueuedSpan>>,
    ) -> Self {
        Self {
            team,
            answers: ops.iter().map(|_| None).collect(),
            open: ops.len(),
            ops,
            slice: 0,
            has_begun: false,
            reply,
            queued_at: now,
            span,
        }
    }

    /// How many operations it takes room for.
    pub(super) const fn size(&self) -> usize {
        self.ops.len()
    }

    /// How many of its operations are undecided.
    pub(super) const fn open(&self) -> usize {
        self.open
    }

    /// How many of its operations are in the present batch.
    pub(super) const fn slice(&self) -> usize {
        self.slice
    }

    /// Whether a batch has had a part of it.
    pub(super) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Puts its first `slice` undecided operations into a batch.
    pub(super) const fn begin(&mut self, slice: usize) {
        self.slice = slice;
        self.has_begun = true;
    }

    /// Its part of the call's trace, if the call is sampled.
    pub(super) fn span(&mut self) -> Option<&mut QueuedSpan> {
        self.span.as_deref_mut()
    }

    /// Whether the work is still to be done: its caller is there; or it has none, and is not too old.
    pub(super) fn is_wanted(&self) -> bool {
        match self.reply {
            Some(_) => self.has_caller(),
            None => self.queued_at.elapsed() < MAX_PERSISTENCE,
        }
    }

    /// Whether a caller waits for its answer.
    pub(super) fn has_caller(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    /// Whether it may be refused after all: nothing of it was run, and a caller hears of it.
    pub(super) const fn is_evictable(&self) -> bool {
        !self.has_begun && self.reply.is_some()
    }

    /// The operations that the present batch takes, by their places.
    pub(super) fn batched(&self) -> impl Iterator<Item = (usize, &O)> {
        let ops = self.ops.iter().zip(&self.answers).enumerate();
        let open = ops.filter(|(_, (_, answer))| answer.is_none());
        open.map(|(place, (op, _))| (place, op)).take(self.slice)
    }

    /// Notes the answer to the operation at `place`.
    pub(super) fn decide(&mut self, place: usize, answer: Result<O::Answer, StoreError>) {
        self.open -= usize::from(self.answers[place].is_none());
        self.answers[place] = Some(answer);
    }

    /// Whether a failed operation is retried: one without a caller is
    /// not lost to a store that is away for a while.
    pub(super) fn persists(&self, error: &StoreError) -> bool {
        self.reply.is_none()
            && self.is_wanted()
            && !matches!(
                error,
                StoreError::InvalidData(_) | StoreError::Rejected(_) | StoreError::Internal(_)
            )
    }

    /// Answers its caller, if it is decided.
    pub(super) fn answer(self) {
        if let Some(reply) = self.reply.filter(|_| self.open == 0) {
            // A caller that has gone does not need its answers.
            let _ = reply.send(Ok(self.answers.into_iter().flatten().collect()));
        }
    }

    /// Refuses it.
    pub(super) fn refuse(self) {
        if let Some(reply) = self.reply {
            let _ = reply.send(Err(CallError::Overloaded));
        }
    }
}
