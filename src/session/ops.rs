//! The operations on sessions that lanes batch.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Measured,
    grant::{Delivery, Grant, Grants},
    queue::Queues,
};
use crate::{
    domain::{
        Acquire, Acquired, Decision, Enqueue, Enqueued, Held, Lease, LeaseId, Release, Renew,
        Renewed, RequestId, SessionKey, SessionRow, StreamId,
    },
    lane::{Executes, Lane, Lanes, Op},
    store::{Changed, Connection, StoreError, Verdict},
};

/// Changes who holds a session. Takes and releases share lanes, and so
/// statements and commits.
pub(super) enum Change {
    Take(Take),
    GiveBack(GiveBack),
}

/// What became of a session, whoever asked for it.
#[expect(clippy::large_enum_variant, reason = "an allocation for each grant costs more")]
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

/// What the store decided on the request of `asker`, for its stream, if it has one.
pub(super) struct Taken {
    row: SessionRow,
    asker: (RequestId, Option<StreamId>),
    fresh: bool,
    /// When the statement began.
    asked: Instant,
    /// Of a lease that goes back if nobody accepts it.
    delivery: Option<Arc<Delivery>>,
}

/// What a request for a lease comes to.
pub(super) enum Outcome {
    Granted(Grant),
    Held(Measured<Held>),
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
            tracing::warn!("lane is full; the lease of a disconnected caller expires with its TTL");
        }
    }
}

/// Whether a lease has been given back.
pub(super) struct Ended {
    lease: LeaseId,
    released: bool,
    unless_resumed: Option<StreamId>,
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

    fn team(&self) -> &str {
        &self.key().team
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
            // Found while another spoke for the group: not noted as this one's.
            Decision::Granted(_) if taken.asker != self.asker() => return Verdict::Again,
            Decision::Granted(lease) => {
                let lease = Measured::new(lease, taken.asked);
                Outcome::Granted(Grant::new(lease, taken.fresh, taken.delivery.clone()))
            }
            Decision::Held(held) => Outcome::Held(Measured::new(held, taken.asked)),
            Decision::EpicMismatch(bound) => Outcome::EpicMismatch(bound),
            // The one who spoke for the group was refused: the next one asks.
            Decision::Free => return Verdict::Again,
        })
    }

    /// Calls that return share an answer, streams do not: the store notes which has the
    /// lease.
    const fn asker(&self) -> (RequestId, Option<StreamId>) {
        (self.acquire.request, self.acquire.stream)
    }

    fn row(&self, Acquired { row, fresh }: Acquired, asked: Instant) -> State {
        let Acquire { key, request, stream, .. } = &self.acquire;
        let delivery = match stream {
            _ if fresh => Some(self.grants.deliver(key, row.lease.id)),
            // It has taken the place of the stream that would have given the lease back.
            Some(stream) if row.live && row.request == *request => {
                Some(self.grants.deliver_to(key, row.lease.id, *stream))
            }
            _ => None,
        };
        State::Taken(Taken { row, asker: self.asker(), fresh, asked, delivery })
    }
}

impl GiveBack {
    fn answer(&self, ended: &Ended) -> Verdict<bool> {
        if ended.lease != self.release.lease {
            return Verdict::Again;
        }
        if !ended.released && ended.unless_resumed != self.release.unless_resumed {
            // The one who spoke for the group would have spared it.
            return Verdict::Again;
        }
        Verdict::Decided(ended.released)
    }

    fn row(&self, released: bool) -> State {
        let Release { lease, unless_resumed, .. } = self.release;
        State::Ended(Ended { lease, released, unless_resumed })
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
        let asked = Instant::now();
        let Changed { taken, ended, handed } = self.change(&acquires, &releases).await?;
        let queues = ops.iter().find_map(|op| match op {
            Change::GiveBack(give_back) => Some(&give_back.queues),
            Change::Take(_) => None,
        });
        if let Some(queues) = queues {
            for row in handed {
                queues.deliver(row, asked);
            }
        }
        let (mut taken, mut ended) = (taken.into_iter(), ended.into_iter());
        let row = |op: &&Change| match op {
            Change::Take(take) => Some(taken.next()?.map(|acquired| take.row(acquired, asked))),
            Change::GiveBack(back) => Some(ended.next()?.map(|released| back.row(released))),
        };
        // Where the store answered for fewer, so does this.
        Ok(ops.iter().map_while(row).collect())
    }
}

