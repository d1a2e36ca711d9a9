//! Sessions in `SQLite`: read the rows, decide, write them back, all within the
//! one transaction that may write.

use std::time::Duration;

use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::{Uuid, fmt::Simple};

use super::{Handle, begin, classify, fence::next_token, hex, json, slot};
use crate::{
    domain::{
        Acquire, Acquired, Decision, FencingToken, Labels, Lease, LeaseId, RequestId, ResumedBy,
        SessionKey, SessionRow, StreamId, Timestamp, Ttl,
    },
    store::{
        Changed, Enqueue, Enqueued, Release, Renew, Renewed, SessionStore, StoreError, Verdict,
    },
};

mod places;

pub(super) use places::{
    ANYBODY, EARLIER, ENQUEUE, FORGET, KEEP, KEEP_ALL, LEAVE, NEXT, NOBODY_WAITS, PLACES,
    TAKE_OVER, keep_all,
};
use places::{forget, found, leases, place};

// $1: a JSON array with an array for each item.

pub(super) const LOOK: &str = concat!(
    "
SELECT a.key, s.fencing_token, s.lease_id, s.request_id, s.holder, s.labels, s.epic_id,
    s.acquired_at, s.expires_at, s.released, s.repeated, s.resumed_by, s.waiting,
    s.ttl_micros, ",
    queue!(),
    "
FROM json_each($1) AS a CROSS JOIN oncegate_sessions AS s
    ON s.team_id = a.value ->> 0 AND s.session_id = a.value ->> 1
"
);

pub(super) const WRITE: &str = "
REPLACE INTO oncegate_sessions (team_id, session_id, fencing_token, lease_id, request_id,
    holder, labels, epic_id, acquired_at, expires_at, released, repeated, waiting, ttl_micros,
    resumed_by)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12,
    value ->> 13, value ->> 14
FROM json_each($1)
";

/// A row as it is stored.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) row: SessionRow,
    pub(super) released: bool,
    /// How long the lease ran when it was granted or last renewed, in microseconds.
    pub(super) ttl: Option<i64>,
    pub(super) resumed: ResumedBy,
}

impl SessionStore for Handle {
    async fn change(
        &mut self,
        acquires: &[&Acquire],
        releases: &[&Release],
    ) -> Result<Changed, StoreError> {
        let taking = acquires.iter().map(|acquire| &acquire.key);
        let keys: Vec<_> = taking.chain(releases.iter().map(|release| &release.key)).collect();
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut sought = look(&mut batch, &keys, now).await?;
        let ending = sought.split_off(acquires.len());
        let mut changed = Vec::new();

        let mut taken = Vec::with_capacity(acquires.len());
        for (row, acquire) in sought.into_iter().zip(acquires) {
            let outcome = match row {
                Some(mut stored) if stored.row.decision(acquire) != Decision::Free => {
                    let again = matches!(stored.row.decision(acquire), Decision::Granted(_));
                    if again {
                        stored.resumed = ResumedBy::of(acquire.stream);
                        changed.push((&acquire.key, stored.clone()));
                    }
                    Acquired { row: stored.row, fresh: false }
                }
                free => {
                    let granted = grant(&mut batch, acquire, free, now).await?;
                    changed.push((&acquire.key, granted.clone()));
                    Acquired { row: granted.row, fresh: true }
                }
            };
            taken.push(Verdict::Decided(outcome));
        }

        let mut ended = Vec::with_capacity(releases.len());
        let mut handed = Vec::new();
        for (row, release) in ending.into_iter().zip(releases) {
            let mut given_back = false;
            if let Some(mut stored) = row.filter(|row| row.row.lease.id == release.lease) {
                given_back = stored.released;
                let is_spared =
                    release.unless_resumed.is_some_and(|stream| !stored.resumed.leaves_to(stream));
                if stored.row.live && !is_spared {
                    stored.release(now);
                    given_back = true;
                    if stored.row.waiting
                        && pass_on(&mut batch, &release.key, &mut stored, now).await?
                    {
                        handed.push(stored.row.clone());
                    }
                    changed.push((&release.key, stored));
                }
            }
            ended.push(Verdict::Decided(given_back));
        }
        write(&mut batch, &changed).await?;
        batch.commit().await.map_err(classify)?;
        Ok(Changed { taken, ended, handed })
    }

