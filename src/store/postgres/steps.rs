//! Steps of the database's clock. What was written before the clock was stepped back ends
//! later than it should: it counts as ending at now + TTL ([`Timestamp::trusted`]), and the
//! statements here write that back, so that it does from the first request for it on.

use uuid::Uuid;

use super::{Handle, events::interval, sessions::Keys};
use crate::domain::{LeaseId, SessionKey, Timestamp, limits::CLAIM_MEMORY};

/// How long the lease of `$row` ran when it was last written.
macro_rules! lease_ttl {
    ($row:literal) => {
        concat!(
            "COALESCE(",
            $row,
            ".ttl_micros * interval '1 microsecond', ",
            $row,
            ".expires_at - ",
            $row,
            ".acquired_at)"
        )
    };
}

/// Lowers the end of leases that end later than now + TTL: the clock was stepped back since
/// they were written, and they would run longer by that. So each counts as ending at now +
/// TTL from the first look on.
pub(super) const SHORTEN: &str = concat!(
    "
UPDATE oncegate_sessions s
SET acquired_at = LEAST(s.acquired_at, m.at), expires_at = m.at + ",
    lease_ttl!("s"),
    "
FROM (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[])
        AS a (team_id, session_id, lock_key, lease_id)
    WHERE pg_try_advisory_xact_lock(a.lock_key) OFFSET 0) AS m
WHERE ",
    same_key!("session_id", "s", "m"),
    " AND s.lease_id = m.lease_id AND NOT s.released
    AND s.expires_at > m.at + ",
    lease_ttl!("s"),
    "
"
);

/// Lowers the end of claims that end later than now + TTL: the clock was stepped back since
/// they were written. $2: for how long a claim is remembered, from when it is written.
pub(super) const SHORTEN_CLAIMS: &str = concat!(
    "
UPDATE processed_events e
SET claimed_until = c.at + (e.claimed_until - (e.expires_at - $2::interval)),
    expires_at = c.at + $2::interval, processed_at = LEAST(e.processed_at, c.at),
    sweep_after = ",
    sweep_after!("c.at + $2::interval", "$2::interval < interval '24 hours'"),
    "
FROM (
    SELECT a.team_id, a.request_id, u.name,
        COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($3::text[], $4::text[], $5::uuid[]) AS a (team_id, names, request_id)
        CROSS JOIN LATERAL unnest(string_to_array(a.names, E'\\x1f')) AS u (name)
    ORDER BY a.team_id COLLATE \"C\", u.name COLLATE \"C\") AS c
WHERE e.team_id = ANY (ARRAY[c.team_id]) AND e.event_id = c.name
    AND e.request_id = c.request_id AND e.expires_at - $2::interval > c.at
    AND ",
    running!("e", "c.at"),
    "
"
);

impl Handle {
    /// Lowers the end of leases that were found to end too late. What was
    /// decided stands even if this fails: the next look finds them again.
    pub(super) async fn shorten(&mut self, found: &[(&SessionKey, LeaseId)]) {
        if found.is_empty() {
            return;
        }
        let keys = Keys::of(self.locks, found.iter().map(|(key, _)| *key));
        let leases: Vec<Uuid> = found.iter().map(|(_, lease)| lease.as_uuid()).collect();
        let now = self.now();
        let shortened =
            self.fetch(|| keys.bind(sqlx::query(SHORTEN).bind(now)).bind(&leases)).await;
        match shortened {
            Ok(_) => tracing::warn!(
                leases = found.len(),
                "database clock was stepped back; leases shortened to now + TTL"
            ),
            Err(error) => tracing::debug!(%error, "cannot shorten leases; retrying later"),
        }
    }

    /// Lowers the end of claims that were found to end too late. What was decided stands
    /// even if this fails: the next look finds them again.
    pub(super) async fn shorten_claims(&mut self, found: &Overlong<'_>) {
        if found.teams.is_empty() {
            return;
        }
        let now = self.now();
        let shortened = self
            .fetch(|| {
                sqlx::query(SHORTEN_CLAIMS)
                    .bind(now)
                    .bind(interval(CLAIM_MEMORY))
                    .bind(&found.teams)
                    .bind(&found.names)
                    .bind(&found.requests)
            })
            .await;
        match shortened {
            Ok(_) => tracing::warn!(
                claims = found.teams.len(),
                "database clock was stepped back; claims shortened to now + TTL"
            ),
            Err(error) => tracing::debug!(%error, "cannot shorten claims; retrying later"),
        }
    }
}

/// Claims that are written to end later than they count ([`claim_end`]), as a statement's
/// arrays.
#[derive(Default)]
pub(super) struct Overlong<'a> {
    teams: Vec<&'a str>,
    names: Vec<String>,
    requests: Vec<Uuid>,
}

impl<'a> Overlong<'a> {
    /// Adds a claim of `request`, under `names`.
    pub(super) fn add(&mut self, team: &'a str, names: &[String], request: Uuid) {
        self.names.push(names.join("\u{1f}"));
        self.requests.push(request);
        self.teams.push(team);
    }
}

/// When a claim lapses, as it counts. It was last written `CLAIM_MEMORY` before it expires, and
/// cannot run longer from now than it did from then, unless the clock was stepped back since. One
/// that was ended has no time left, whatever the clock shows.
pub(super) fn claim_end(
    until: Timestamp,
    time: Timestamp,
    expires: Timestamp,
    now: Timestamp,
) -> Timestamp {
    if until <= time {
        return until;
    }
    until.trusted(until.since(expires.minus(CLAIM_MEMORY)), now)
}
