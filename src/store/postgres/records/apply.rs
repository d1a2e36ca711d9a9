//! Writing plans.

use serde_json::{Value, json};
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::json::{micros, moment_of, text};
use crate::{
    domain::{Detail, EventKey, LeaseId, ProcessedBy, SessionKey, Timestamp},
    rules::{Change, Event, EventUpdate, Latest, Notice, Place, Plan, State, Waiter, Writes},
    store::{
        PRESENCE, StoreError,
        postgres::{Locks, handle::Statement},
        records::Applied,
    },
};

/// The columns of an event that change with how it stands, as a plan has them.
macro_rules! event_state {
    () => {
        "time bigint, expires bigint, until bigint, attempt integer, holder text, result text,
        result_type text, repeated boolean, resumed_by uuid, rejected bigint, detail text,
        uncounted integer, interrupted integer"
    };
}

/// The same as they are written.
macro_rules! event_values {
    () => {
        concat!(
            moment_of!("x.time"),
            ", ",
            moment_of!("x.expires"),
            ", ",
            moment_of!("x.until"),
            ", x.attempt, x.holder, decode(x.result, 'hex'), x.result_type, x.repeated,
        x.resumed_by, ",
            moment_of!("x.rejected"),
            ", x.detail, x.uncounted, x.interrupted, ",
            sweep_after!(moment_of!("x.expires"), "x.expires - 86400000000 < x.time")
        )
    };
}

macro_rules! event_targets {
    () => {
        "processed_at, expires_at, claimed_until, attempt, holder, result, result_type, repeated,
        resumed_by, rejected_at, detail, uncounted, interrupted, sweep_after"
    };
}

/// The columns of a session, as a plan has them, and as they are written.
macro_rules! session_state {
    () => {
        "token bigint, lease uuid, request uuid, holder text, labels text, epic text,
        acquired bigint, expires bigint, released boolean, repeated boolean, resumed_by uuid,
        waiting boolean, ttl bigint"
    };
}

macro_rules! session_values {
    () => {
        concat!(
            "x.token, x.lease, x.request, x.holder, x.labels, x.epic, ",
            moment_of!("x.acquired"),
            ", ",
            moment_of!("x.expires"),
            ", x.released, x.repeated, x.resumed_by, x.waiting, x.ttl"
        )
    };
}

macro_rules! session_targets {
    () => {
        "fencing_token, lease_id, request_id, holder, labels, epic_id, acquired_at, expires_at,
        released, repeated, resumed_by, waiting, ttl_micros"
    };
}

