//! The operations on turns that lanes batch.

use std::{iter::once, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::grant::{Delivery, Grant, Turn, Unaccepted};
use crate::{
    domain::{
        Acquire, Begin, Begun, Claim, Delivered, EventKey, EventRow, Finish, FinishAs,
        Interruption, KeySet, Lease, Obtained, PriorGrant, RenewTurn, RequestId, StreamId,
        Timestamp, TurnId, TurnLost,
    },
    lane::{Executes, Lane, Lanes, Op},
    session::{LatestRun, Measured, Sessions},
    store::{Connection, RenewedTurn, StoreError, Verdict},
    telemetry::TurnMetrics,
};

/// What turns are begun and ended by.
pub(super) struct TurnLanes {
    pub(super) calls: Lanes<TurnCall>,
    pub(super) sessions: Sessions,
    pub(super) metrics: TurnMetrics,
}

impl TurnLanes {
    pub(super) fn lane(&self, turn: &TurnId) -> &Lane<TurnCall> {
        let shard = turn.lease.as_ref().map_or(turn.event.shard(), |(key, _)| key.shard());
        self.calls.of(shard)
    }

    /// Leaves it to a lane: nobody waits for the answer.
    pub(super) fn post(self: &Arc<Self>, finish: Finish) {
        let lane = self.lane(&finish.turn);
        if lane.post(TurnCall::Finish(finish, Arc::clone(self))).is_err() {
            // It ends with its TTL, as a crashed holder's does.
            tracing::warn!(
                "lane is full; the turn of a disconnected caller ends with its claim TTL"
            );
        }
    }
}

/// Begins or ends a turn. Both share lanes, so that what one caller asks for is done
/// in that order.
pub(super) enum TurnCall {
    Begin(Box<BeginCall>),
    Finish(Finish, Arc<TurnLanes>),
}

/// Begins a turn.
pub(super) struct BeginCall {
    begin: Begin,
    lanes: Arc<TurnLanes>,
    latest_run: LatestRun,
}

impl BeginCall {
    pub(super) fn new(begin: Begin, lanes: &Arc<TurnLanes>) -> Box<Self> {
        Box::new(Self { begin, lanes: Arc::clone(lanes), latest_run: LatestRun::default() })
    }
}

impl Drop for BeginCall {
    fn drop(&mut self) {
        let Self { begin: Begin { event, request, max_attempts, session, .. }, latest_run, .. } =
            self;
        let Some(Acquire { key, lease, .. }) = session else { return };
        if latest_run.may_have_been_granted(lease) {
            let lease = Some((key.clone(), lease.id()));
            let (event, request, max_attempts) = (event.key.clone(), *request, *max_attempts);
            // Which attempt it is, is not known.
            let turn = TurnId { event, request, attempt: 0, lease, max_attempts };
            // No row has this stream, so a call that carried the turn on keeps it.
            let unless_resumed = Some(StreamId::random());
            self.lanes.post(Finish::new(turn, FinishAs::Unanswered, unless_resumed));
        }
    }
}

/// What a batch answers to one call: to the caller that asked for it. That an event is taken
/// concerns all callers.
pub(super) enum Committed {
    Begun(Delivered, Asker, Measured<Begun>, Option<Arc<Delivery>>),
    Finished(Finish, Result<Option<EventRow>, TurnLost>),
}

/// Calls that return share an answer, streams do not: the store notes which has the turn, of those
/// that name it.
type Asker = (RequestId, Option<StreamId>, Option<PriorGrant<Timestamp>>);

const fn asker(begin: &Begin) -> Asker {
    (begin.request, begin.stream, begin.resumes)
}

pub(super) enum TurnReply {
    Begun(Box<Result<Grant, Measured<Begun>>>),
    /// The request has this claim already: it is the caller's once that carries it on.
    Found(PriorGrant<Timestamp>),
    Finished(Result<Option<EventRow>, TurnLost>),
}

impl TurnCall {
    fn event(&self) -> &EventKey {
        match self {
            Self::Begin(call) => &call.begin.event.key,
            Self::Finish(finish, _) => &finish.turn.event,
        }
    }

    /// Takes the names that it is about, unless another of the batch has.
    fn take_names<'a>(&'a self, names: &mut KeySet<'a>) -> bool {
        match self {
            Self::Begin(call) => names.take_of(&call.begin.event),
            Self::Finish(finish, _) => {
                let EventKey { team, event } = &finish.turn.event;
                names.take(team, once(event.as_str()))
            }
        }
    }
}

