//! The operations on sessions that lanes batch.

use std::{sync::Arc, time::Duration};

use super::{
    grant::{Delivery, Grant, Grants},
    queue::Queues,
};
use crate::{
    domain::{
        Acquire, Acquired, Decision, Held, Lease, LeaseId, RequestId, SessionKey, SessionRow,
    },
    lane::{Executes, Lane, Lanes, Op},
    store::{Changed, Connection, Enqueue, Enqueued, HandOn, Release, Renew, StoreError, Verdict},
};

/// Changes who holds a session. Takes and releases share lanes, and so
/// statements and commits.
pub(super) enum Change {
    Take(Take),
    GiveBack(GiveBack),
}

/// What became of a session, whoever asked for it.
pub(super) enum State {
    Taken(Taken),
    Ended(Ended),
}

/// What is told to one who asked for a change.
pub(super) enum Told {
    Outcome(Outcome),
    Released(bool),
}

/// Takes a lease.
pub(super) struct Take {
    pub(super) acquire: Acquire,
    pub(super) grants: Arc<Grants>,
}

/// What the store decided on the request of `asker`.
pub(super) struct Taken {
    row: SessionRow,
    asker: RequestId,
    /// Of a lease that was granted just now.
    delivery: Option<Arc<Delivery>>,
}

/// What a request for a lease comes to.
pub(super) enum Outcome {
    Granted(Grant),
    Held(Held),
    EpicMismatch(String),
}

/// Gives a lease back, and tells the queue.
pub(super) struct GiveBack {
    pub(super) release: Release,
    pub(super) queues: Arc<Queues>,
}

impl GiveBack {
    /// Leaves it to `lanes`: nobody waits for the answer.
    pub(super) fn post(self, lanes: &Lanes<Change>) {
        let lane = lanes.of(self.release.key.shard());
        if lane.post(Change::GiveBack(self)).is_err() {
            // It ends with its TTL, as a crashed holder's does.
            tracing::warn!("no room to give back the lease of a caller that went away");
        }
    }
}

/// Whether a lease has been given back.
pub(super) struct Ended {
    lease: LeaseId,
    released: bool,
    unless_repeated: bool,
}

impl Op for Change {
    type Key<'a> = &'a SessionKey;
    type Row = State;
    type Answer = Told;

    fn key(&self) -> &SessionKey {
        match self {
            Self::Take(take) => &take.acquire.key,
            Self::GiveBack(give_back) => &give_back.release.key,
        }
    }

    fn answer(&self, row: &State) -> Verdict<Told> {
        match (self, row) {
            (Self::Take(take), State::Taken(taken)) => take.answer(taken).map(Told::Outcome),
            (Self::GiveBack(give_back), State::Ended(ended)) => {
                give_back.answer(ended).map(Told::Released)
            }
            // One change of a session at a time.
            _ => Verdict::Again,
        }
    }
}

impl Take {
    fn answer(&self, taken: &Taken) -> Verdict<Outcome> {
        Verdict::Decided(match taken.row.decision(&self.acquire) {
            // Found while another spoke for the group: not noted as repeated.
            Decision::Granted(_) if taken.asker != self.acquire.request => return Verdict::Again,
            Decision::Granted(lease) => Outcome::Granted(Grant::new(lease, taken.delivery.clone())),
            Decision::Held(held) => Outcome::Held(held),
            Decision::EpicMismatch(bound) => Outcome::EpicMismatch(bound),
            // The one who spoke for the group was refused: the next one asks.
            Decision::Free => return Verdict::Again,
        })
    }

    fn row(&self, Acquired { row, fresh }: Acquired) -> State {
        let delivery = fresh.then(|| self.grants.deliver(&self.acquire.key, row.lease.id));
        State::Taken(Taken { row, asker: self.acquire.request, delivery })
    }
}

impl GiveBack {
    fn answer(&self, ended: &Ended) -> Verdict<bool> {
        if ended.lease != self.release.lease {
            return Verdict::Again;
        }
        if ended.released {
            self.queues.freed(&self.release.key);
        } else if ended.unless_repeated && !self.release.unless_repeated {
            // The one who spoke for the group would have spared it.
            return Verdict::Again;
        }
        Verdict::Decided(ended.released)
    }

