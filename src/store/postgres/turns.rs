//! Turns in PostgreSQL: most begin and end by one short statement, which leaves the rest to the
//! rules.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Handle,
    ordinality::{fail, fill, left},
};
use crate::{
    domain::{Begin, Begun, Finish, LeaseId, RenewTurn},
    store::{RenewedTurn, StoreError, TurnBatch, TurnStore, Verdict, records::answers},
};

/// Takes the sessions, if they are free, of turns that are to begin.
macro_rules! take_session {
    ($wish:literal, $wishes:literal) => {
        concat!(
            "INSERT INTO oncegate_sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
        holder, labels, epic_id, acquired_at, expires_at, ttl_micros)
    SELECT ",
            $wish,
            ".team_id, ",
            $wish,
            ".session_id, ",
            new_token!(concat!($wish, ".at")),
            ", ",
            $wish,
            ".lease_id, ",
            $wish,
            ".session_request, ",
            $wish,
            ".holder, ",
            $wish,
            ".labels, ",
            $wish,
            ".epic_id, ",
            $wish,
            ".at, ",
            $wish,
            ".at + ",
            $wish,
            ".ttl_micros * interval '1 microsecond', ",
            $wish,
            ".ttl_micros
    FROM ",
            $wishes,
            " ",
            or_take_over!()
        )
    };
}

mod arrays;
mod fast_path;

use arrays::Wish;
pub(super) use fast_path::{BEGIN_AND_SUCCEED, BEGIN_NEW, SUCCEED};

impl TurnStore for Handle {
    async fn change_turns(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
    ) -> Result<TurnBatch, StoreError> {
        let begins: Vec<Wish<'_>> =
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
        begins: &[Wish<'_>],
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
            if let Verdict::Decided(Begun::Granted { lease: Some(lease), fresh, .. }) = verdict {
                *fresh |= lease.id.as_uuid() == drawn;
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

/// A small count as the database has it.
fn small(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
