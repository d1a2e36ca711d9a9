//! Turns in PostgreSQL: the event's row and the session's decide together, in each
//! statement at once. $1: the moment, or null for the database's clock.
//!
//! An event has no advisory lock: its row decides, as for marks. A session has, and
//! its row is locked besides where a statement writes to the event because of it.

use std::time::Duration;

use super::{
    Link,
    answers::{fail, fill, left},
};
use crate::{
    domain::{Begin, Finish, LeaseId, Prolong},
    store::{Prolonged, StoreError, TurnStore, Turned, Verdict, records::answers},
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
mod short;

use arrays::Wish;
pub(super) use short::{BEGIN_AND_SUCCEED, BEGIN_NEW, SUCCEED};

/// How many leases are kept of batches that failed: of more than are run again in halves.
const MAX_DRAWN: usize = 4_096;

impl TurnStore for Link {
    async fn change_turns(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
    ) -> Result<Turned, StoreError> {
        // One lease for each, whichever statement takes it: so a run that lost its answer
        // is known by it, or one of a batch that is run again in halves.
        let mut lease = |begin: &Begin| {
            self.drawn.remove(&begin.request).unwrap_or_else(|| LeaseId::random().as_uuid())
        };
        let begins: Vec<Wish<'_>> = begins.iter().map(|&begin| (begin, lease(begin))).collect();
        let mut turned = Turned::nothing(begins.len(), finishes.len());
        self.begin_and_succeed(&begins, finishes, &mut turned).await?;
        match self.change_others(&begins, finishes, &mut turned).await {
            // What is decided has been committed: the others are asked again.
            Err(error) if !turned.is_nothing() => {
                fail(&mut turned.begun, &error);
                fail(&mut turned.kept, &error);
                Ok(turned)
            }
            // Smaller batches tell whose fault it is, and find what this one has begun.
            Err(error) => {
                if self.drawn.len() > MAX_DRAWN {
                    self.drawn.clear();
                }
                self.drawn.extend(begins.iter().map(|(begin, lease)| (begin.request, *lease)));
                Err(error)
            }
            Ok(()) => Ok(turned),
        }
    }

    async fn prolong_turns(
        &mut self,
        asked: &[&Prolong],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Prolonged>>, StoreError> {
        answers::prolong_turns(self, asked, max_hold).await
    }
}

impl Link {
    /// Begins and ends those that are not decided in `turned` yet.
    async fn change_others(
        &mut self,
        begins: &[Wish<'_>],
        finishes: &[&Finish],
        turned: &mut Turned,
    ) -> Result<(), StoreError> {
        let (ended, finishes) = left(&turned.kept, finishes);
        let (begun, begins) = left(&turned.begun, begins);
        if ended.is_empty() && begun.is_empty() {
            return Ok(());
        }
        let begins: Vec<&Begin> = begins.into_iter().map(|(begin, _)| begin).collect();
        let rest = answers::change_turns(self, &begins, &finishes).await?;
        fill(&mut turned.kept, ended, rest.kept);
        fill(&mut turned.begun, begun, rest.begun);
        turned.handed.extend(rest.handed);
        turned.idle.extend(rest.idle);
        turned.lapsed += rest.lapsed;
        turned.gave_up += rest.gave_up;
        Ok(())
    }
}

/// A small count as the database has it.
fn small(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
