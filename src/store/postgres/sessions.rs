//! Sessions in PostgreSQL: one short statement takes free sessions and ends live leases, and leaves
//! the rest to the rules.
//!
//! The short statement first tries the transaction-scoped advisory lock of each session, and skips
//! those that another replica is deciding on, so that batches do not wait for each other. With
//! a row, safety does not rest on the lock: the write checks the row again.

use sqlx::{Row as _, postgres::PgRow};

use super::{
    Handle, Locks,
    events::interval,
    handle::Statement,
    line::{Fetched, Repeat},
    ordinality::{doubt, fail, fill, left, slot},
};
use crate::{
    domain::{LeaseId, SessionKey, SessionRow, Team},
    rules::{Operation as _, queue::PLACE_KEPT},
    store::{
        PRESENCE, SessionAnswer, SessionBatch, SessionOp, SessionStore, StoreError, Verdict,
        records::answers,
    },
};

mod acquire;
mod places;
mod release;
pub(super) mod sql;

use acquire::Places;
pub(super) use places::HEARTBEAT;
pub(super) use sql::{END, TAKE, TAKE_AND_END};

impl Handle {
    /// Reports that this replica is there, and returns the places of callers that wait on it.
    pub(super) async fn report_presence(
        &mut self,
    ) -> Result<Vec<(SessionKey, LeaseId)>, StoreError> {
        let (now, replica) = (self.now(), self.replica);
        let rows = self
            .fetch(|| {
                sqlx::query(HEARTBEAT)
                    .bind(now)
                    .bind(replica)
                    .bind(interval(PRESENCE))
                    .bind(interval(PLACE_KEPT))
            })
            .await?;
        let place = |row: &PgRow| {
            let key = SessionKey {
                team: Team::stored(row.try_get::<String, _>("team_id")?),
                session: row.try_get("session_id")?,
            };
            Ok((key, LeaseId::from_uuid(row.try_get("lease_id")?)))
        };
        let places: Result<_, sqlx::Error> = rows.iter().map(place).collect();
        places.map_err(StoreError::internal)
    }
}

impl SessionStore for Handle {
    async fn change_sessions(
        &mut self,
        asked: &[SessionOp<'_>],
    ) -> Result<SessionBatch, StoreError> {
        let mut batch = SessionBatch::open(asked.len());
        let unanswered = self.take_and_end(asked, &mut batch.answers).await?;
        let (places, rest) = left(&batch.answers, asked);
        if rest.is_empty() {
            return Ok(batch);
        }
        match answers::change_sessions(self, &rest).await {
            Ok(rest) => {
                fill(&mut batch.answers, places, rest.answers);
                batch.handovers = rest.handovers;
            }
            Err(error) if rest.len() == asked.len() && unanswered.is_empty() => return Err(error),
            // What is decided has been committed.
            Err(error) => fail(&mut batch.answers, &error),
        }
        for &place in &unanswered {
            // Another caller may have what the lost statement gave back.
            let answer = &mut batch.answers[place];
            if matches!(answer, Verdict::Decided(SessionAnswer::Released(false))) {
                *answer = Verdict::Retry;
            }
        }
        doubt(&mut batch.answers, &unanswered);
        Ok(batch)
    }

    async fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Option<SessionRow>>, StoreError> {
        answers::look_sessions(self, keys).await
    }
}

impl Handle {
    /// Takes free sessions and ends live leases by the short statement. Skips a session that
    /// another operation of the batch is about, and one for which a caller is known to wait. If the
    /// statement's answer was lost, answers the places of all that it may have done.
    async fn take_and_end(
        &mut self,
        asked: &[SessionOp<'_>],
        answers: &mut [Verdict<SessionAnswer>],
    ) -> Result<Vec<usize>, StoreError> {
        let (mut acquires, mut releases) = (Vec::new(), Vec::new());
        let (mut taking, mut ending) = (Vec::new(), Vec::new());
        for (place, op) in asked.iter().enumerate() {
            let before = place.checked_sub(1).and_then(|before| asked.get(before));
            let next_to = [before, asked.get(place + 1)];
            let is_shared = next_to.into_iter().flatten().any(|other| other.key() == op.key());
            if is_shared || self.awaited.contains(op.key()) {
                continue;
            }
            match op {
                // What it has found is not free.
                SessionOp::Acquire(acquire)
                    if acquire.resumes.is_none() && !acquire.lease.is_spent() =>
                {
                    taking.push(place);
                    acquires.push(*acquire);
                }
                SessionOp::Release(release) => {
                    ending.push(place);
                    releases.push(*release);
                }
                _ => {}
            }
        }
        if acquires.is_empty() && releases.is_empty() {
            return Ok(Vec::new());
        }
        let arrays = (
            acquire::Arrays::of(self.locks, &acquires),
            release::Arrays::of(self.locks, &releases),
        );
        let (to_take, to_end) = &arrays;
        let now = self.now();
        let Fetched { rows, is_after_loss, .. } = self
            .run(Repeat::NotIfLost, || match (&acquires[..], &releases[..]) {
                (_, []) => to_take.bind(sqlx::query(TAKE).bind(now)),
                ([], _) => to_end.bind(sqlx::query(END).bind(now)),
                _ => to_end.bind(to_take.bind(sqlx::query(TAKE_AND_END).bind(now))),
            })
            .await?;
        if is_after_loss {
            for acquire in &acquires {
                acquire.spend();
            }
            taking.append(&mut ending);
            return Ok(taking);
        }

        let places = Places::of(&acquires);
        for row in rows {
            let (place, answer) = match row.try_get("ord") {
                Ok(Some(ord)) => (*slot(&mut ending, Ok(ord))?, SessionAnswer::Released(true)),
                // [`TAKE`] has no such column.
                Ok(None) | Err(sqlx::Error::ColumnNotFound(_)) => {
                    let (place, taken) = places.taken(&row)?;
                    (taking[place], SessionAnswer::Acquired(taken))
                }
                Err(error) => return Err(StoreError::internal(error)),
            };
            answers[place] = Verdict::Decided(answer);
        }
        Ok(Vec::new())
    }
}

/// The sessions of a short statement, as its arrays.
pub(super) struct Keys<'a> {
    teams: Vec<&'a str>,
    sessions: Vec<&'a str>,
    locks: Vec<i64>,
}

impl<'a> Keys<'a> {
    pub(super) fn of(locks: Locks, keys: impl Iterator<Item = &'a SessionKey> + Clone) -> Self {
        Self {
            teams: keys.clone().map(|key| key.team.as_str()).collect(),
            sessions: keys.clone().map(|key| key.session.as_str()).collect(),
            locks: keys.map(|key| locks.session(key)).collect(),
        }
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement.bind(&self.teams).bind(&self.sessions).bind(&self.locks)
    }
}