    async fn enqueue(&mut self, asked: &[&Enqueue]) -> Result<Vec<Verdict<Enqueued>>, StoreError> {
        let keys: Vec<&SessionKey> = asked.iter().map(|enqueue| &enqueue.acquire.key).collect();
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        forget(&mut batch, now).await?;
        let mut answers = Vec::with_capacity(asked.len());
        let mut changed = Vec::new();
        for (row, enqueue) in look(&mut batch, &keys, now).await?.into_iter().zip(asked) {
            let Some(mut stored) = row.filter(|row| row.row.live || row.row.waiting) else {
                answers.push(Verdict::Decided(Enqueued::Free));
                continue;
            };
            let key = &enqueue.acquire.key;
            answers.push(Verdict::Decided(place(&mut batch, enqueue).await?));
            stored.row.waiting = true;
            changed.push((key, stored));
        }
        write(&mut batch, &changed).await?;
        batch.commit().await.map_err(classify)?;
        Ok(answers)
    }

    async fn hand_on(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut rows = Vec::with_capacity(keys.len());
        let mut changed = Vec::new();
        for (mut row, key) in look(&mut batch, keys, now).await?.into_iter().zip(keys) {
            if let Some(stored) = row.as_mut().filter(|row| !row.row.live && row.row.waiting) {
                pass_on(&mut batch, key, stored, now).await?;
                changed.push((*key, stored.clone()));
            }
            rows.push(Verdict::Decided(row.map(|stored| stored.row)));
        }
        write(&mut batch, &changed).await?;
        batch.commit().await.map_err(classify)?;
        Ok(rows)
    }

    async fn leave(&mut self, places: &[(&SessionKey, LeaseId)]) -> Result<Vec<bool>, StoreError> {
        let leave = sqlx::query_scalar(LEAVE).bind(leases(places)?);
        let left = leave.fetch_all(&mut *self.writer.lock().await).await.map_err(classify)?;
        Ok(found(places, left))
    }

    async fn keep_places(
        &mut self,
        places: &[(&SessionKey, LeaseId)],
    ) -> Result<Vec<bool>, StoreError> {
        let keep = sqlx::query_scalar(KEEP).bind(leases(places)?).bind(self.now().as_micros());
        let kept = keep.fetch_all(&mut *self.writer.lock().await).await.map_err(classify)?;
        Ok(found(places, kept))
    }

    async fn beat(&mut self) -> Result<Vec<(SessionKey, LeaseId)>, StoreError> {
        let rows = sqlx::query(PLACES).fetch_all(self.reader().await?).await.map_err(classify)?;
        let place = |row: &SqliteRow| {
            let key =
                SessionKey { team: row.try_get("team_id")?, session: row.try_get("session_id")? };
            let lease = row.try_get::<Simple, _>("lease_id")?;
            Ok((key, LeaseId::from_uuid(lease.into())))
        };
        let places: Result<_, sqlx::Error> = rows.iter().map(place).collect();
        places.map_err(StoreError::fault)
    }

