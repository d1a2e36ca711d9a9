//! Beginning turns, whatever there is of their events and sessions.

use sqlx::{
    Row as _,
    postgres::{PgRow, types::PgInterval},
};
use uuid::Uuid;

use super::{any_session, session_row, small};
use crate::{
    domain::{
        Begin, Begun, Decision, EventRow, LeaseId, PayloadDigest, SessionKey, limits::CLAIM_MEMORY,
    },
    store::{
        StoreError, Turned, Verdict,
        postgres::{
            Link, Locks,
            answers::place,
            events::{event_row, interval, names, turn_result},
            fence::{new_token, next_token, token_of},
            link::Statement,
            sessions::sql::or_take_over,
            steps::{Overlong, is_overlong},
        },
    },
};

/// The row of a turn's session, where the turn has one.
macro_rules! session_of {
    ($turn:literal) => {
        concat!(
            "LEFT JOIN LATERAL (
    SELECT * FROM oncegate_sessions t
    WHERE t.team_id = ",
            $turn,
            ".team_id AND t.session_id = ",
            $turn,
            ".session_id OFFSET 0) AS s ON true"
        )
    };
}

/// Begins turns: claims an event, under all of its names, and takes its session. $15: for
/// how long attempts are counted. $17: the names of those that have several. `kind` tells
/// what a row is about: `granted`, with event and session; `taken`, the event as it stands,
/// with its result, and the session, which to a repetition of the request that has it is
/// told only once it is noted that this has it by now; `spent`, an event whose attempts that
/// count were all used, and all names of that claim; `busy`, the session, where the event is free; `lost`, a lease
/// that was taken for an event that somebody else got in the very moment, and is to be given
/// back.
///
/// The session is taken first, and the event only for those who got theirs: both are
/// decided again as they are written. Of an event's names that are `known` one counts: a
/// live one, of this attempt before others; else the one that was claimed most often.
pub(in super::super) const BEGIN: &str = concat!(
    "
WITH mine AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::uuid[], $5::interval[], $6::text[], $7::integer[],
            $8::text[], $9::bigint[], $10::uuid[], $11::uuid[], $12::text[], $13::bigint[],
            $14::text[], $16::uuid[], $17::text[], $18::uuid[]) WITH ORDINALITY
        AS a (team_id, event_id, request_id, claim_ttl, holder, max_attempts, session_id,
            lock_key, lease_id, session_request, epic_id, ttl_micros, labels, digest, names,
            stream, ord)
    WHERE a.session_id IS NULL OR pg_try_advisory_xact_lock(a.lock_key)
), named AS MATERIALIZED (
    SELECT m.ord, n.name, n.place
    FROM mine m CROSS JOIN LATERAL unnest(
            COALESCE(string_to_array(m.names, E'\\x1f'), ARRAY[m.event_id])) WITH ORDINALITY
        AS n (name, place)
), known AS MATERIALIZED (
    SELECT DISTINCT ON (m.ord) m.ord, m.at, m.session_id, m.max_attempts,
        m.request_id = e.request_id AS own, m.session_request, m.lease_id, m.stream,
        e.claimed_until > e.processed_at AS lapsed, ",
    live_event!("e", "m.at"),
    " AS is_live, e.team_id, e.event_id, e.request_id, e.processed_at, e.expires_at,
        e.claimed_until, e.attempt, e.holder, e.result, e.result_type, e.rejected_at, e.detail, ",
    uncounted!("e"),
    " AS uncounted, e.names, p.digest,
        (p.digest <> m.digest) IS TRUE AS differs
    FROM mine m JOIN named n USING (ord) CROSS JOIN LATERAL (
        SELECT * FROM processed_events p
        WHERE p.team_id = m.team_id AND p.event_id = n.name OFFSET 0) AS e
    -- What an alias was taken with is another delivery's.
    CROSS JOIN LATERAL (SELECT CASE WHEN n.place = 1 THEN e.digest END) AS p (digest)
    WHERE e.expires_at > m.at
    ORDER BY m.ord, is_live DESC, (",
    live_event!("e", "m.at"),
    " AND m.request_id = e.request_id) DESC NULLS LAST, e.attempt DESC NULLS LAST, n.place
), lease_told_again AS (
    UPDATE oncegate_sessions s SET ",
    repeated_by!("n"),
    "
    FROM known n
    WHERE ",
    same_key!("session_id", "s", "n"),
    " AND n.own AND n.is_live AND n.claimed_until IS NOT NULL AND NOT n.differs
        AND s.request_id = n.session_request AND s.lease_id <> n.lease_id
        AND NOT s.released AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
    RETURNING n.ord
), told_again AS (
    UPDATE processed_events e SET interrupted = NULL, ",
    repeated_by!("n"),
    "
    FROM (
        SELECT k.*, u.name
        FROM known k CROSS JOIN LATERAL unnest(COALESCE(k.names, ARRAY[k.event_id])) AS u (name)
        ORDER BY k.team_id COLLATE \"C\", u.name COLLATE \"C\") AS n
    WHERE e.team_id = ANY (ARRAY[n.team_id]) AND e.event_id = n.name
        AND n.own AND n.is_live AND NOT n.differs AND e.request_id = n.request_id
        AND ",
    running!("e", "COALESCE($1::timestamptz, clock_timestamp())"),
    "
        AND (n.session_id IS NULL OR n.ord IN (SELECT ord FROM lease_told_again))
    RETURNING n.ord
), wanted AS MATERIALIZED (
    SELECT m.*, COALESCE(n.attempt, 0) + 1 AS attempt, n.lapsed, n.detail, n.uncounted
    FROM mine m LEFT JOIN known n USING (ord)
    WHERE n.is_live IS NOT TRUE AND COALESCE(",
    counted!("n"),
    ", 0) < m.max_attempts
), taken AS (
    ",
    take_session!("w", "wanted w WHERE w.session_id IS NOT NULL ORDER BY w.team_id, w.session_id"),
    " RETURNING s.*
), claimed AS (
    INSERT INTO processed_events AS e (team_id, event_id, processed_at, expires_at, request_id,
        claimed_until, attempt, holder, names, digest, detail, uncounted)
    SELECT w.team_id, n.name, w.at, w.at + $15::interval, w.request_id,
        w.at + w.claim_ttl, w.attempt, w.holder, string_to_array(w.names, E'\\x1f'),
        CASE WHEN n.place = 1 THEN w.digest END, w.detail, w.uncounted
    FROM wanted w JOIN named n USING (ord)
    WHERE w.session_id IS NULL OR w.lease_id IN (SELECT lease_id FROM taken)
    ORDER BY w.team_id COLLATE \"C\", n.name COLLATE \"C\"
    ON CONFLICT (team_id, event_id) DO UPDATE
    SET (processed_at, expires_at, claimed_until) = (
            SELECT at, at + (EXCLUDED.expires_at - EXCLUDED.processed_at),
                at + (EXCLUDED.claimed_until - EXCLUDED.processed_at)
            FROM ",
    moment!(),
    "),
        request_id = EXCLUDED.request_id, attempt = EXCLUDED.attempt, holder = EXCLUDED.holder,
        names = EXCLUDED.names, digest = EXCLUDED.digest, detail = EXCLUDED.detail,
        uncounted = EXCLUDED.uncounted, interrupted = NULL, result = NULL, result_type = NULL,
        rejected_at = NULL, repeated = NULL, resumed_by = NULL
    WHERE NOT ",
    live_event!("e", "COALESCE($1::timestamptz, clock_timestamp())"),
    " AND (e.expires_at <= COALESCE($1::timestamptz, clock_timestamp())
        OR e.attempt < EXCLUDED.attempt)
    RETURNING e.*
), ",
    whole!("claimed"),
    "
SELECT w.ord, 'granted' AS kind, c.processed_at AS at, true AS fresh, true AS told, w.lapsed,
    NULL::text AS names, ",
    event_columns!("c"),
    ", NULL::bytea AS result, NULL::text AS result_type, ",
    session_columns!("t", "true", "NULL::uuid[] AS queue"),
    "
FROM claimed c JOIN wanted w USING (request_id) LEFT JOIN taken t USING (lease_id)
WHERE ",
    first_of!("c"),
    "
UNION ALL
SELECT n.ord, 'taken', n.at, (s.lease_id = n.lease_id) IS TRUE,
    n.ord IN (SELECT ord FROM told_again) OR (s.lease_id = n.lease_id) IS TRUE, NULL,
    array_to_string(COALESCE(n.names, ARRAY[n.event_id]), E'\\x1f'), ",
    event_columns!("n"),
    ", n.result, n.result_type, ",
    session_columns!("s", "NOT s.released AND s.expires_at > n.at", "NULL"),
    "
FROM known n ",
    session_of!("n"),
    " WHERE n.is_live AND (NOT n.own OR n.claimed_until IS NULL OR n.differs
    OR n.ord IN (SELECT ord FROM told_again) OR s.lease_id = n.lease_id
    -- A claim that has lost its lease. Else it ended just now: that is asked again.
    OR n.session_id IS NOT NULL AND (s.request_id = n.session_request
        AND NOT s.released AND s.expires_at > n.at) IS NOT TRUE)
UNION ALL
SELECT n.ord, 'spent', n.at, false, false, n.lapsed,
    array_to_string(COALESCE(n.names, ARRAY[n.event_id]), E'\\x1f'), ",
    event_columns!("n"),
    ", NULL, NULL, ",
    session_columns!("s", "NOT s.released AND s.expires_at > n.at", "NULL"),
    "
FROM known n ",
    session_of!("n"),
    "
WHERE NOT n.is_live AND ",
    counted!("n"),
    " >= n.max_attempts
UNION ALL
SELECT b.ord, 'busy', b.at, false, false, NULL, NULL, ",
    event_columns!("e"),
    ", NULL, NULL, ",
    session_columns!("s", "NOT s.released AND s.expires_at > b.at", queue!("s", "b.at")),
    "
FROM wanted b LEFT JOIN processed_events e ON false CROSS JOIN LATERAL (
    SELECT * FROM oncegate_sessions t
    WHERE t.team_id = b.team_id AND t.session_id = b.session_id OFFSET 0) AS s
WHERE b.lease_id NOT IN (SELECT lease_id FROM taken)
UNION ALL
SELECT w.ord, 'lost', w.at, false, false, NULL, NULL, ",
    event_columns!("e"),
    ", NULL, NULL, ",
    session_columns!("t", "true", "NULL"),
    "
FROM taken t JOIN wanted w USING (lease_id) LEFT JOIN processed_events e ON false
WHERE w.request_id NOT IN (SELECT request_id FROM claimed)
"
);

/// Gives events up that are `spent`, if they still are. They are not given up by [`BEGIN`]
/// itself: it would take their rows out of the order in which all that take events do. $2:
/// for how long that is told.
pub(in super::super) const GIVE_UP: &str = concat!(
    "
WITH asked AS MATERIALIZED (
    SELECT a.*, u.name
    FROM (
        SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
        FROM unnest($3::text[], $4::text[], $5::uuid[], $6::integer[]) WITH ORDINALITY
            AS a (team_id, names, request_id, attempt, ord) OFFSET 0) AS a
    CROSS JOIN LATERAL unnest(string_to_array(a.names, E'\\x1f')) AS u (name)
    ORDER BY a.team_id COLLATE \"C\", u.name COLLATE \"C\"
), given_up AS (
    UPDATE processed_events e
    SET claimed_until = NULL, processed_at = q.at, expires_at = q.at + $2::interval,
        uncounted = ",
    uncounted!("e"),
    ", interrupted = NULL
    FROM asked q
    WHERE e.team_id = ANY (ARRAY[q.team_id]) AND e.event_id = q.name
        AND e.request_id = q.request_id AND e.attempt = q.attempt
        AND NOT ",
    running!("e", "COALESCE($1::timestamptz, clock_timestamp())"),
    "
        AND e.expires_at > COALESCE($1::timestamptz, clock_timestamp())
    RETURNING q.ord, q.at, e.*
)
SELECT ord, at, ",
    event_columns!("e"),
    " FROM given_up e"
);

impl Link {
    /// Begins turns, whatever there is of their events and sessions; notes in `turned`
    /// what was found beside.
    pub(super) async fn begin_any(
        &mut self,
        asked: &[Wish<'_>],
        turned: &mut Turned,
    ) -> Result<Vec<Verdict<Begun>>, StoreError> {
        let wishes = Wishes::of(self.locks, asked);
        let now = self.now();
        let names: Vec<Option<String>> =
            asked.iter().map(|(begin, _)| names(&begin.event)).collect();
        let streams: Vec<Option<Uuid>> =
            asked.iter().map(|(begin, _)| Some(begin.stream?.as_uuid())).collect();
        let rows = self
            .fetch(|| wishes.bind(sqlx::query(BEGIN).bind(now)).bind(&names).bind(&streams))
            .await?;

        let mut verdicts = vec![Verdict::Again; asked.len()];
        let mut spent = Spent::default();
        let (mut leases, mut claims) = (Vec::new(), Overlong::default());
        for row in rows {
            let place = place(asked.len(), row.try_get("ord"))?;
            let (begin, _) = asked[place];
            if let Some(acquire) = &begin.session
                && is_overlong(&row, "lease_expires_at")
            {
                leases.push((&acquire.key, session_row(&row)?.lease.id));
            }
            let lapsed: Option<bool> = row.try_get("lapsed").map_err(StoreError::fault)?;
            let lapsed = u64::from(lapsed == Some(true));
            match row.try_get("kind").map_err(StoreError::fault)? {
                "granted" => {
                    verdicts[place] = Verdict::Decided(granted(begin, &row)?);
                    turned.lapsed += lapsed;
                }
                "spent" => {
                    spent.push(place, lapsed, begin, &row)?;
                    turned.idle.extend(leftover(begin, &row)?);
                }
                "taken" => {
                    claims.note(&begin.event.key.team, "names", &row)?;
                    verdicts[place] = taken(begin, &row)?;
                    let is_own = event_row(&row)?.is_claim_of(begin.request);
                    turned.idle.extend(leftover(begin, &row)?.filter(|_| !is_own));
                }
                "busy" => {
                    let session = session_row(&row)?;
                    let decision = begin.session.as_ref().map(|asked| session.decision(asked));
                    // One that is free somebody else takes just now.
                    if decision != Some(Decision::Free) {
                        verdicts[place] = Verdict::Decided(Begun::Busy(session));
                    }
                }
                "lost" => {
                    if let Some(acquire) = &begin.session {
                        turned.idle.push((acquire.key.clone(), session_row(&row)?.lease.id));
                    }
                }
                other => return Err(StoreError::fault(format!("unexpected kind of row: {other}"))),
            }
        }
        self.shorten(&leases).await;
        self.shorten_claims(&claims).await;
        if !spent.places.is_empty() {
            match self.give_up(&spent, &mut verdicts, turned).await {
                // Who was granted a turn above has it, whatever becomes of the others.
                Err(error) if turned.is_nothing() && is_open(&verdicts) => return Err(error),
                _ => {}
            }
        }
        Ok(verdicts)
    }

    /// Gives up events that are spent.
    async fn give_up(
        &mut self,
        spent: &Spent<'_>,
        verdicts: &mut [Verdict<Begun>],
        turned: &mut Turned,
    ) -> Result<(), StoreError> {
        let now = self.now();
        let rows = self
            .fetch(|| {
                sqlx::query(GIVE_UP)
                    .bind(now)
                    .bind(interval(CLAIM_MEMORY))
                    .bind(&spent.teams)
                    .bind(&spent.names)
                    .bind(&spent.requests)
                    .bind(&spent.attempts)
            })
            .await?;
        for row in rows {
            let ord = place(spent.places.len(), row.try_get("ord"))?;
            let verdict = &mut verdicts[spent.places[ord]];
            // An event has a row for each of its names.
            if *verdict == Verdict::Again {
                let event = event_row(&row)?.with_digest(spent.digests[ord]);
                *verdict = Verdict::Decided(Begun::Taken(event, None));
                turned.gave_up += 1;
                turned.lapsed += spent.lapsed[ord];
            }
        }
        Ok(())
    }
}

fn is_open(verdicts: &[Verdict<Begun>]) -> bool {
    verdicts.iter().all(|verdict| *verdict == Verdict::Again)
}

/// Events that were claimed as often as they may be, as a statement's arrays; and who asked
/// for each.
#[derive(Default)]
struct Spent<'a> {
    places: Vec<usize>,
    lapsed: Vec<u64>,
    digests: Vec<Option<PayloadDigest>>,
    teams: Vec<&'a str>,
    names: Vec<String>,
    requests: Vec<Uuid>,
    attempts: Vec<i32>,
}

impl<'a> Spent<'a> {
    fn push(
        &mut self,
        place: usize,
        lapsed: u64,
        begin: &'a Begin,
        row: &PgRow,
    ) -> Result<(), StoreError> {
        let read =
            || Ok((row.try_get("names")?, row.try_get("request_id")?, row.try_get("attempt")?));
        let (names, request, attempt) =
            read().map_err(|error: sqlx::Error| StoreError::fault(error))?;
        self.places.push(place);
        self.lapsed.push(lapsed);
        self.digests.push(event_row(row)?.digest());
        self.teams.push(&begin.event.key.team);
        self.names.push(names);
        self.requests.push(request);
        self.attempts.push(attempt);
        Ok(())
    }
}

fn granted(begin: &Begin, row: &PgRow) -> Result<Begun, StoreError> {
    let EventRow::Claimed(claim) = event_row(row)? else {
        return Err(StoreError::fault("the row is not a claim"));
    };
    let lease = begin.session.as_ref().map(|_| session_row(row)).transpose()?;
    Ok(Begun::Granted { claim, lease: lease.map(|session| session.lease), fresh: true })
}

/// The event is taken: perhaps by an earlier run of the same request.
fn taken(begin: &Begin, row: &PgRow) -> Result<Verdict<Begun>, StoreError> {
    let event = event_row(row)?;
    let fresh = row.try_get("fresh").map_err(StoreError::fault)?;
    let is_told: bool = row.try_get("told").map_err(StoreError::fault)?;
    if let EventRow::Claimed(claim) = &event
        && claim.request == begin.request
        && is_told
    {
        let lease = match &begin.session {
            None => Some(None),
            Some(asked) => any_session(row)?.and_then(|session| match session.decision(asked) {
                Decision::Granted(lease) => Some(Some(lease)),
                _ => None,
            }),
        };
        if let Some(lease) = lease {
            return Ok(Verdict::Decided(Begun::Granted { claim: claim.clone(), lease, fresh }));
        }
    }
    Ok(Verdict::Decided(Begun::Taken(event, turn_result(row)?)))
}

/// The lease that an earlier run of a request had waited for, whose event is another's
/// by now.
fn leftover(begin: &Begin, row: &PgRow) -> Result<Option<(SessionKey, LeaseId)>, StoreError> {
    let found = any_session(row)?.zip(begin.session.as_ref());
    Ok(found.and_then(|(session, asked)| match session.decision(asked) {
        Decision::Granted(lease) => Some((asked.key.clone(), lease.id)),
        _ => None,
    }))
}

/// Requests for turns as a statement's arrays, $2 to $14 and $16, and how long attempts
/// are counted.
pub(super) struct Wishes<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    claims: Vec<PgInterval>,
    holders: Vec<&'a str>,
    most: Vec<i32>,
    sessions: Vec<Option<&'a str>>,
    locks: Vec<Option<i64>>,
    leases: Vec<Option<Uuid>>,
    attempts: Vec<Option<Uuid>>,
    epics: Vec<Option<&'a str>>,
    ttls: Vec<Option<i64>>,
    labels: Vec<Option<String>>,
    digests: Vec<Option<Uuid>>,
}