impl Op for TurnCall {
    /// The session, or the event of a turn without one: one call about it at a time.
    type Key<'a> = (&'a str, &'a str, bool);
    type Row = Committed;
    type Answer = TurnReply;

    fn key(&self) -> (&str, &str, bool) {
        let session = match self {
            Self::Begin(call) => call.begin.session.as_ref().map(|acquire| &acquire.key),
            Self::Finish(finish, _) => finish.turn.lease.as_ref().map(|(key, _)| key),
        };
        match session {
            Some(key) => (&key.team, &key.session, true),
            None => (&self.event().team, &self.event().event, false),
        }
    }

    fn team(&self) -> &str {
        &self.event().team
    }

    fn answer(&self, committed: &Committed) -> Verdict<TurnReply> {
        match (self, committed) {
            // An answer to every other request for the event.
            (
                Self::Begin(call),
                Committed::Begun(
                    event,
                    _,
                    taken @ Measured { value: Begun::NotAvailable(row, _), .. },
                    _,
                ),
            ) if event.is_named_as(&call.begin.event)
                && !matches!(row, EventRow::Claimed(claim) if claim.request == call.begin.request) =>
            {
                Verdict::Decided(TurnReply::Begun(Box::new(Err(taken.clone()))))
            }
            (Self::Begin(call), Committed::Begun(_, spoke, outcome, delivery))
                if *spoke == asker(&call.begin) =>
            {
                let begin = &call.begin;
                let Measured { value, asked } = outcome;
                let Begun::Granted { claim, lease, obtained } = value else {
                    return Verdict::Decided(TurnReply::Begun(Box::new(Err(outcome.clone()))));
                };
                if begin.event.contradicts(claim.digest) {
                    let taken = Begun::NotAvailable(EventRow::Claimed(claim.clone()), None);
                    let taken = Measured::new(taken, *asked);
                    return Verdict::Decided(TurnReply::Begun(Box::new(Err(taken))));
                }
                if let Obtained::Found(resumed) = *obtained {
                    let prior = PriorGrant { id: claim.claim_time, resumed };
                    return Verdict::Decided(TurnReply::Found(prior));
                }
                let id = turn_id(begin, claim, lease.as_ref());
                let claim = Measured::new(claim.clone(), *asked);
                let lease = lease.clone().map(|lease| Measured::new(lease, *asked));
                let turn = Turn { id, claim, lease };
                let (fresh, delivery) = (obtained.is_new(), delivery.clone());
                let grant = Grant { turn, fresh, delivery, lease: None };
                Verdict::Decided(TurnReply::Begun(Box::new(Ok(grant))))
            }
            (Self::Finish(finish, _), Committed::Finished(asked, kept)) if asked == finish => {
                Verdict::Decided(TurnReply::Finished(kept.clone()))
            }
            _ => Verdict::Retry,
        }
    }
}

/// What names a turn that was granted.
fn turn_id(begin: &Begin, claim: &Claim, lease: Option<&Lease>) -> TurnId {
    let held = begin.session.as_ref().zip(lease);
    TurnId {
        event: begin.event.key.clone(),
        request: begin.request,
        attempt: claim.attempt,
        lease: held.map(|(acquire, lease)| (acquire.key.clone(), lease.id)),
        max_attempts: begin.max_attempts,
    }
}