    async fn renew(
        &mut self,
        asked: &[&Renew],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Renewed>>, StoreError> {
        let keys: Vec<&SessionKey> = asked.iter().map(|renew| &renew.key).collect();
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut answers = Vec::with_capacity(asked.len());
        let mut changed = Vec::new();
        for (row, renew) in look(&mut batch, &keys, now).await?.into_iter().zip(asked) {
            let own = row.filter(|row| row.row.lease.id == renew.lease && !row.released);
            let answer = match own {
                None => Renewed::Gone,
                Some(stored) if !stored.row.live => Renewed::Found(stored.row),
                Some(stored)
                    if renew.stream.is_some_and(|stream| stored.resumed.replaces(stream)) =>
                {
                    Renewed::Resumed
                }
                Some(mut stored) => {
                    stored.run_on(renew.ttl, max_hold, now);
                    if renew.stream.is_none() {
                        stored.resumed = ResumedBy::Call;
                    }
                    changed.push((&renew.key, stored.clone()));
                    Renewed::Found(stored.row)
                }
            };
            answers.push(Verdict::Decided(answer));
        }
        write(&mut batch, &changed).await?;
        batch.commit().await.map_err(classify)?;
        Ok(answers)
    }

    async fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Option<SessionRow>>, StoreError> {
        let now = self.now();
        let rows = look(self.reader().await?, keys, now).await?;
        Ok(rows.into_iter().map(|row| row.map(|stored| stored.row)).collect())
    }
}

impl Stored {
    /// Lets a lease run on for `ttl`, but no longer than `max_hold` in all.
    pub(super) fn run_on(&mut self, ttl: Ttl, max_hold: Duration, now: Timestamp) {
        self.ttl = Some(ttl.as_micros());
        let lease = &mut self.row.lease;
        let last = lease.acquire_time.plus(max_hold).max(lease.expire_time);
        lease.expire_time = now.after(ttl).min(last);
        lease.remaining = lease.expire_time.since(now);
    }

