//! Giving leases back.

use sqlx::Row as _;
use uuid::Uuid;

use super::{Keys, Link, slot, undecided};
use crate::store::{Release, StoreError, Verdict};

/// Ends live leases, but for repeated ones where those are to be spared, and
/// tells which.
pub(in super::super) const END: &str = "
WITH mine AS MATERIALIZED (
    SELECT a.* FROM set_config('lock_timeout', $6, true),
        unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[], $7::boolean[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, unless_repeated, ord)
    WHERE pg_try_advisory_xact_lock(a.lock_key)
)
UPDATE sessions s
SET released = true, expires_at = COALESCE($5::timestamptz, clock_timestamp())
FROM mine m
WHERE s.team_id = m.team_id AND s.session_id = m.session_id AND s.lease_id = m.lease_id
    AND NOT s.released AND s.expires_at > COALESCE($5::timestamptz, clock_timestamp())
    AND NOT (m.unless_repeated AND s.repeated)
RETURNING m.ord, true AS released
";

/// Ends live leases as [`END`] does, and reads what there is to tell of the
/// others. One that lives in the statement's snapshot, and was not there to be ended,
/// another replica changed in between: it is asked again.
pub(in super::super) const RELEASE: &str = "
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

impl Link {
    /// Ends leases.
    pub(super) async fn release_all(
        &mut self,
        asked: &[&Release],
    ) -> Result<Vec<Verdict<bool>>, StoreError> {
        let mut verdicts = self.end(END, asked).await?;
        let open = undecided(&verdicts);
        if !open.is_empty() {
            let left: Vec<&Release> = open.iter().map(|&place| asked[place]).collect();
            let found = self.end(RELEASE, &left).await?;
            open.into_iter().zip(found).for_each(|(place, verdict)| verdicts[place] = verdict);
        }
        Ok(verdicts)
    }

    /// Ends leases by [`END`] or [`RELEASE`].
    async fn end(
        &mut self,
        statement: &'static str,
        asked: &[&Release],
    ) -> Result<Vec<Verdict<bool>>, StoreError> {
        let keys = Keys::of(asked.iter().map(|release| &release.key));
        let leases: Vec<Uuid> = asked.iter().map(|release| release.lease.as_uuid()).collect();
        let spared: Vec<bool> = asked.iter().map(|release| release.unless_repeated).collect();
        let now = self.now();
        let lock_timeout = self.lock_timeout();
        let rows = self
            .fetch(|| {
                keys.bind(sqlx::query(statement))
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
}