impl<S: Connection> Executes<TurnCall> for S {
    async fn execute(&mut self, ops: &[&TurnCall]) -> Result<Vec<Verdict<Committed>>, StoreError> {
        let mut names = KeySet::default();
        let (mut begins, mut finishes) = (Vec::new(), Vec::new());
        for (place, op) in ops.iter().enumerate() {
            if !op.take_names(&mut names) {
                continue;
            }
            match op {
                TurnCall::Begin(call) => begins.push((place, &**call)),
                TurnCall::Finish(finish, lanes) => finishes.push((place, finish, lanes)),
            }
        }
        let mut verdicts: Vec<_> = ops.iter().map(|_| Verdict::Retry).collect();
        let wanted: Vec<&Begin> = begins.iter().map(|(_, call)| &call.begin).collect();
        let ended: Vec<&Finish> = finishes.iter().map(|(_, finish, _)| *finish).collect();
        let asked = Instant::now();
        let changed = self.change_turns(&wanted, &ended).await;
        for (item, (_, BeginCall { begin, latest_run, .. })) in begins.iter().enumerate() {
            let Some(Acquire { lease, .. }) = &begin.session else { continue };
            match &changed {
                Ok(batch) => latest_run.answered(lease, &batch.begins[item]),
                Err(error) => latest_run.failed(lease, error),
            }
        }
        let batch = changed?;
        let of_begin = begins.first().map(|(_, call)| &call.lanes);
        if let Some(lanes) = of_begin.or(finishes.first().map(|(_, _, lanes)| *lanes)) {
            for row in batch.handovers {
                lanes.sessions.deliver(row, asked);
            }
            for (key, lease) in batch.orphans {
                lanes.sessions.give_back(&key, lease);
            }
            lanes.metrics.lapsed.inc_by(batch.lapsed);
            lanes.metrics.gave_up.inc_by(batch.gave_up);
        }
        for ((place, finish, _), kept) in finishes.iter().zip(batch.finishes) {
            verdicts[*place] = kept.map(|kept| Committed::Finished((*finish).clone(), kept));
        }
        for ((place, BeginCall { begin, lanes, .. }), verdict) in begins.iter().zip(batch.begins) {
            verdicts[*place] = verdict.map(|outcome| {
                let delivery = match &outcome {
                    Begun::Granted { claim, lease, obtained } => {
                        let turn = turn_id(begin, claim, lease.as_ref());
                        let unaccepted = Unaccepted::of(begin, claim, *obtained);
                        unaccepted.map(|unaccepted| Delivery::new(turn, unaccepted, lanes))
                    }
                    _ => None,
                };
                let outcome = Measured::new(outcome, asked);
                Committed::Begun(begin.event.clone(), asker(begin), outcome, delivery)
            });
        }
        Ok(verdicts)
    }
}

/// Lets a turn run on.
pub(super) struct RenewTurnCall {
    pub(super) renew: RenewTurn,
    /// For so long at most since its lease was granted; the same for all.
    pub(super) max_hold: Duration,
}

/// What the store notes of a renewal: who renews, and whether the turn is interrupted.
type Renewer = (Option<StreamId>, Option<Interruption>);

const fn renewer(renew: &RenewTurn) -> Renewer {
    (renew.stream, renew.interruption)
}

impl Op for RenewTurnCall {
    type Key<'a> = (&'a str, &'a str);
    type Row = (TurnId, Renewer, Measured<RenewedTurn>);
    type Answer = Measured<RenewedTurn>;

    fn key(&self) -> (&str, &str) {
        let event = &self.renew.turn.event;
        (&event.team, &event.event)
    }

    fn team(&self) -> &str {
        &self.renew.turn.event.team
    }

    fn answer(&self, (turn, by, kept): &Self::Row) -> Verdict<Self::Answer> {
        let is_own = *turn == self.renew.turn && *by == renewer(&self.renew);
        if is_own { Verdict::Decided(kept.clone()) } else { Verdict::Retry }
    }
}

impl<S: Connection> Executes<RenewTurnCall> for S {
    async fn execute(
        &mut self,
        ops: &[&RenewTurnCall],
    ) -> Result<Vec<Verdict<<RenewTurnCall as Op>::Row>>, StoreError> {
        let max_hold = ops.first().map_or(Duration::ZERO, |op| op.max_hold);
        let asked: Vec<&RenewTurn> = ops.iter().map(|op| &op.renew).collect();
        let begun = Instant::now();
        let kept = self.renew_turns(&asked, max_hold).await?.into_iter().zip(asked);
        let row = |kept, asked: &RenewTurn| {
            (asked.turn.clone(), renewer(asked), Measured::new(kept, begun))
        };
        Ok(kept.map(|(kept, asked)| kept.map(|kept| row(kept, asked))).collect())
    }
}