/// Takes a place in a session's queue. Those who wait have lanes of their own: who does
/// not wait has nothing to do with it.
pub(super) struct Stand {
    pub(super) enqueue: Enqueue,
    pub(super) queues: Arc<Queues>,
    pub(super) leaves: Lane<Leave>,
    pub(super) grants: Arc<Grants>,
}

impl Op for Stand {
    type Key<'a> = &'a SessionKey;
    type Row = (LeaseId, Enqueued);
    type Answer = Enqueued;

    fn key(&self) -> &SessionKey {
        &self.enqueue.acquire.key
    }

    fn team(&self) -> &str {
        &self.key().team
    }

    fn answer(&self, (lease, enqueued): &(LeaseId, Enqueued)) -> Verdict<Enqueued> {
        if let Enqueued::Free = enqueued {
            // So it is to all who would wait for it.
            return Verdict::Decided(Enqueued::Free);
        }
        if *lease != self.enqueue.lease {
            // One place at a time.
            return Verdict::Again;
        }
        if let Enqueued::TookOver(_, earlier) = enqueued {
            self.queues.taken_over(*earlier);
        }
        if matches!(enqueued, Enqueued::Waits(_) | Enqueued::TookOver(..) | Enqueued::Given)
            && !self.queues.is_wanted(*lease)
        {
            // Whoever asked has gone, and may have left before the place was there; by
            // now the lease may have been given.
            let (key, queues) = (self.key().clone(), Arc::clone(&self.queues));
            let grants = Some(Arc::clone(&self.grants));
            let _ = self.leaves.post(Leave { key, lease: *lease, keep: false, queues, grants });
        }
        Verdict::Decided(*enqueued)
    }
}

impl<S: Connection> Executes<Stand> for S {
    async fn execute(
        &mut self,
        asked: &[&Stand],
    ) -> Result<Vec<Verdict<(LeaseId, Enqueued)>>, StoreError> {
        let asked: Vec<&Enqueue> = asked.iter().map(|stand| &stand.enqueue).collect();
        let placed = self.enqueue(&asked).await?.into_iter().zip(asked);
        Ok(placed.map(|(placed, enqueue)| placed.map(|placed| (enqueue.lease, placed))).collect())
    }
}

/// Hands a session on to whoever is next, if it is free, and reads how it stands.
pub(super) struct HandOn {
    pub(super) key: SessionKey,
    pub(super) queues: Arc<Queues>,
}

impl Op for HandOn {
    type Key<'a> = &'a SessionKey;
    type Row = Option<SessionRow>;
    type Answer = Option<SessionRow>;

    fn key(&self) -> &SessionKey {
        &self.key
    }

    fn team(&self) -> &str {
        &self.key.team
    }

    fn answer(&self, row: &Option<SessionRow>) -> Verdict<Option<SessionRow>> {
        Verdict::Decided(row.clone())
    }
}

impl<S: Connection> Executes<HandOn> for S {
    async fn execute(
        &mut self,
        asked: &[&HandOn],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let keys: Vec<&SessionKey> = asked.iter().map(|hand_on| &hand_on.key).collect();
        let begun = Instant::now();
        let rows = self.hand_on(&keys).await?;
        // Here, where nobody's going away can keep it from whom it went to.
        for (HandOn { key, queues }, row) in asked.iter().zip(&rows) {
            if let Verdict::Decided(Some(row)) = row {
                queues.saw(key, row, begun);
            }
        }
        Ok(rows)
    }
}