    fn row(&self, released: bool) -> State {
        let Release { lease, unless_repeated, .. } = self.release;
        State::Ended(Ended { lease, released, unless_repeated })
    }
}

impl<S: Connection> Executes<Change> for S {
    async fn execute(&mut self, ops: &[&Change]) -> Result<Vec<Verdict<State>>, StoreError> {
        let (mut acquires, mut releases) = (Vec::new(), Vec::new());
        for op in ops {
            match op {
                Change::Take(take) => acquires.push(&take.acquire),
                Change::GiveBack(give_back) => releases.push(&give_back.release),
            }
        }
        let queues = ops.iter().find_map(|op| match op {
            Change::GiveBack(give_back) => Some(&give_back.queues),
            Change::Take(_) => None,
        });
        let replica = queues.map(|queues| queues.replica()).unwrap_or_default();
        let Changed { taken, ended, handed } = self.change(&acquires, &releases, replica).await?;
        if let Some(queues) = queues {
            for handed in handed {
                queues.deliver(handed.row);
            }
        }
        let (mut taken, mut ended) = (taken.into_iter(), ended.into_iter());
        let row = |op: &&Change| match op {
            Change::Take(take) => Some(taken.next()?.map(|acquired| take.row(acquired))),
            Change::GiveBack(back) => Some(ended.next()?.map(|released| back.row(released))),
        };
        // Where the store answered for fewer, so does this.
        Ok(ops.iter().map_while(row).collect())
    }
}

/// What those who wait want of the store. In lanes of their own: who does not wait
/// has nothing to do with it.
pub(super) enum Wait {
    Enqueue(Enqueue),
    HandOn(HandOn, Arc<Queues>),
    /// And then gives back what had been given by then.
    Leave(SessionKey, LeaseId, Arc<Grants>),
}

/// What became of a queue.
pub(super) enum Moved {
    Placed(LeaseId, Enqueued),
    HandedOn,
    Left(LeaseId),
}

impl Op for Wait {
    type Key<'a> = &'a SessionKey;
    type Row = Moved;
    /// Whether there is a place; of those who do not ask for one, yes.
    type Answer = Enqueued;

    fn key(&self) -> &SessionKey {
        match self {
            Self::Enqueue(enqueue) => &enqueue.acquire.key,
            Self::HandOn(hand_on, _) => &hand_on.key,
            Self::Leave(key, ..) => key,
        }
    }

    fn answer(&self, moved: &Moved) -> Verdict<Enqueued> {
        match (self, moved) {
            (Self::Enqueue(_), Moved::Placed(_, Enqueued::Free)) => {
                Verdict::Decided(Enqueued::Free)
            }
            (Self::Enqueue(enqueue), Moved::Placed(lease, enqueued)) if *lease == enqueue.lease => {
                Verdict::Decided(*enqueued)
            }
            (Self::HandOn(..), Moved::HandedOn) => Verdict::Decided(Enqueued::Waits),
            (Self::Leave(_, lease, _), Moved::Left(left)) if left == lease => {
                Verdict::Decided(Enqueued::Waits)
            }
            // One thing at a time.
            _ => Verdict::Again,
        }
    }
}

impl<S: Connection> Executes<Wait> for S {
    async fn execute(&mut self, ops: &[&Wait]) -> Result<Vec<Verdict<Moved>>, StoreError> {
        let (mut wanted, mut sessions, mut leaving) = (Vec::new(), Vec::new(), Vec::new());
        let mut queues = None;
        for op in ops {
            match op {
                Wait::Enqueue(enqueue) => wanted.push(enqueue),
                Wait::HandOn(hand_on, told) => {
                    sessions.push(hand_on);
                    queues = Some(told);
                }
                Wait::Leave(key, lease, grants) => leaving.push((key, *lease, grants)),
            }
        }
        let mut placed =
            if wanted.is_empty() { Vec::new() } else { self.enqueue(&wanted).await? }.into_iter();
        if let Some(queues) = queues {
            let handed = self.hand_on(&sessions).await?;
            for handed in handed {
                queues.deliver(handed.row);
            }
        }
        if !leaving.is_empty() {
            let leases: Vec<LeaseId> = leaving.iter().map(|(_, lease, _)| *lease).collect();
            self.leave(&leases).await?;
            // Not before: until then it could still be given.
            for (key, lease, grants) in leaving {
                grants.give_back(key, lease);
            }
        }
        let moved = |op: &&Wait| match op {
            Wait::Enqueue(enqueue) => {
                Some(placed.next()?.map(|placed| Moved::Placed(enqueue.lease, placed)))
            }
            Wait::HandOn(..) => Some(Verdict::Decided(Moved::HandedOn)),
            Wait::Leave(_, lease, _) => Some(Verdict::Decided(Moved::Left(*lease))),
        };
        Ok(ops.iter().map_while(moved).collect())
    }
}

