//! The operations on sessions that lanes batch.

use std::sync::Arc;

use super::grant::{Delivery, Grant, Grants};
use crate::{
    domain::{
        Acquire, Acquired, Decision, Held, Lease, LeaseId, RequestId, SessionKey, SessionRow,
    },
    lane::{Executes, Op},
    store::{Connection, Renew, StoreError, Verdict},
};

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

impl Op for Take {
    type Key<'a> = &'a SessionKey;
    type Row = Taken;
    type Answer = Outcome;

    fn key(&self) -> &SessionKey {
        &self.acquire.key
    }

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
}

impl<S: Connection> Executes<Take> for S {
    async fn execute(&mut self, ops: &[&Take]) -> Result<Vec<Verdict<Taken>>, StoreError> {
        let asked: Vec<&Acquire> = ops.iter().map(|take| &take.acquire).collect();
        let verdicts = self.acquire(&asked).await?.into_iter().zip(ops);
        Ok(verdicts
            .map(|(verdict, Take { acquire, grants })| match verdict {
                Verdict::Decided(Acquired { row, fresh }) => {
                    let delivery = fresh.then(|| grants.deliver(&acquire.key, row.lease.id));
                    Verdict::Decided(Taken { row, asker: acquire.request, delivery })
                }
                Verdict::Again => Verdict::Again,
            })
            .collect())
    }
}

impl Op for Renew {
    type Key<'a> = (&'a SessionKey, LeaseId);
    type Row = Option<SessionRow>;
    type Answer = Option<Lease>;

    fn key(&self) -> (&SessionKey, LeaseId) {
        (&self.key, self.lease)
    }

    fn answer(&self, row: &Option<SessionRow>) -> Verdict<Option<Lease>> {
        Verdict::Decided(row.as_ref().map(|row| row.lease.clone()))
    }
}

impl<S: Connection> Executes<Renew> for S {
    async fn execute(
        &mut self,
        ops: &[&Renew],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        self.renew(ops).await
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