/// Gives up a place.
pub(super) struct Leave {
    pub(super) key: SessionKey,
    pub(super) lease: LeaseId,
    /// Whether it is kept for a call that repeats the request.
    pub(super) keep: bool,
    pub(super) queues: Arc<Queues>,
    /// Gives back the lease, if it had been given by then; none for a place that was
    /// found without anybody there.
    pub(super) grants: Option<Arc<Grants>>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        // However it ended: if the place is still there, the next heartbeat gives it up.
        self.queues.forget_leaving(self.lease);
    }
}

impl Op for Leave {
    type Key<'a> = (&'a SessionKey, LeaseId);
    /// Whether the place was there.
    type Row = bool;
    type Answer = ();

    fn key(&self) -> (&SessionKey, LeaseId) {
        (&self.key, self.lease)
    }

    fn team(&self) -> &str {
        &self.key.team
    }

    fn answer(&self, was_there: &bool) -> Verdict<()> {
        self.queues.left(&self.key, self.lease);
        if !was_there && let Some(grants) = &self.grants {
            grants.give_back(&self.key, self.lease);
        }
        Verdict::Decided(())
    }
}

impl<S: Connection> Executes<Leave> for S {
    async fn execute(&mut self, asked: &[&Leave]) -> Result<Vec<Verdict<bool>>, StoreError> {
        let places = |keep| {
            let places = asked.iter().filter(move |leave| leave.keep == keep);
            places.map(|leave| (&leave.key, leave.lease)).collect::<Vec<_>>()
        };
        let (leaving, kept) = (places(false), places(true));
        let leaving = if leaving.is_empty() { Vec::new() } else { self.leave(&leaving).await? };
        let kept = if kept.is_empty() { Vec::new() } else { self.keep_places(&kept).await? };
        let (mut leaving, mut kept) = (leaving.into_iter(), kept.into_iter());
        let was_there = |leave: &&Leave| if leave.keep { kept.next() } else { leaving.next() };
        // Where the store answered for fewer, so does this.
        Ok(asked.iter().map_while(was_there).map(Verdict::Decided).collect())
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
    Renewed(Measured<Lease>),
    /// It has ended, because it had been held for as long as any may be.
    HeldTooLong,
    /// Another stream has taken it over.
    Replaced,
    Lost,
}

impl Op for RunOn {
    type Key<'a> = (&'a SessionKey, LeaseId);
    type Row = (Option<StreamId>, Measured<Renewed>);
    type Answer = Renewal;

    fn key(&self) -> (&SessionKey, LeaseId) {
        (&self.renew.key, self.renew.lease)
    }

    fn team(&self) -> &str {
        &self.renew.key.team
    }

    fn answer(&self, (asker, Measured { value: renewed, asked }): &Self::Row) -> Verdict<Renewal> {
        if *asker != self.renew.stream {
            // Who renews is noted.
            return Verdict::Again;
        }
        Verdict::Decided(match renewed {
            Renewed::Resumed => Renewal::Replaced,
            Renewed::Found(row) if row.live => {
                Renewal::Renewed(Measured::new(row.lease.clone(), *asked))
            }
            Renewed::Found(SessionRow { lease, .. }) if lease.held_for() >= self.max_hold => {
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
    ) -> Result<Vec<Verdict<<RunOn as Op>::Row>>, StoreError> {
        let max_hold = ops.first().map_or(Duration::ZERO, |op| op.max_hold);
        let asked: Vec<&Renew> = ops.iter().map(|op| &op.renew).collect();
        let begun = Instant::now();
        let renewed = self.renew(&asked, max_hold).await?.into_iter().zip(asked);
        let row = |row, asked: &Renew| (asked.stream, Measured::new(row, begun));
        Ok(renewed.map(|(renewed, asked)| renewed.map(|renewed| row(renewed, asked))).collect())
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

    fn is_read(&self) -> bool {
        true
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