    pub(super) fn release(&mut self, now: Timestamp) {
        self.released = true;
        self.row.live = false;
        self.row.lease.expire_time = now;
    }
}

/// Passes a free session on to whoever is next for it. Answers whether there is
/// anybody.
pub(super) async fn pass_on(
    connection: &mut SqliteConnection,
    key: &SessionKey,
    session: &mut Stored,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let next = sqlx::query(NEXT)
        .bind(&key.team)
        .bind(&key.session)
        .bind(&session.row.lease.epic)
        .fetch_optional(&mut *connection)
        .await
        .map_err(classify)?;
    let Some(next) = next else {
        session.row.waiting = false;
        return Ok(false);
    };
    let token = next_token(&mut *connection, Some(session.row.lease.token), now).await?;
    session.row.waiting = sqlx::query_scalar(ANYBODY)
        .bind(&key.team)
        .bind(&key.session)
        .fetch_one(connection)
        .await
        .map_err(classify)?;
    let read = || {
        let uuid = |column| next.try_get::<Simple, _>(column).map(Uuid::from);
        let ttl: i64 = next.try_get("ttl_micros")?;
        let expire_time = now.plus(Duration::from_micros(ttl.unsigned_abs()));
        let bound = session.row.lease.epic.clone();
        let lease = Lease {
            id: LeaseId::from_uuid(uuid("lease_id")?),
            token,
            holder: next.try_get("holder")?,
            acquire_time: now,
            expire_time,
            remaining: expire_time.since(now),
            epic: bound.or(next.try_get("epic_id")?),
            labels: Labels::from_json(next.try_get("labels")?),
        };
        Ok((lease, RequestId::from_uuid(uuid("request_id")?), ttl))
    };
    let (lease, request, ttl) = read().map_err(|error: sqlx::Error| StoreError::fault(error))?;
    let SessionRow { waiting, queue, .. } = &mut session.row;
    queue.retain(|next| *next != lease.id);
    let (waiting, queue) = (*waiting, std::mem::take(queue));
    session.row = SessionRow { lease, request, live: true, waiting, queue };
    (session.released, session.ttl) = (false, Some(ttl));
    session.resumed = ResumedBy::Nobody;
    Ok(true)
}

/// The row of a `free` session that `acquire` takes.
pub(super) async fn grant(
    batch: &mut SqliteConnection,
    acquire: &Acquire,
    free: Option<Stored>,
    now: Timestamp,
) -> Result<Stored, StoreError> {
    let latest = free.map(|stored| stored.row.lease);
    let token = next_token(batch, latest.as_ref().map(|lease| lease.token), now).await?;
    let bound = latest.and_then(|lease| lease.epic);
    let expire_time = now.after(acquire.ttl);
    let lease = Lease {
        id: LeaseId::random(),
        token,
        holder: acquire.holder.clone(),
        acquire_time: now,
        expire_time,
        remaining: expire_time.since(now),
        epic: bound.or_else(|| acquire.epic.clone()),
        labels: acquire.labels.clone(),
    };
    let (request, queue) = (acquire.request, Vec::new());
    let row = SessionRow { lease, request, live: true, waiting: false, queue };
    let ttl = Some(acquire.ttl.as_micros());
    Ok(Stored { row, released: false, ttl, resumed: ResumedBy::Nobody })
}

pub(super) async fn look(
    connection: &mut SqliteConnection,
    keys: &[&SessionKey],
    now: Timestamp,
) -> Result<Vec<Option<Stored>>, StoreError> {
    let asked: Vec<_> = keys.iter().map(|key| (&key.team, &key.session)).collect();
    let rows =
        sqlx::query(LOOK).bind(json(&asked)?).fetch_all(connection).await.map_err(classify)?;
    let mut found = vec![None; keys.len()];
    for row in rows {
        let key = row.try_get("key").map_err(StoreError::fault)?;
        *slot(&mut found, key)? = Some(stored(&row, now).map_err(StoreError::fault)?);
    }
    Ok(found)
}

pub(super) async fn write(
    connection: &mut SqliteConnection,
    rows: &[(&SessionKey, Stored)],
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = rows
        .iter()
        .map(
            |(
                key,
                Stored { row: SessionRow { lease, request, waiting, .. }, released, ttl, resumed },
            )| {
                serde_json::json!([
                    key.team,
                    key.session,
                    lease.token.0,
                    hex(lease.id.as_uuid()),
                    hex(request.as_uuid()),
                    lease.holder,
                    lease.labels.to_json(),
                    lease.epic,
                    lease.acquire_time.as_micros(),
                    lease.expire_time.as_micros(),
                    i64::from(*released),
                    i64::from(resumed.is_repeated()),
                    i64::from(*waiting),
                    ttl,
                    resumed.as_uuid().map(hex),
                ])
            },
        )
        .collect();
    let rows = serde_json::Value::from(rows).to_string();
    sqlx::query(WRITE).bind(rows).execute(connection).await.map_err(classify)?;
    Ok(())
}

pub(super) fn stored(row: &SqliteRow, now: Timestamp) -> Result<Stored, sqlx::Error> {
    let uuid = |column| row.try_get::<Simple, _>(column).map(Uuid::from);
    let expire_time = Timestamp::from_micros(row.try_get("expires_at")?);
    let released: bool = row.try_get("released")?;
    let lease = Lease {
        id: LeaseId::from_uuid(uuid("lease_id")?),
        token: FencingToken(row.try_get("fencing_token")?),
        holder: row.try_get("holder")?,
        acquire_time: Timestamp::from_micros(row.try_get("acquired_at")?),
        expire_time,
        remaining: expire_time.since(now),
        epic: row.try_get("epic_id")?,
        labels: Labels::from_json(row.try_get("labels")?),
    };
    let request = RequestId::from_uuid(uuid("request_id")?);
    let queue: Option<&str> = row.try_get("queue")?;
    let queue: Vec<String> = serde_json::from_str(queue.unwrap_or("[]")).unwrap_or_default();
    let queue = queue.iter().filter_map(|lease| Uuid::try_parse(lease).ok());
    let queue = queue.map(LeaseId::from_uuid).collect();
    Ok(Stored {
        row: SessionRow {
            lease,
            request,
            live: !released && expire_time > now,
            waiting: row.try_get("waiting")?,
            queue,
        },
        released,
        ttl: row.try_get("ttl_micros")?,
        resumed: resumed_by(row)?,
    })
}

/// Who has carried on what a row grants.
pub(super) fn resumed_by(row: &SqliteRow) -> Result<ResumedBy, sqlx::Error> {
    let repeated: Option<bool> = row.try_get("repeated")?;
    let noted: Option<Simple> = row.try_get("resumed_by")?;
    Ok(ResumedBy::of_row(repeated == Some(true), noted.map(Uuid::from)))
}

/// What is to be noted when `stream`, or none, renews; nothing where it was noted before.
pub(super) fn renewed_by(stream: Option<StreamId>) -> Option<String> {
    if stream.is_some() { None } else { ResumedBy::Call.as_uuid().map(hex) }
}
