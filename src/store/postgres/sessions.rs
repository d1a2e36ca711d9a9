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
        Acquire, Acquired, Decision, FencingToken, Labels, Lease, LeaseId, RequestId, SessionKey,
        SessionRow,
    },
    store::{Release, Renew, SessionStore, StoreError, Verdict},
};

/// Takes the leases of free sessions, and reads the others' rows. The token of
/// a row that is there already is drawn while the row is locked, so it rises
/// even where advisory locks do nothing. A lease that is granted again, to a
/// repetition of its request, is noted as repeated; `fresh` tells it from one
/// that this very statement took when its first run lost its answer.
pub(super) const ACQUIRE: &str = "
WITH asked AS MATERIALIZED (
    SELECT a.* FROM set_config('lock_timeout', $11, true),
        unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::uuid[],
            $6::text[], $7::text[], $8::text[], $9::bigint[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, request_id,
            holder, labels, epic_id, ttl_micros, ord)
), mine AS MATERIALIZED (
    SELECT *, COALESCE($10::timestamptz, clock_timestamp()) AS at
    FROM asked WHERE pg_try_advisory_xact_lock(lock_key)
), seen AS MATERIALIZED (
    SELECT m.ord, m.at, s.*, NOT s.released AND s.expires_at > m.at AS live,
        s.request_id = m.request_id AND NOT s.released AND s.expires_at > m.at AS own,
        s.lease_id = m.lease_id AS fresh
    FROM mine m CROSS JOIN LATERAL (
        SELECT * FROM sessions t
        WHERE t.team_id = m.team_id AND t.session_id = m.session_id OFFSET 0) AS s
), told_again AS (
    UPDATE sessions s SET repeated = true
    FROM seen n
    WHERE n.own AND NOT n.fresh AND NOT n.repeated
        AND s.team_id = n.team_id AND s.session_id = n.session_id AND s.lease_id = n.lease_id
        AND NOT s.released AND s.expires_at > COALESCE($10::timestamptz, clock_timestamp())
    RETURNING n.ord
), taken AS (
    INSERT INTO sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
        holder, labels, epic_id, acquired_at, expires_at)
    SELECT m.team_id, m.session_id, nextval('session_fencing_tokens'), m.lease_id, m.request_id,
        m.holder, m.labels, m.epic_id, m.at, m.at + m.ttl_micros * interval '1 microsecond'
    FROM mine m LEFT JOIN seen n USING (ord)
    WHERE n.live IS NOT TRUE AND (n.epic_id = m.epic_id) IS NOT FALSE
    ORDER BY m.ord
    ON CONFLICT (team_id, session_id) DO UPDATE
    SET fencing_token = nextval('session_fencing_tokens'), lease_id = EXCLUDED.lease_id,
        request_id = EXCLUDED.request_id, holder = EXCLUDED.holder, labels = EXCLUDED.labels,
        epic_id = COALESCE(s.epic_id, EXCLUDED.epic_id), released = false, repeated = false,
        (acquired_at, expires_at) = (
            SELECT at, at + (EXCLUDED.expires_at - EXCLUDED.acquired_at)
            FROM (SELECT COALESCE($10::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock)
    WHERE (s.released OR s.expires_at <= COALESCE($10::timestamptz, clock_timestamp()))
        AND (s.epic_id = EXCLUDED.epic_id) IS NOT FALSE
    RETURNING s.*
)
SELECT m.ord, COALESCE($10::timestamptz, clock_timestamp()) AS at, t.fencing_token, t.lease_id,
    t.request_id, t.holder, t.labels, t.epic_id, t.acquired_at, t.expires_at, true AS live,
    true AS fresh
FROM taken t JOIN mine m ON m.lease_id = t.lease_id
UNION ALL
SELECT ord, at, fencing_token, lease_id, request_id, holder, labels, epic_id,
    acquired_at, expires_at, live, own AND fresh
FROM seen n WHERE NOT n.own OR n.fresh OR n.repeated OR n.ord IN (SELECT ord FROM told_again)
";

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

/// Ends live leases, but for repeated ones where those are to be spared. One
/// that lives in the statement's snapshot, and was not there to be ended,
/// another replica changed in between: it is asked again.
pub(super) const RELEASE: &str = "
WITH asked AS MATERIALIZED (
    SELECT a.* FROM set_config('lock_timeout', $6, true),
        unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[], $7::boolean[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, unless_repeated, ord)
), mine AS MATERIALIZED (
    SELECT * FROM asked WHERE pg_try_advisory_xact_lock(lock_key)
), released AS (
    UPDATE sessions s
    SET released = true, expires_at = COALESCE($5::timestamptz, clock_timestamp())
    FROM mine m
    WHERE s.team_id = m.team_id AND s.session_id = m.session_id AND s.lease_id = m.lease_id
        AND NOT s.released AND s.expires_at > COALESCE($5::timestamptz, clock_timestamp())
        AND NOT (m.unless_repeated AND s.repeated)
    RETURNING m.ord
)
SELECT m.ord, r.ord IS NOT NULL OR COALESCE(s.released, false) AS released
FROM mine m LEFT JOIN released r USING (ord)
LEFT JOIN sessions s
    ON s.team_id = m.team_id AND s.session_id = m.session_id AND s.lease_id = m.lease_id
WHERE r.ord IS NOT NULL
    OR (s.released OR s.expires_at <= COALESCE($5::timestamptz, clock_timestamp())
        OR (m.unless_repeated AND s.repeated)) IS NOT FALSE
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
        let keys = Keys::of(asked.iter().map(|acquire| &acquire.key));
        let leases: Vec<Uuid> = asked.iter().map(|_| LeaseId::random().as_uuid()).collect();
        let requests: Vec<Uuid> = asked.iter().map(|acquire| acquire.request.as_uuid()).collect();
        let holders: Vec<&str> = asked.iter().map(|acquire| acquire.holder.as_str()).collect();
        let labels: Vec<String> = asked.iter().map(|acquire| acquire.labels.to_json()).collect();
        let epics: Vec<Option<&str>> =
            asked.iter().map(|acquire| acquire.epic.as_deref()).collect();
        let ttls: Vec<i64> = asked.iter().map(|acquire| acquire.ttl.as_micros()).collect();
        let now = self.now();
        let lock_timeout = self.lock_timeout();
        let rows = self
            .fetch(|| {
                keys.bind(sqlx::query(ACQUIRE))
                    .bind(&leases)
                    .bind(&requests)
                    .bind(&holders)
                    .bind(&labels)
                    .bind(&epics)
                    .bind(&ttls)
                    .bind(now)
                    .bind(&lock_timeout)
            })
            .await?;

        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let fresh = row.try_get("fresh").map_err(StoreError::fault)?;
            let verdict = slot(&mut verdicts, row.try_get("ord"))?;
            // A session that was taken was seen before, as it was then.
            if fresh || *verdict == Verdict::Again {
                *verdict = Verdict::Decided(Acquired { row: session_row(&row)?, fresh });
            }
        }
        // A row that was free, and was not taken, somebody else took first.
        for (verdict, acquire) in verdicts.iter_mut().zip(asked) {
            if let Verdict::Decided(acquired) = verdict
                && acquired.row.decision(acquire) == Decision::Free
            {
                *verdict = Verdict::Again;
            }
        }
        Ok(verdicts)
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
        let keys = Keys::of(asked.iter().map(|release| &release.key));
        let leases: Vec<Uuid> = asked.iter().map(|release| release.lease.as_uuid()).collect();
        let spared: Vec<bool> = asked.iter().map(|release| release.unless_repeated).collect();
        let now = self.now();
        let lock_timeout = self.lock_timeout();
        let rows = self
            .fetch(|| {
                keys.bind(sqlx::query(RELEASE))
                    .bind(&leases)
                    .bind(now)
                    .bind(&lock_timeout)
                    .bind(&spared)
            })
            .await?;

        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let released = row.try_get("released").map_err(StoreError::fault)?;
            *slot(&mut verdicts, row.try_get("ord"))? = Verdict::Decided(released);
        }
        Ok(verdicts)
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
