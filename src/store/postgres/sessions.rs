//! Sessions in PostgreSQL: the row decides, the advisory lock orders.
//!
//! Each statement first tries the transaction-scoped advisory lock of every
//! session it is asked about, and leaves alone those that another replica is
//! deciding on: batches never wait for each other. Safety does not rest on the
//! lock: every write checks the row again, as it is when it is written.

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Link, events::slot, timestamp::PgTimestamp};
use crate::{
    domain::{
        Acquire, Acquired, FencingToken, Labels, Lease, LeaseId, RequestId, SessionKey, SessionRow,
    },
    store::{Release, Renew, SessionStore, StoreError, Verdict},
};

mod acquire;
mod release;

pub(super) use acquire::{ACQUIRE, TAKE};
pub(super) use release::{END, RELEASE};

pub(super) const RENEW: &str = "
WITH asked AS MATERIALIZED (
    SELECT a.* FROM set_config('lock_timeout', $7, true),
        unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::bigint[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, ttl_micros, ord)
), mine AS MATERIALIZED (
    SELECT * FROM asked WHERE pg_try_advisory_xact_lock(lock_key)
), renewed AS (
    UPDATE sessions s
    SET expires_at = COALESCE($6::timestamptz, clock_timestamp())
        + m.ttl_micros * interval '1 microsecond'
    FROM mine m
    WHERE s.team_id = m.team_id AND s.session_id = m.session_id AND s.lease_id = m.lease_id
        AND NOT s.released AND s.expires_at > COALESCE($6::timestamptz, clock_timestamp())
    RETURNING m.ord, s.*
)
SELECT m.ord, COALESCE($6::timestamptz, clock_timestamp()) AS at, r.fencing_token, r.lease_id,
    r.request_id, r.holder, r.labels, r.epic_id, r.acquired_at, r.expires_at,
    r.ord IS NOT NULL AS live
FROM mine m LEFT JOIN renewed r USING (ord)
";

pub(super) const LOOK: &str = "
SELECT a.ord, clock.at, s.fencing_token, s.lease_id, s.request_id, s.holder, s.labels, s.epic_id,
    s.acquired_at, s.expires_at, NOT s.released AND s.expires_at > clock.at AS live
FROM (SELECT COALESCE($3::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock,
    unnest($1::text[], $2::text[]) WITH ORDINALITY AS a (team_id, session_id, ord)
CROSS JOIN LATERAL (
    SELECT * FROM sessions t
    WHERE t.team_id = a.team_id AND t.session_id = a.session_id OFFSET 0) AS s
";

impl SessionStore for Link {
    async fn acquire(&mut self, asked: &[&Acquire]) -> Result<Vec<Verdict<Acquired>>, StoreError> {
        self.acquire_all(asked).await
    }

    async fn renew(
        &mut self,
        asked: &[&Renew],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let keys = Keys::of(asked.iter().map(|renew| &renew.key));
        let leases: Vec<Uuid> = asked.iter().map(|renew| renew.lease.as_uuid()).collect();
        let ttls: Vec<i64> = asked.iter().map(|renew| renew.ttl.as_micros()).collect();
        let now = self.now();
        let lock_timeout = self.lock_timeout();
        let rows = self
            .fetch(|| {
                keys.bind(sqlx::query(RENEW))
                    .bind(&leases)
                    .bind(&ttls)
                    .bind(now)
                    .bind(&lock_timeout)
            })
            .await?;

        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let renewed: bool = row.try_get("live").map_err(StoreError::fault)?;
            let session = if renewed { Some(session_row(&row)?) } else { None };
            *slot(&mut verdicts, row.try_get("ord"))? = Verdict::Decided(session);
        }
        Ok(verdicts)
    }

    async fn release(&mut self, asked: &[&Release]) -> Result<Vec<Verdict<bool>>, StoreError> {
        self.release_all(asked).await
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

/// The places of what is not decided.
fn undecided<T>(verdicts: &[Verdict<T>]) -> Vec<usize> {
    let places = verdicts.iter().enumerate();
    places
        .filter(|(_, verdict)| matches!(verdict, Verdict::Again))
        .map(|(place, _)| place)
        .collect()
}

/// The first three arrays of every statement that changes a session.
struct Keys<'a> {
    teams: Vec<&'a str>,
    sessions: Vec<&'a str>,
    locks: Vec<i64>,
}

type Statement<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

impl<'a> Keys<'a> {
    fn of(keys: impl Iterator<Item = &'a SessionKey> + Clone) -> Self {
        Self {
            teams: keys.clone().map(|key| key.team.as_str()).collect(),
            sessions: keys.clone().map(|key| key.session.as_str()).collect(),
            locks: keys.map(SessionKey::lock_key).collect(),
        }
    }

    fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement.bind(&self.teams).bind(&self.sessions).bind(&self.locks)
    }
}

fn session_row(row: &PgRow) -> Result<SessionRow, StoreError> {
    let read = || {
        let at = row.try_get::<PgTimestamp, _>("at")?.0;
        let expire_time = row.try_get::<PgTimestamp, _>("expires_at")?.0;
        let lease = Lease {
            id: LeaseId::from_uuid(row.try_get("lease_id")?),
            token: FencingToken(row.try_get("fencing_token")?),
            holder: row.try_get("holder")?,
            acquire_time: row.try_get::<PgTimestamp, _>("acquired_at")?.0,
            expire_time,
            remaining: expire_time.since(at),
            epic: row.try_get("epic_id")?,
            labels: Labels::from_json(row.try_get("labels")?),
        };
        let request = RequestId::from_uuid(row.try_get("request_id")?);
        Ok(SessionRow { lease, request, live: row.try_get("live")? })
    };
    read().map_err(|error: sqlx::Error| StoreError::fault(error))
}
