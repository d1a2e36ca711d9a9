//! Taking leases.

use std::collections::HashMap;

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Keys, Link, Statement, session_row, slot, undecided};
use crate::{
    domain::{Acquire, Acquired, Decision, FencingToken, Lease, LeaseId, SessionRow},
    store::{StoreError, Verdict, postgres::timestamp::PgTimestamp},
};

/// Takes the leases of free sessions, which is what nearly all who ask for one
/// come to, and tells what they do not know of them. The token of a row that is
/// there already is drawn while the row is locked, so it rises even where
/// advisory locks do nothing.
pub(in super::super) const TAKE: &str = "
INSERT INTO sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
    holder, labels, epic_id, acquired_at, expires_at)
SELECT a.team_id, a.session_id, nextval('session_fencing_tokens'), a.lease_id, a.request_id,
    a.holder, a.labels, a.epic_id, a.at, a.at + a.ttl_micros * interval '1 microsecond'
FROM (
    SELECT a.*, COALESCE($10::timestamptz, clock_timestamp()) AS at
    FROM set_config('lock_timeout', $11, true),
        unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::uuid[],
            $6::text[], $7::text[], $8::text[], $9::bigint[])
        AS a (team_id, session_id, lock_key, lease_id, request_id,
            holder, labels, epic_id, ttl_micros)
    WHERE pg_try_advisory_xact_lock(a.lock_key) OFFSET 0) AS a
ON CONFLICT (team_id, session_id) DO UPDATE
SET fencing_token = nextval('session_fencing_tokens'), lease_id = EXCLUDED.lease_id,
    request_id = EXCLUDED.request_id, holder = EXCLUDED.holder, labels = EXCLUDED.labels,
    epic_id = COALESCE(s.epic_id, EXCLUDED.epic_id), released = false, repeated = false,
    (acquired_at, expires_at) = (
        SELECT at, at + (EXCLUDED.expires_at - EXCLUDED.acquired_at)
        FROM (SELECT COALESCE($10::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock)
WHERE (s.released OR s.expires_at <= COALESCE($10::timestamptz, clock_timestamp()))
    AND (s.epic_id = EXCLUDED.epic_id) IS NOT FALSE
RETURNING lease_id, fencing_token, epic_id, acquired_at, expires_at,
    COALESCE($10::timestamptz, clock_timestamp()) AS at
";

/// Takes the leases of free sessions as [`TAKE`] does, and reads the others'
/// rows. A lease that is granted again, to a repetition of its request, is noted
/// as repeated; `fresh` tells it from one that this very statement, or `TAKE`
/// before it, took in a run that lost its answer.
pub(in super::super) const ACQUIRE: &str = "
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

impl Link {
    /// Takes free sessions, and reads those that are not.
    pub(super) async fn acquire_all(
        &mut self,
        asked: &[&Acquire],
    ) -> Result<Vec<Verdict<Acquired>>, StoreError> {
        let leases: Vec<Uuid> = asked.iter().map(|_| LeaseId::random().as_uuid()).collect();
        let mut verdicts = self.take(asked, &leases).await?;
        let open = undecided(&verdicts);
        if !open.is_empty() {
            let (taken, leases): (Vec<_>, Vec<_>) =
                open.iter().map(|&place| (asked[place], leases[place])).unzip();
            let found = self.acquire_taken(&taken, &leases).await?;
            open.into_iter().zip(found).for_each(|(place, verdict)| verdicts[place] = verdict);
        }
        Ok(verdicts)
    }

    /// Takes free sessions.
    async fn take(
        &mut self,
        asked: &[&Acquire],
        leases: &[Uuid],
    ) -> Result<Vec<Verdict<Acquired>>, StoreError> {
        let arrays = Asked::new(self, asked, leases);
        let rows = self.fetch(|| arrays.bind(TAKE)).await?;
        let places: HashMap<Uuid, usize> = leases.iter().copied().zip(0..).collect();
        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let (place, row) = taken_row(&row, &places, asked)?;
            verdicts[place] = Verdict::Decided(Acquired { row, fresh: true });
        }
        Ok(verdicts)
    }

    /// Takes free sessions, and reads those that are not.
    async fn acquire_taken(
        &mut self,
        asked: &[&Acquire],
        leases: &[Uuid],
    ) -> Result<Vec<Verdict<Acquired>>, StoreError> {
        let arrays = Asked::new(self, asked, leases);
        let rows = self.fetch(|| arrays.bind(ACQUIRE)).await?;
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
}

/// Requests for leases as a statement's arrays.
struct Asked<'a> {
    keys: Keys<'a>,
    leases: &'a [Uuid],
    requests: Vec<Uuid>,
    holders: Vec<&'a str>,
    labels: Vec<String>,
    epics: Vec<Option<&'a str>>,
    ttls: Vec<i64>,
    now: Option<PgTimestamp>,
    lock_timeout: String,
}

impl<'a> Asked<'a> {
    fn new(link: &Link, asked: &[&'a Acquire], leases: &'a [Uuid]) -> Self {
        Self {
            keys: Keys::of(asked.iter().map(|acquire| &acquire.key)),
            leases,
            requests: asked.iter().map(|acquire| acquire.request.as_uuid()).collect(),
            holders: asked.iter().map(|acquire| acquire.holder.as_str()).collect(),
            labels: asked.iter().map(|acquire| acquire.labels.to_json()).collect(),
            epics: asked.iter().map(|acquire| acquire.epic.as_deref()).collect(),
            ttls: asked.iter().map(|acquire| acquire.ttl.as_micros()).collect(),
            now: link.now(),
            lock_timeout: link.lock_timeout(),
        }
    }

    fn bind(&self, statement: &'static str) -> Statement<'_> {
        self.keys
            .bind(sqlx::query(statement))
            .bind(self.leases)
            .bind(&self.requests)
            .bind(&self.holders)
            .bind(&self.labels)
            .bind(&self.epics)
            .bind(&self.ttls)
            .bind(self.now)
            .bind(&self.lock_timeout)
    }
}

/// The place and the row of a session that [`TAKE`] took: what its caller asked
/// for, but for what only the store knows.
fn taken_row(
    row: &PgRow,
    places: &HashMap<Uuid, usize>,
    asked: &[&Acquire],
) -> Result<(usize, SessionRow), StoreError> {
    let read = || {
        let lease_id: Uuid = row.try_get("lease_id")?;
        let Some(&place) = places.get(&lease_id) else { return Ok(None) };
        let acquire = asked[place];
        let expire_time = row.try_get::<PgTimestamp, _>("expires_at")?.0;
        let lease = Lease {
            id: LeaseId::from_uuid(lease_id),
            token: FencingToken(row.try_get("fencing_token")?),
            holder: acquire.holder.clone(),
            acquire_time: row.try_get::<PgTimestamp, _>("acquired_at")?.0,
            expire_time,
            remaining: expire_time.since(row.try_get::<PgTimestamp, _>("at")?.0),
            epic: row.try_get("epic_id")?,
            labels: acquire.labels.clone(),
        };
        Ok(Some((place, SessionRow { lease, request: acquire.request, live: true })))
    };
    let taken = read().map_err(|error: sqlx::Error| StoreError::fault(error))?;
    taken.ok_or_else(|| StoreError::fault("a row nobody asked for"))
}