/// Writes plans, each as a whole if all that it rests on is as it was read, and not at all
/// otherwise. Answers the plans that are written, and the tickets of new places.
///
/// $1: the moment, or null for the database's clock. $2: the plans. $3: the sessions that they rest
/// on. $4: the names of events that they rest on or write, each sorted, so that two statements lock
/// rows in one order. $5 to
/// $7: sessions, events under each name, and changes of events under each name. $8: places in
/// queues, those that have a ticket being there already. $9: tickets of places that are gone.
/// $10: what is notified. $11: this replica, $12: for how long it counts as there. $13: the places
/// that they rest on.
///
/// The rows are locked first, and the clock is read once they are. A row that others insert in
/// the very moment is not seen: then the INSERT fails, and with it all of the statement.
pub(in super::super) const APPLY: &str = concat!(
    "
WITH plans AS MATERIALIZED (
    SELECT * FROM json_to_recordset($2::json)
        AS x (plan integer, valid_from bigint, valid_until bigint, token bigint, adds boolean,
            floor bigint)
), asked AS MATERIALIZED (
    SELECT x.*, pg_try_advisory_xact_lock(x.lock_key) AS is_free
    FROM json_to_recordset($3::json)
        AS x (plan integer, team text, id text, lock_key bigint, version bigint)
), sessions AS MATERIALIZED (
    SELECT x.plan, x.is_free AND s.version IS NOT DISTINCT FROM x.version AS holds
    FROM asked x LEFT JOIN LATERAL (
        SELECT t.xmin::text::bigint AS version FROM oncegate_sessions t
        WHERE x.is_free AND t.team_id = x.team AND t.session_id = x.id FOR UPDATE) AS s ON true
), open AS MATERIALIZED (
    -- One whose session another replica has waits for nothing that this one locks next.
    SELECT p.plan FROM plans p
    WHERE (SELECT count(*) FROM sessions) >= 0
        AND NOT EXISTS (SELECT FROM sessions s WHERE s.plan = p.plan AND NOT s.holds)
), events AS MATERIALIZED (
    SELECT x.plan, NOT x.is_read OR e.version IS NOT DISTINCT FROM x.version AS holds
    FROM (
        SELECT x.* FROM json_to_recordset($4::json)
            AS x (plan integer, team text, id text, version bigint, is_read boolean)
        WHERE x.plan IN (SELECT plan FROM open) OFFSET 0) AS x
    LEFT JOIN LATERAL (
        SELECT t.xmin::text::bigint AS version FROM processed_events t
        WHERE t.team_id = x.team AND t.event_id = x.id FOR UPDATE) AS e ON true
), waiters AS MATERIALIZED (
    SELECT x.plan, w.ticket IS NOT NULL AS holds
    FROM (
        SELECT x.* FROM json_to_recordset($13::json)
            AS x (plan integer, team text, id text, ticket bigint, lease uuid, waits boolean)
        WHERE x.plan IN (SELECT plan FROM open) AND (SELECT count(*) FROM events) >= 0 OFFSET 0) AS x
    LEFT JOIN LATERAL (
        SELECT t.ticket FROM oncegate_waiters t
        WHERE t.team_id = x.team AND t.session_id = x.id AND t.ticket = x.ticket
            AND t.lease_id = x.lease AND (t.left_at IS NULL OR NOT x.waits) FOR UPDATE) AS w ON true
    WHERE (SELECT count(*) FROM events) >= 0
), clock AS MATERIALIZED (
    SELECT at, ",
    micros!("at"),
    " AS micros
    FROM (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at
        FROM (SELECT count(*) AS locked FROM waiters OFFSET 0) AS l WHERE locked >= 0 OFFSET 0) AS c
), latest_floor AS MATERIALIZED (
    -- KEY SHARE would be content with the row as it was.
    SELECT f.floor FROM oncegate_fence f
    WHERE f.id AND (SELECT micros FROM clock) IS NOT NULL FOR SHARE SKIP LOCKED
), holds AS MATERIALIZED (
    SELECT p.plan, p.floor FROM plans p JOIN open USING (plan) CROSS JOIN clock
    WHERE clock.micros >= p.valid_from AND clock.micros < p.valid_until
        AND (p.token IS NULL OR p.token > CASE
            -- The row may have been deleted since the snapshot, which has raised the floor.
            WHEN p.adds THEN (SELECT floor FROM latest_floor)
            ELSE (SELECT floor FROM oncegate_fence WHERE id) END)
        AND NOT EXISTS (SELECT FROM waiters w WHERE w.plan = p.plan AND NOT w.holds)
        AND NOT EXISTS (SELECT FROM events e WHERE e.plan = p.plan AND NOT e.holds)
), put AS MATERIALIZED (
    SELECT x.* FROM json_to_recordset($5::json)
        AS x (plan integer, kind text, team text, id text, ",
    session_state!(),
    ") JOIN holds USING (plan)
), added_sessions AS (
    INSERT INTO oncegate_sessions (team_id, session_id, ",
    session_targets!(),
    ")
    SELECT x.team, x.id, ",
    session_values!(),
    " FROM put x WHERE x.kind = 'add'
    -- Two statements that add the same rows add them in one order.
    ORDER BY x.team COLLATE \"C\", x.id COLLATE \"C\"
), changed_sessions AS (
    UPDATE oncegate_sessions s SET (",
    session_targets!(),
    ") = ROW(",
    session_values!(),
    ")
    FROM put x WHERE x.kind = 'change' AND s.team_id = ANY (ARRAY[x.team]) AND s.session_id = x.id
), deleted_sessions AS (
    DELETE FROM oncegate_sessions s USING put x
    WHERE x.kind = 'delete' AND s.team_id = ANY (ARRAY[x.team]) AND s.session_id = x.id
), put_events AS MATERIALIZED (
    SELECT x.* FROM json_to_recordset($6::json)
        AS x (plan integer, is_new boolean, team text, id text, request uuid, names json,
            digest uuid, ",
    event_state!(),
    ") JOIN holds USING (plan)
), added_events AS (
    INSERT INTO processed_events (team_id, event_id, request_id, names, digest, ",
    event_targets!(),
    ")
    SELECT x.team, x.id, x.request,
        CASE WHEN x.names IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(x.names)) END,
        x.digest, ",
    event_values!(),
    " FROM put_events x WHERE x.is_new
    ORDER BY x.team COLLATE \"C\", x.id COLLATE \"C\"
), replaced_events AS (
    UPDATE processed_events e SET (request_id, names, digest, ",
    event_targets!(),
    ") = ROW(x.request,
        CASE WHEN x.names IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(x.names)) END,
        x.digest, ",
    event_values!(),
    ")
    FROM put_events x
    WHERE NOT x.is_new AND e.team_id = ANY (ARRAY[x.team]) AND e.event_id = x.id
), updates AS MATERIALIZED (
    SELECT x.* FROM json_to_recordset($7::json)
        AS x (plan integer, is_gone boolean, team text, id text, request uuid,
            taken_with json, ",
    event_state!(),
    ") JOIN holds USING (plan)
), updated_events AS (
    UPDATE processed_events e SET (",
    event_targets!(),
    ") = ROW(",
    event_values!(),
    ")
    FROM updates x
    WHERE NOT x.is_gone AND e.team_id = ANY (ARRAY[x.team]) AND e.event_id = x.id
        AND e.request_id IS NOT DISTINCT FROM x.request
        AND (e.names IS NULL AND x.taken_with IS NULL
            OR e.names = ARRAY(SELECT json_array_elements_text(x.taken_with)))
), deleted_events AS (
    DELETE FROM processed_events e USING updates x
    WHERE x.is_gone AND e.team_id = ANY (ARRAY[x.team]) AND e.event_id = x.id
        AND e.request_id IS NOT DISTINCT FROM x.request
        AND (e.names IS NULL AND x.taken_with IS NULL
            OR e.names = ARRAY(SELECT json_array_elements_text(x.taken_with)))
    RETURNING e.request_id
), places AS MATERIALIZED (
    SELECT x.* FROM json_to_recordset($8::json)
        AS x (plan integer, nth bigint, ticket bigint, team text, id text, lease uuid,
            request uuid, holder text, labels text, epic text, ttl bigint, digest uuid,
            left_at bigint)
    JOIN holds USING (plan)
), present AS (
    INSERT INTO oncegate_replicas AS r (replica, expires_at)
    SELECT $11::uuid, clock.at + $12::bigint * interval '1 microsecond' FROM clock
    WHERE EXISTS (SELECT FROM places WHERE left_at IS NULL)
    ON CONFLICT (replica) DO UPDATE SET expires_at = EXCLUDED.expires_at
    WHERE r.expires_at < EXCLUDED.expires_at - $12::bigint * interval '1 microsecond' / 4
), placed AS (
    INSERT INTO oncegate_waiters (team_id, session_id, ticket, lease_id, request_id, holder,
        labels, epic_id, ttl_micros, digest, replica)
    SELECT x.team, x.id, GREATEST(nextval('oncegate_tickets'), x.behind + (
            SELECT max(w.ticket) FROM oncegate_waiters w
            WHERE w.team_id = x.team AND w.session_id = x.id)),
        x.lease, x.request, x.holder, x.labels, x.epic, x.ttl, x.digest, $11
    -- In the order in which the callers came.
    FROM (SELECT p.*, row_number() OVER (PARTITION BY p.team, p.id ORDER BY p.nth) AS behind
        FROM places p WHERE p.ticket IS NULL ORDER BY p.nth OFFSET 0) AS x
    RETURNING lease_id, ticket
), changed_places AS (
    UPDATE oncegate_waiters w
    SET lease_id = x.lease, holder = x.holder, labels = x.labels, epic_id = x.epic,
        ttl_micros = x.ttl, left_at = ",
    moment_of!("x.left_at"),
    ",
        replica = CASE WHEN x.left_at IS NULL THEN $11
            ELSE '00000000-0000-0000-0000-000000000000' END
    FROM places x
    WHERE w.team_id = ANY (ARRAY[x.team]) AND w.session_id = x.id AND w.ticket = x.ticket
), left_places AS (
    DELETE FROM oncegate_waiters w
    USING json_to_recordset($9::json) AS x (plan integer, team text, id text, ticket bigint)
        JOIN holds USING (plan)
    WHERE w.team_id = ANY (ARRAY[x.team]) AND w.session_id = x.id AND w.ticket = x.ticket
), raised AS (
    UPDATE oncegate_fence f SET floor = h.floor
    FROM (SELECT max(floor) AS floor FROM holds) AS h WHERE f.id AND f.floor < h.floor
)
SELECT plan::bigint, NULL::uuid AS lease_id, NULL::bigint AS ticket FROM holds
UNION ALL
SELECT NULL, lease_id, ticket FROM placed
UNION ALL
SELECT NULL, NULL, count(sent) FROM (
    SELECT pg_notify(",
    hint_channel!(),
    ", x.payload) AS sent
    FROM json_to_recordset($10::json) AS x (plan integer, payload text) JOIN holds USING (plan)
    UNION ALL
    SELECT pg_notify(",
    channel!(),
    ", '') FROM (SELECT FROM deleted_events LIMIT 1) AS deleted) AS notified
"
);

/// Plans as a statement's texts.
pub(super) struct Texts {
    plans: String,
    sessions: String,
    events: String,
    put_sessions: String,
    put_events: String,
    updates: String,
    places: String,
    left: String,
    notices: String,
    rests_on: String,
    forgets: bool,
    is_once: bool,
}

impl Texts {
    pub(super) fn of(
        locks: Locks,
        replica: Uuid,
        plans: &[(usize, &Plan)],
    ) -> Result<Self, StoreError> {
        let (mut heads, mut notices) = (Vec::new(), Vec::new());
        let (mut sessions, mut events, mut rests_on) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_once = false;
        let mut rows = Rows::default();
        for (plan, of) in plans {
            heads.push(json!({
                "plan": plan,
                "valid_from": of.from.as_micros(),
                "valid_until": of.until.as_micros(),
                "token": of.token.map(|token| token.0),
                "adds": of.sessions.values().any(Option::is_none),
                "floor": of.writes.floor.map(|floor| floor.0),
            }));
            for (key, version) in &of.sessions {
                let version = version.map(|version| version.0);
                sessions.push((&key.team, &key.session, locks.session(key), version, *plan));
            }
            for (key, version) in &of.events {
                let version = version.map(|version| version.0);
                events.push((&key.team, &key.event, version, true, *plan));
            }
            for EventUpdate { team, names, .. } in &of.writes.updates {
                let unread = names.iter().filter(|name| {
                    let key = EventKey { team: team.clone(), event: (*name).clone() };
                    !of.events.contains_key(&key)
                });
                events.extend(unread.map(|name| (team, name, None, false, *plan)));
            }
            is_once |= of.is_once;
            rests_on.extend(of.places.iter().map(|Place { key, ticket, lease, waits }| {
                (&key.team, &key.session, *ticket, lease.as_uuid().to_string(), *waits, *plan)
            }));
            rows.add(*plan, of);
            notices.extend(
                of.notices.iter().map(
                    |notice| json!({"plan": plan, "payload": payload(locks, replica, notice)}),
                ),
            );
        }
        sessions.sort_unstable();
        events.sort_unstable();
        rests_on.sort_unstable();
        let rests_on = rests_on.into_iter().map(|(team, id, ticket, lease, waits, plan)| {
            json!({"plan": plan, "team": team, "id": id, "ticket": ticket, "lease": lease, "waits": waits})
        });
        let sessions = sessions.into_iter().map(|(team, id, lock, version, plan)| {
            json!({"plan": plan, "team": team, "id": id, "lock_key": lock, "version": version})
        });
        let events = events.into_iter().map(|(team, id, version, is_read, plan)| {
            json!({"plan": plan, "team": team, "id": id, "version": version, "is_read": is_read})
        });
        Ok(Self {
            plans: text(&heads)?,
            sessions: text(&sessions.collect::<Vec<_>>())?,
            events: text(&events.collect::<Vec<_>>())?,
            put_sessions: text(&rows.sessions)?,
            put_events: text(&rows.events)?,
            updates: text(&rows.updates)?,
            places: text(&rows.places)?,
            left: text(&rows.left)?,
            notices: text(&notices)?,
            rests_on: text(&rests_on.collect::<Vec<_>>())?,
            forgets: rows.forgets,
            is_once,
        })
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>, replica: Uuid) -> Statement<'q> {
        statement
            .bind(&self.plans)
            .bind(&self.sessions)
            .bind(&self.events)
            .bind(&self.put_sessions)
            .bind(&self.put_events)
            .bind(&self.updates)
            .bind(&self.places)
            .bind(&self.left)
            .bind(&self.notices)
            .bind(replica)
            .bind(i64::try_from(PRESENCE.as_micros()).unwrap_or(i64::MAX))
            .bind(&self.rests_on)
    }

    /// Whether a second run could undo what came after the first.
    pub(super) const fn is_once(&self) -> bool {
        self.is_once
    }

    /// Whether events are deleted that other replicas may remember.
    pub(super) const fn forgets(&self) -> bool {
        self.forgets
    }
}

/// What plans write, row by row.
#[derive(Default)]
struct Rows {
    sessions: Vec<Value>,
    events: Vec<Value>,
    updates: Vec<Value>,
    places: Vec<Value>,
    left: Vec<Value>,
    forgets: bool,
}

impl Rows {
    fn add(&mut self, plan: usize, of: &Plan) {
        let Writes { sessions, updates, puts, .. } = &of.writes;
        for write in sessions {
            let key = &write.key;
            let is_there = of.sessions.get(key).copied().flatten().is_some();
            match &write.latest {
                Change::Put(latest) => {
                    let kind = if is_there { "change" } else { "add" };
                    self.sessions.push(session(plan, kind, key, Some(latest)));
                }
                Change::Delete => self.sessions.push(session(plan, "delete", key, None)),
                Change::Keep => {}
            }
            for waiter in write.change.iter().chain(&write.add) {
                self.places.push(place(plan, self.places.len(), key, waiter));
            }
            self.left.extend(write.remove.iter().map(|ticket| {
                json!({"plan": plan, "team": key.team, "id": key.session, "ticket": ticket})
            }));
        }
        for EventUpdate { team, request, taken_with, names, event, .. } in updates {
            self.forgets |= event.is_none();
            for name in names {
                let mut row = event.as_ref().map_or_else(|| json!({}), state);
                row["plan"] = json!(plan);
                row["is_gone"] = json!(event.is_none());
                row["team"] = json!(team);
                row["id"] = json!(name);
                row["request"] = json!(request.map(|request| request.as_uuid().to_string()));
                row["taken_with"] = json!((taken_with.len() > 1).then_some(taken_with));
                self.updates.push(row);
            }
        }
        for (key, event) in puts {
            let is_there = of.events.get(key).copied().flatten().is_some();
            let mut row = state(event);
            row["plan"] = json!(plan);
            row["is_new"] = json!(!is_there);
            row["team"] = json!(key.team);
            row["id"] = json!(key.event);
            row["request"] = json!(event.request.map(|request| request.as_uuid().to_string()));
            row["names"] = json!((event.names.len() > 1).then_some(&event.names));
            row["digest"] = json!(event.digest.map(|digest| digest.as_uuid().to_string()));
            self.events.push(row);
        }
    }
}

fn session(plan: usize, kind: &str, key: &SessionKey, latest: Option<&Latest>) -> Value {
    let mut row = json!({"plan": plan, "kind": kind, "team": key.team, "id": key.session});
    if let Some(latest) = latest {
        row["token"] = json!(latest.token.0);
        row["lease"] = json!(latest.lease.as_uuid().to_string());
        row["request"] = json!(latest.request.as_uuid().to_string());
        row["holder"] = json!(latest.holder);
        row["labels"] = json!(latest.labels.to_json());
        row["epic"] = json!(latest.epic);
        row["acquired"] = json!(latest.acquire_time.as_micros());
        row["expires"] = json!(latest.expire_time.as_micros());
        row["released"] = json!(latest.released);
        row["repeated"] = json!(latest.resumed.is_repeated());
        row["resumed_by"] = json!(latest.resumed.as_uuid().map(|stream| stream.to_string()));
        row["waiting"] = json!(latest.waiting);
        row["ttl"] = json!(latest.ttl.map(micros_of));
    }
    row
}

fn place(plan: usize, nth: usize, key: &SessionKey, waiter: &Waiter) -> Value {
    json!({
        "plan": plan,
        "nth": nth,
        "ticket": waiter.ticket,
        "team": key.team,
        "id": key.session,
        "lease": waiter.lease.as_uuid().to_string(),
        "request": waiter.request.as_uuid().to_string(),
        "holder": waiter.holder,
        "labels": waiter.labels.to_json(),
        "epic": waiter.epic,
        "ttl": micros_of(waiter.ttl),
        "digest": waiter.digest.map(|digest| digest.as_uuid().to_string()),
        "left_at": waiter.left_at.map(Timestamp::as_micros),
    })
}

/// The columns that change with how an event stands.
fn state(event: &Event) -> Value {
    let (until, by, result) = match &event.state {
        State::Claimed(until) => (Some(until.as_micros()), None, None),
        State::Handled(by, result) => (None, Some(*by), result.as_deref()),
    };
    let attempts = event.attempts;
    let is_rejected = matches!(by, Some(ProcessedBy::Rejected(_)));
    let is_resumed = event.resumed.is_repeated();
    json!({
        "time": event.time.as_micros(),
        "expires": event.expire_time.as_micros(),
        "until": until,
        "attempt": attempts.map(|attempts| attempts.claimed),
        "holder": event.holder,
        "result": result.map(|result| hex(&result.bytes)),
        "result_type": result.and_then(|result| result.type_name.as_deref()),
        "repeated": is_resumed.then_some(true),
        "resumed_by": event.resumed.as_uuid().map(|stream| stream.to_string()),
        "rejected": is_rejected.then_some(event.time.as_micros()),
        "detail": event.detail.as_ref().map(Detail::as_str),
        "uncounted": attempts.map(|own| own.uncounted).filter(|count| *count > 0),
        "interrupted": attempts.and_then(|attempts| attempts.interrupted),
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn micros_of(span: std::time::Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// A notice as other replicas read it.
fn payload(locks: Locks, replica: Uuid, notice: &Notice) -> String {
    match notice {
        Notice::Handed(lease) => lease.as_uuid().to_string(),
        Notice::TakenOver(lease) => format!("t{}", lease.as_uuid()),
        Notice::Session(key) => format!("s{} {replica}", locks.session(key)),
        Notice::Forgotten(request) => format!("e{}", request.as_uuid()),
    }
}

/// Notes which plans are written.
pub(super) fn note(
    plans: &[(usize, &Plan)],
    rows: &[PgRow],
    applied: &mut [Option<Applied>],
) -> Result<(), StoreError> {
    let mut tickets: Vec<(LeaseId, i64)> = Vec::new();
    let mut written = Vec::new();
    for row in rows {
        let read = || {
            let lease: Option<Uuid> = row.try_get("lease_id")?;
            Ok((row.try_get("plan")?, lease, row.try_get("ticket")?))
        };
        match read().map_err(|error: sqlx::Error| StoreError::internal(error))? {
            (Some(plan), _, _) => written.push(plan),
            (None, Some(lease), Some(ticket)) => tickets.push((LeaseId::from_uuid(lease), ticket)),
            _ => {}
        }
    }
    for (place, plan) in plans {
        let is_written = written.iter().any(|plan: &i64| usize::try_from(*plan) == Ok(*place));
        applied[*place] = Some(if is_written {
            let adds = plan.writes.sessions.iter().flat_map(|write| &write.add);
            let of = |lease| tickets.iter().find(|(other, _)| *other == lease).copied();
            Applied::Written(adds.filter_map(|at| of(at.lease)).collect())
        } else {
            Applied::Conflict
        });
    }
    Ok(())
}
