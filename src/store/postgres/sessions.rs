//! Sessions in PostgreSQL: the row decides, the advisory lock orders.
//!
//! Each statement first tries the transaction-scoped advisory lock of every
//! session it is asked about, and leaves alone those that another replica is
//! deciding on: batches never wait for each other. Safety does not rest on the
//! lock: every write checks the row again, as it is when it is written.

use std::time::Duration;

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    Link, Locks,
    answers::{fail, fill, left, slot},
    events::interval,
    link::Statement,
    steps::lease_end,
    timestamp::PgTimestamp,
};
use crate::{
    domain::{
        Acquire, Acquired, Enqueue, Enqueued, FencingToken, Labels, Lease, LeaseId, Release, Renew,
        Renewed, RequestId, SessionKey, SessionRow,
    },
    rules::queue::PLACE_KEPT,
    store::{Changed, PRESENCE, SessionStore, StoreError, Verdict, records::answers},
};

mod acquire;
mod places;
mod release;
pub(super) mod sql;

use acquire::{Asked, Places};
pub(super) use places::BEAT;
pub(super) use sql::{END, LOOK, TAKE, TAKE_AND_END};

impl Link {
    /// Reports that this replica is there, and returns the places of callers that wait on it.
    pub(super) async fn report_presence(
        &mut self,
    ) -> Result<Vec<(SessionKey, LeaseId)>, StoreError> {
        let (now, replica) = (self.now(), self.replica);
        let rows = self
            .fetch(|| {
                sqlx::query(BEAT)
                    .bind(now)
                    .bind(replica)
                    .bind(interval(PRESENCE))
                    .bind(interval(PLACE_KEPT))
            })
            .await?;
        let place = |row: &PgRow| {
            let key =
                SessionKey { team: row.try_get("team_id")?, session: row.try_get("session_id")? };
            Ok((key, LeaseId::from_uuid(row.try_get("lease_id")?)))
        };
        let places: Result<_, sqlx::Error> = rows.iter().map(place).collect();
        places.map_err(StoreError::fault)
    }
}

impl SessionStore for Link {
    async fn change(
        &mut self,
        acquires: &[&Acquire],
        releases: &[&Release],
    ) -> Result<Changed, StoreError> {
        let acquires: Vec<Asked<'_>> =
            acquires.iter().map(|&acquire| (acquire, LeaseId::random().as_uuid())).collect();
        let (taken, ended) = self.take_and_end(&acquires, releases).await?;
        let mut changed = Changed { taken, ended, handed: Vec::new() };
        match self.change_rest(&acquires, releases, &mut changed).await {
            Err(error) if changed.is_nothing() => Err(error),
            // What is decided has been committed.
            Err(error) => {
                fail(&mut changed.taken, &error);
                fail(&mut changed.ended, &error);
                Ok(changed)
            }
            Ok(()) => Ok(changed),
        }
    }

    async fn enqueue(&mut self, asked: &[&Enqueue]) -> Result<Vec<Verdict<Enqueued>>, StoreError> {
        answers::enqueue(self, asked).await
    }

    async fn hand_on(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        answers::hand_on(self, keys).await
    }

    async fn leave(&mut self, places: &[(&SessionKey, LeaseId)]) -> Result<Vec<bool>, StoreError> {
        answers::leave(self, places, false).await
    }

    async fn keep_places(
        &mut self,
        places: &[(&SessionKey, LeaseId)],
    ) -> Result<Vec<bool>, StoreError> {
        answers::leave(self, places, true).await
    }