/// A place in the store's queue. Dropping it leaves the queue, and gives back what
/// had been given by then.
pub(super) struct Ticket {
    key: SessionKey,
    lease: LeaseId,
    waits: Lane<Wait>,
    grants: Arc<Grants>,
    is_used: bool,
}

impl Ticket {
    pub(super) fn new(
        key: &SessionKey,
        lease: LeaseId,
        waits: &Lane<Wait>,
        grants: &Arc<Grants>,
    ) -> Self {
        let (waits, grants) = (waits.clone(), Arc::clone(grants));
        Self { key: key.clone(), lease, waits, grants, is_used: false }
    }

    /// The lease has come: it is on its way to the one who waited.
    pub(super) fn redeem(mut self, lease: Lease) -> Grant {
        self.is_used = true;
        Grant::new(lease, Some(self.grants.deliver(&self.key, self.lease)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.is_used {
            return;
        }
        let leave = Wait::Leave(self.key.clone(), self.lease, Arc::clone(&self.grants));
        if self.waits.post(leave).is_err() {
            tracing::warn!("no room to leave a queue: a lease may go to one who has gone");
        }
    }
}

/// Lets a lease run on.
pub(super) struct RunOn {
    pub(super) renew: Renew,
    /// For so long at most since it was granted; the same for all.
    pub(super) max_hold: Duration,
}

/// What becomes of a lease that is to run on.
pub(super) enum Renewal {
    Renewed(Lease),
    /// It has ended, because it had been held for as long as any may be.
    HeldTooLong,
    Lost,
}

impl Op for RunOn {
    type Key<'a> = (&'a SessionKey, LeaseId);
    type Row = Option<SessionRow>;
    type Answer = Renewal;

    fn key(&self) -> (&SessionKey, LeaseId) {
        (&self.renew.key, self.renew.lease)
    }

    fn answer(&self, row: &Option<SessionRow>) -> Verdict<Renewal> {
        Verdict::Decided(match row {
            Some(row) if row.live => Renewal::Renewed(row.lease.clone()),
            Some(SessionRow { lease, .. })
                if lease.expire_time >= lease.acquire_time.plus(self.max_hold) =>
            {
                Renewal::HeldTooLong
            }
            _ => Renewal::Lost,
        })
    }
}

impl<S: Connection> Executes<RunOn> for S {
    async fn execute(
        &mut self,
        ops: &[&RunOn],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let max_hold = ops.first().map_or(Duration::ZERO, |op| op.max_hold);
        let asked: Vec<&Renew> = ops.iter().map(|op| &op.renew).collect();
        self.renew(&asked, max_hold).await
    }
}

/// Reads a session's row.
pub(super) struct Look(pub(super) SessionKey);

impl Op for Look {
    type Key<'a> = &'a SessionKey;
    type Row = Option<SessionRow>;
    type Answer = Option<SessionRow>;

    fn key(&self) -> &SessionKey {
        &self.0
    }

    fn answer(&self, row: &Option<SessionRow>) -> Verdict<Option<SessionRow>> {
        Verdict::Decided(row.clone())
    }
}

impl<S: Connection> Executes<Look> for S {
    async fn execute(
        &mut self,
        ops: &[&Look],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let keys: Vec<&SessionKey> = ops.iter().map(|look| &look.0).collect();
        Ok(self.look_sessions(&keys).await?.into_iter().map(Verdict::Decided).collect())
    }
}