/// A request for a turn, with the id that its lease has if one is granted.
pub(super) type Wish<'a> = (&'a Begin, Uuid);

impl<'a> Wishes<'a> {
    pub(super) fn of(locks: Locks, asked: &[Wish<'a>]) -> Self {
        let in_session = |&(begin, lease): &Wish<'a>| begin.session.as_ref().map(|_| lease);
        let leases = asked.iter().map(in_session).collect();
        let asked = asked.iter().map(|(begin, _)| *begin);
        let sessions = || asked.clone().map(|begin| begin.session.as_ref());
        Self {
            teams: asked.clone().map(|begin| begin.event.key.team.as_str()).collect(),
            events: asked.clone().map(|begin| begin.event.key.event.as_str()).collect(),
            requests: asked.clone().map(|begin| begin.request.as_uuid()).collect(),
            claims: asked.clone().map(|begin| interval(begin.claim_ttl.span())).collect(),
            holders: asked.clone().map(|begin| begin.holder.as_str()).collect(),
            most: asked.clone().map(|begin| small(begin.max_attempts)).collect(),
            sessions: sessions().map(|asked| Some(asked?.key.session.as_str())).collect(),
            locks: sessions().map(|asked| Some(locks.session(&asked?.key))).collect(),
            leases,
            attempts: sessions().map(|asked| Some(asked?.request.as_uuid())).collect(),
            epics: sessions().map(|asked| asked?.epic.as_deref()).collect(),
            ttls: sessions().map(|asked| Some(asked?.ttl.as_micros())).collect(),
            labels: sessions().map(|asked| Some(asked?.labels.to_json())).collect(),
            digests: asked.map(|begin| Some(begin.event.digest?.as_uuid())).collect(),
        }
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement
            .bind(&self.teams)
            .bind(&self.events)
            .bind(&self.requests)
            .bind(&self.claims)
            .bind(&self.holders)
            .bind(&self.most)
            .bind(&self.sessions)
            .bind(&self.locks)
            .bind(&self.leases)
            .bind(&self.attempts)
            .bind(&self.epics)
            .bind(&self.ttls)
            .bind(&self.labels)
            .bind(interval(CLAIM_MEMORY))
            .bind(&self.digests)
    }
}