    async fn renew(
        &mut self,
        asked: &[&Renew],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Renewed>>, StoreError> {
        answers::renew(self, asked, max_hold).await
    }

    async fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Option<SessionRow>>, StoreError> {
        let teams: Vec<&str> = keys.iter().map(|key| key.team.as_str()).collect();
        let sessions: Vec<&str> = keys.iter().map(|key| key.session.as_str()).collect();
        let now = self.now();
        let rows = self.fetch(|| sqlx::query(LOOK).bind(&teams).bind(&sessions).bind(now)).await?;
        let mut found = vec![None; keys.len()];
        for row in rows {
            *slot(&mut found, row.try_get("ord"))? = Some(session_row(&row)?);
        }
        Ok(found)
    }
}

impl Link {
    /// Decides what is not decided in `changed` yet.
    async fn change_rest(
        &mut self,
        acquires: &[Asked<'_>],
        releases: &[&Release],
        changed: &mut Changed,
    ) -> Result<(), StoreError> {
        let (taken, acquires) = left(&changed.taken, acquires);
        let (ended, releases) = left(&changed.ended, releases);
        if taken.is_empty() && ended.is_empty() {
            return Ok(());
        }
        let acquires: Vec<&Acquire> = acquires.into_iter().map(|(acquire, _)| acquire).collect();
        let rest = answers::change(self, &acquires, &releases).await?;
        fill(&mut changed.taken, taken, rest.taken);
        fill(&mut changed.ended, ended, rest.ended);
        changed.handed.extend(rest.handed);
        Ok(())
    }

    /// Takes free sessions, and ends live leases.
    async fn take_and_end(
        &mut self,
        acquires: &[Asked<'_>],
        releases: &[&Release],
    ) -> Result<(Vec<Verdict<Acquired>>, Vec<Verdict<bool>>), StoreError> {
        let (taking, ending) =
            (acquire::Arrays::of(self.locks, acquires), release::Arrays::of(self.locks, releases));
        let now = self.now();
        let rows = self
            .fetch(|| match (acquires, releases) {
                (_, []) => taking.bind(sqlx::query(TAKE).bind(now)),
                ([], _) => ending.bind(sqlx::query(END).bind(now)),
                _ => ending.bind(taking.bind(sqlx::query(TAKE_AND_END).bind(now))),
            })
            .await?;

        let places = Places::of(acquires);
        let mut taken = vec![Verdict::Again; acquires.len()];
        let mut ended = vec![Verdict::Again; releases.len()];
        for row in rows {
            match row.try_get("ord") {
                Ok(Some(ord)) => *slot(&mut ended, Ok(ord))? = Verdict::Decided(true),
                // [`TAKE`] has no such column.
                Ok(None) | Err(sqlx::Error::ColumnNotFound(_)) => {
                    let (place, outcome) = places.taken(&row)?;
                    taken[place] = Verdict::Decided(outcome);
                }
                Err(error) => return Err(StoreError::fault(error)),
            }
        }
        Ok((taken, ended))
    }
}

/// The arrays that every statement has which changes a session.
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

pub(super) fn session_row(row: &PgRow) -> Result<SessionRow, StoreError> {
    named_session_row(row, ["request_id", "holder", "expires_at"])
}

/// The same, of a row that has these three under other names.
pub(super) fn named_session_row(
    row: &PgRow,
    [request, holder, expires]: [&str; 3],
) -> Result<SessionRow, StoreError> {
    let read = || {
        let at = row.try_get::<PgTimestamp, _>("at")?.0;
        let (_, expire_time) = lease_end(row, expires)?;
        let lease = Lease {
            id: LeaseId::from_uuid(row.try_get("lease_id")?),
            token: FencingToken(row.try_get("fencing_token")?),
            holder: row.try_get(holder)?,
            acquire_time: row.try_get::<PgTimestamp, _>("acquired_at")?.0,
            expire_time,
            remaining: expire_time.since(at),
            epic: row.try_get("epic_id")?,
            labels: Labels::from_json(row.try_get("labels")?),
        };
        let request = RequestId::from_uuid(row.try_get(request)?);
        let queue: Option<Vec<Uuid>> = row.try_get("queue")?;
        let queue = queue.unwrap_or_default().into_iter().map(LeaseId::from_uuid).collect();
        let (live, waiting) = (row.try_get("live")?, row.try_get("waiting")?);
        Ok(SessionRow { lease, request, live, waiting, queue })
    };
    read().map_err(|error: sqlx::Error| StoreError::fault(error))
}
