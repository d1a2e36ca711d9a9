//! Sessions in `SQLite`: read the rows, decide, write them back, all within the
//! one transaction that may write.

use std::{ops::Range, time::Duration};

use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::{Uuid, fmt::Simple};

use super::{Handle, begin, classify, json, slot};
use crate::{
    domain::{
        Acquire, Acquired, Decision, FencingToken, Labels, Lease, LeaseId, RequestId, SessionKey,
        SessionRow, Timestamp,
    },
    store::{Changed, Release, Renew, SessionStore, StoreError, Verdict},
};

// $1: a JSON array with an array for each item.

pub(super) const LOOK: &str = "
SELECT a.key, s.fencing_token, s.lease_id, s.request_id, s.holder, s.labels, s.epic_id,
    s.acquired_at, s.expires_at, s.released, s.repeated
FROM json_each($1) AS a CROSS JOIN sessions AS s
    ON s.team_id = a.value ->> 0 AND s.session_id = a.value ->> 1
";

/// Draws as many tokens as $1 says, and answers the last of them.
pub(super) const DRAW_TOKENS: &str = "
UPDATE session_fencing_tokens SET last = last + $1 RETURNING last
";

pub(super) const WRITE: &str = "
REPLACE INTO sessions (team_id, session_id, fencing_token, lease_id, request_id,
    holder, labels, epic_id, acquired_at, expires_at, released, repeated)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11
FROM json_each($1)
";

/// A row as it is stored.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) row: SessionRow,
    pub(super) released: bool,
    pub(super) repeated: bool,
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

        let is_free = |(row, acquire): &(&Option<Stored>, &&Acquire)| {
            row.as_ref().is_none_or(|stored| stored.row.decision(acquire) == Decision::Free)
        };
        let free = sought.iter().zip(acquires).filter(is_free).count();
        let mut fences = draw_tokens(&mut batch, free).await?;
        let mut taken = Vec::with_capacity(acquires.len());
        for (row, acquire) in sought.into_iter().zip(acquires) {
            let outcome = match row {
                Some(mut stored) if stored.row.decision(acquire) != Decision::Free => {
                    let again = matches!(stored.row.decision(acquire), Decision::Granted(_));
                    if again && !stored.repeated {
                        stored.repeated = true;
                        changed.push((&acquire.key, stored.clone()));
                    }
                    Acquired { row: stored.row, fresh: false }
                }
                free => {
                    let missing = || StoreError::fault("fewer tokens than free sessions");
                    let fence = FencingToken(fences.next().ok_or_else(missing)?);
                    let bound = free.and_then(|stored| stored.row.lease.epic);
                    let granted = grant(acquire, fence, bound, now);
                    changed.push((&acquire.key, granted.clone()));
                    Acquired { row: granted.row, fresh: true }
                }
            };
            taken.push(Verdict::Decided(outcome));
        }

        let mut ended = Vec::with_capacity(releases.len());
        for (row, release) in ending.into_iter().zip(releases) {
            let mut given_back = false;
            if let Some(mut stored) = row.filter(|row| row.row.lease.id == release.lease) {
                if stored.row.live && !(release.unless_repeated && stored.repeated) {
                    stored.released = true;
                    stored.row.lease.expire_time = now;
                    changed.push((&release.key, stored.clone()));
                }
                given_back = stored.released;
            }
            ended.push(Verdict::Decided(given_back));
        }
        write(&mut batch, &changed).await?;
        batch.commit().await.map_err(classify)?;
        Ok(Changed { taken, ended })
    }

    async fn renew(
        &mut self,
        asked: &[&Renew],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let keys: Vec<&SessionKey> = asked.iter().map(|renew| &renew.key).collect();
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut answers = Vec::with_capacity(asked.len());
        let mut changed = Vec::new();
        for (row, renew) in look(&mut batch, &keys, now).await?.into_iter().zip(asked) {
            let own = row.filter(|row| row.row.lease.id == renew.lease && !row.released);
            let answer = own.map(|mut stored| {
                if stored.row.live {
                    let lease = &mut stored.row.lease;
                    let last = lease.acquire_time.plus(max_hold).max(lease.expire_time);
                    lease.expire_time = now.after(renew.ttl).min(last);
                    lease.remaining = lease.expire_time.since(now);
                    changed.push((&renew.key, stored.clone()));
                }
                stored.row
            });
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

/// Draws `count` fencing tokens, in the order in which they rise.
pub(super) async fn draw_tokens(
    connection: &mut SqliteConnection,
    count: usize,
) -> Result<Range<i64>, StoreError> {
    let count = i64::try_from(count).map_err(StoreError::fault)?;
    if count == 0 {
        return Ok(0..0);
    }
    let drawn = sqlx::query_scalar(DRAW_TOKENS).bind(count).fetch_one(connection).await;
    let last: i64 = drawn.map_err(classify)?;
    Ok(last - count + 1..last + 1)
}

/// The row of a free session that `acquire` takes.
fn grant(acquire: &Acquire, token: FencingToken, bound: Option<String>, now: Timestamp) -> Stored {
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
    let row = SessionRow { lease, request: acquire.request, live: true };
    Stored { row, released: false, repeated: false }
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
        .map(|(key, Stored { row: SessionRow { lease, request, .. }, released, repeated })| {
            serde_json::json!([
                key.team,
                key.session,
                lease.token.0,
                lease.id.as_uuid().simple().to_string(),
                request.as_uuid().simple().to_string(),
                lease.holder,
                lease.labels.to_json(),
                lease.epic,
                lease.acquire_time.as_micros(),
                lease.expire_time.as_micros(),
                i64::from(*released),
                i64::from(*repeated),
            ])
        })
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
    Ok(Stored {
        row: SessionRow { lease, request, live: !released && expire_time > now },
        released,
        repeated: row.try_get("repeated")?,
    })
}
