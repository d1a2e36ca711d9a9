//! Turns in PostgreSQL: most begin and end by one short statement, which leaves the rest to the
//! rules.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Handle,
    ordinality::{fail, fill, left},
};
use crate::{
    domain::{Begin, Begun, Finish, LeaseId, Obtained, RenewTurn},
    store::{RenewedTurn, StoreError, TurnBatch, TurnStore, Verdict, records::answers},
};

mod arrays;
mod fast_path;

pub(super) use fast_path::{BEGIN_AND_SUCCEED, BEGIN_NEW, SUCCEED};

/// A request for a turn, with the id that its lease has if the short statement grants one.
type Drawn<'a> = (&'a Begin, Uuid);

impl TurnStore for Handle {
    async fn change_turns(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
    ) -> Result<TurnBatch, StoreError> {
        let begins: Vec<Drawn<'_>> =
            begins.iter().map(|&begin| (begin, LeaseId::random().as_uuid())).collect();
        let mut batch = TurnBatch::open(begins.len(), finishes.len());
        self.begin_and_succeed(&begins, finishes, &mut batch).await?;
        match self.change_others(&begins, finishes, &mut batch).await {
            Err(error) if batch.is_open() => return Err(error),
            // What is decided has been committed.
            Err(error) => {
                fail(&mut batch.begins, &error);
                fail(&mut batch.finishes, &error);
            }
            Ok(()) => {}
        }
        Ok(batch)
    }

    async fn renew_turns(
        &mut self,
        asked: &[&RenewTurn],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<RenewedTurn>>, StoreError> {
        answers::renew_turns(self, asked, max_hold).await
    }
}

impl Handle {
    /// Begins and ends those that are not decided in `batch` yet.
    async fn change_others(
        &mut self,
        begins: &[Drawn<'_>],
        finishes: &[&Finish],
        batch: &mut TurnBatch,
    ) -> Result<(), StoreError> {
        let (ended, finishes) = left(&batch.finishes, finishes);
        let (begun, begins) = left(&batch.begins, begins);
        if ended.is_empty() && begun.is_empty() {
            return Ok(());
        }
        let (begins, drawn): (Vec<&Begin>, Vec<Uuid>) = begins.into_iter().unzip();
        let mut rest = answers::change_turns(self, &begins, &finishes).await?;
        for (verdict, drawn) in rest.begins.iter_mut().zip(drawn) {
            // A first run of the short statement took it, and its answer was lost.
            if let Verdict::Decided(Begun::Granted { lease: Some(lease), obtained, .. }) = verdict
                && lease.id.as_uuid() == drawn
            {
                *obtained = Obtained::Granted;
            }
        }
        fill(&mut batch.finishes, ended, rest.finishes);
        fill(&mut batch.begins, begun, rest.begins);
        batch.handovers.extend(rest.handovers);
        batch.orphans.extend(rest.orphans);
        batch.lapsed += rest.lapsed;
        batch.gave_up += rest.gave_up;
        Ok(())
    }
}
