//! Taking sessions, giving them back, and waiting for them.

use std::time::Duration;

use oncegate::{
    domain::{Acquire, Decision, Enqueue, Enqueued, LeaseId, Obtained, Release, Renew, SessionKey},
    store::{Connection, SessionAnswer, SessionOp, StoreError, Verdict},
};

use super::{
    super::steps::{Of, lease, request},
    Side, debug, prior,
};

impl<C: Connection> Side<C> {
    pub(super) async fn change(
        &mut self,
        number: usize,
        acquires: &[Acquire],
        releases: &[Of<Release>],
    ) -> Result<String, StoreError> {
        for acquire in acquires {
            self.names.is_chosen(&acquire.request.as_uuid());
        }
        let own = |Of(grant, release): &Of<Release>| {
            Release::new(release.key.clone(), self.lease(*grant), release.unless_resumed)
        };
        let releases: Vec<Release> = releases.iter().map(own).collect();
        let releases = releases.iter().map(SessionOp::Release);
        let mut ops: Vec<_> = releases.chain(acquires.iter().map(SessionOp::Acquire)).collect();
        // Those on one session follow each other.
        ops.sort_by_key(SessionOp::key);
        let batch = self.store().change_sessions(&ops).await?;
        let mut again = Vec::new();
        for (item, (verdict, op)) in batch.answers.iter().zip(ops).enumerate() {
            if let (
                Verdict::Decided(SessionAnswer::Acquired(acquired)),
                SessionOp::Acquire(acquire),
            ) = (verdict, op)
                && let Decision::Granted(lease) = acquired.row.decision(acquire)
            {
                self.leases.insert((number, item), (acquire.key.clone(), lease.id));
                if let Some(Obtained::Found(resumed)) = acquired.obtained {
                    let resumes = Some(prior(lease.id, resumed, acquire.resumes));
                    again.push(Acquire { resumes, ..acquire.clone() });
                }
            }
        }
        let mut text = debug(batch);
        // The service carries on what it finds, unless it has changed by then.
        for acquire in again {
            let batch = self.store().change_sessions(&[SessionOp::Acquire(&acquire)]).await?;
            text += &debug(batch);
        }
        Ok(text)
    }

    pub(super) async fn hand_on(&mut self, keys: &[SessionKey]) -> Result<String, StoreError> {
        let ops: Vec<SessionOp<'_>> = keys.iter().map(SessionOp::HandOn).collect();
        Ok(debug(self.store().change_sessions(&ops).await?))
    }

    pub(super) async fn enqueue(
        &mut self,
        number: usize,
        asked: &[Enqueue],
    ) -> Result<String, StoreError> {
        for (item, Enqueue { acquire, .. }) in asked.iter().enumerate() {
            self.names.is_chosen(&acquire.request.as_uuid());
            self.names.is_chosen(&acquire.lease.id().as_uuid());
            self.leases.insert((number, item), (acquire.key.clone(), acquire.lease.id()));
        }
        let mut text = String::new();
        let ops: Vec<SessionOp<'_>> = asked.iter().map(SessionOp::Enqueue).collect();
        let enqueued = self.store().change_sessions(&ops).await?.answers;
        for (Enqueue { acquire, .. }, verdict) in asked.iter().zip(enqueued) {
            let tickets = self.tickets.entry(acquire.key.clone()).or_default();
            text += &match verdict {
                Verdict::Decided(SessionAnswer::Enqueued(Enqueued::Waits(ticket))) => {
                    tickets.waits(ticket)
                }
                Verdict::Decided(SessionAnswer::Enqueued(Enqueued::TookOver(ticket, was))) => {
                    tickets.took_over(ticket, was)
                }
                other => debug(other),
            };
        }
        Ok(text)
    }

    pub(super) async fn crowd(
        &mut self,
        number: usize,
        first: &Enqueue,
        count: usize,
    ) -> Result<String, StoreError> {
        let mut text = String::new();
        for item in 0..count {
            let mut enqueue = first.clone();
            enqueue.acquire.lease = lease((number, item)).into();
            enqueue.acquire.request = request((number, item));
            text += &self.enqueue(number, &[enqueue]).await?;
        }
        Ok(text)
    }

    pub(super) async fn leave(
        &mut self,
        places: &[Of<SessionKey>],
        keep: bool,
    ) -> Result<String, StoreError> {
        let places: Vec<(&SessionKey, LeaseId)> =
            places.iter().map(|Of(grant, key)| (key, self.lease(*grant))).collect();
        let ops: Vec<SessionOp<'_>> =
            places.iter().map(|&(key, lease)| SessionOp::Leave { key, lease, keep }).collect();
        Ok(debug(self.store().change_sessions(&ops).await?))
    }

    pub(super) async fn renew(
        &mut self,
        asked: &[Of<Renew>],
        max_hold: Duration,
    ) -> Result<String, StoreError> {
        let own =
            |Of(grant, renew): &Of<Renew>| Renew { lease: self.lease(*grant), ..renew.clone() };
        let asked: Vec<Renew> = asked.iter().map(own).collect();
        let ops: Vec<SessionOp<'_>> =
            asked.iter().map(|renew| SessionOp::Renew(renew, max_hold)).collect();
        Ok(debug(self.store().change_sessions(&ops).await?))
    }
}
