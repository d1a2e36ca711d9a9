//! Turns in PostgreSQL: most begin and end by one short statement, which leaves the rest to the
//! rules.

use std::time::Duration;

use super::{
    Handle,
    ordinality::{doubt, fail, fill, left},
};
use crate::{
    domain::{Begin, Finish, RenewTurn},
    store::{RenewedTurn, StoreError, TurnBatch, TurnStore, Verdict, records::answers},
};

mod arrays;
mod fast_path;

pub(super) use fast_path::{BEGIN_AND_SUCCEED, BEGIN_NEW, SUCCEED};

/// The places in a batch of what a statement may have done whose answer was lost.
#[derive(Default)]
struct Unanswered {
    begins: Vec<usize>,
    finishes: Vec<usize>,
}

impl Unanswered {
    fn is_empty(&self) -> bool {
        self.begins.is_empty() && self.finishes.is_empty()
    }
}

impl TurnStore for Handle {
    async fn change_turns(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
    ) -> Result<TurnBatch, StoreError> {
        let mut batch = TurnBatch::open(begins.len(), finishes.len());
        let unanswered = self.begin_and_succeed(begins, finishes, &mut batch).await?;
        match self.change_others(begins, finishes, &mut batch).await {
            Err(error) if batch.is_open() && unanswered.is_empty() => return Err(error),
            // What is decided has been committed.
            Err(error) => {
                fail(&mut batch.begins, &error);
                fail(&mut batch.finishes, &error);
            }
            Ok(()) => {}
        }
        doubt(&mut batch.begins, &unanswered.begins);
        doubt(&mut batch.finishes, &unanswered.finishes);
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
        begins: &[&Begin],
        finishes: &[&Finish],
        batch: &mut TurnBatch,
    ) -> Result<(), StoreError> {
        let (ended, finishes) = left(&batch.finishes, finishes);
        let (begun, begins) = left(&batch.begins, begins);
        if ended.is_empty() && begun.is_empty() {
            return Ok(());
        }
        let rest = answers::change_turns(self, &begins, &finishes).await?;
        fill(&mut batch.finishes, ended, rest.finishes);
        fill(&mut batch.begins, begun, rest.begins);
        batch.handovers.extend(rest.handovers);
        batch.orphans.extend(rest.orphans);
        batch.lapsed += rest.lapsed;
        batch.gave_up += rest.gave_up;
        Ok(())
    }
}
