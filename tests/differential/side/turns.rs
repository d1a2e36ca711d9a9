//! Beginning, renewing and finishing turns.

use std::time::Duration;

use oncegate::{
    domain::{Begin, Begun, Finish, Obtained, Release, RenewTurn, TurnId},
    store::{Connection, SessionOp, StoreError, Verdict},
};

use super::{
    super::steps::{Grant, Of},
    Side, debug, prior,
};

impl<C: Connection> Side<C> {
    pub(super) async fn turns(
        &mut self,
        number: usize,
        begins: &[Begin],
        finishes: &[Of<Finish>],
    ) -> Result<String, StoreError> {
        for begin in begins {
            self.names.is_chosen(&begin.request.as_uuid());
            if let Some(acquire) = &begin.session {
                self.names.is_chosen(&acquire.request.as_uuid());
            }
        }
        let own = |Of(grant, finish): &Of<Finish>| {
            let turn = self.turn(*grant, &finish.turn)?;
            Some(Finish::new(turn, finish.ending.clone(), finish.unless_resumed))
        };
        let finishes: Vec<Finish> = finishes.iter().filter_map(own).collect();
        let (wanted, ending): (Vec<&Begin>, Vec<&Finish>) =
            (begins.iter().collect(), finishes.iter().collect());
        let mut batch = self.store().change_turns(&wanted, &ending).await?;
        let orphans = std::mem::take(&mut batch.orphans);
        for (item, (verdict, begin)) in batch.begins.iter().zip(begins).enumerate() {
            if let Verdict::Decided(Begun::Granted { claim, lease, .. }) = verdict {
                let held = begin.session.as_ref().zip(lease.as_ref());
                let lease = held.map(|(acquire, lease)| (acquire.key.clone(), lease.id));
                self.leases.extend(lease.clone().map(|lease| ((number, item), lease)));
                let turn = TurnId {
                    event: begin.event.key.clone(),
                    request: begin.request,
                    attempt: claim.attempt,
                    lease,
                    max_attempts: begin.max_attempts,
                };
                self.turns.insert((number, item), turn);
                self.claim_times.insert((number, item), claim.claim_time);
            }
        }
        let mut text = debug(&batch);
        // The service carries on what it finds, unless it has changed by then.
        for (verdict, begin) in batch.begins.iter().zip(begins) {
            if let Verdict::Decided(Begun::Granted {
                claim,
                obtained: Obtained::Found(resumed),
                ..
            }) = verdict
            {
                let resumes = Some(prior(claim.claim_time, *resumed, begin.resumes));
                let again = Begin { resumes, ..begin.clone() };
                text += &debug(self.store().change_turns(&[&again], &[]).await?);
            }
        }
        // The service gives them back.
        for (key, lease) in orphans {
            let release = Release::new(key, lease, None);
            let batch = self.store().change_sessions(&[SessionOp::Release(&release)]).await?;
            text += &debug((&release, batch));
        }
        Ok(text)
    }

    pub(super) async fn prolong(
        &mut self,
        asked: &[Of<RenewTurn>],
        max_hold: Duration,
    ) -> Result<String, StoreError> {
        let own = |Of(grant, prolong): &Of<RenewTurn>| {
            let turn = self.turn(*grant, &prolong.turn)?;
            Some(RenewTurn { turn, ..prolong.clone() })
        };
        let asked: Vec<RenewTurn> = asked.iter().filter_map(own).collect();
        let asked: Vec<&RenewTurn> = asked.iter().collect();
        Ok(debug(self.store().renew_turns(&asked, max_hold).await?))
    }

    /// This store's turn of a grant, as far as `like` does not differ from it on purpose.
    fn turn(&self, grant: Grant, like: &TurnId) -> Option<TurnId> {
        let own = self.turns.get(&grant)?;
        Some(TurnId { lease: own.lease.clone(), ..like.clone() })
    }
}
