//! Sessions in `SQLite`: read the rows, decide, write them back, all within the
//! one transaction that may write.

use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::{Uuid, fmt::Simple};

use super::{Handle, begin, classify, json, slot};
use crate::{
    domain::{
        Acquire, Acquired, Decision, FencingToken, Labels, Lease, LeaseId, RequestId, SessionKey,
        SessionRow, Timestamp,
    },
    store::{Release, Renew, SessionStore, StoreError, Verdict},
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
struct Stored {
    row: SessionRow,
    released: bool,
    repeated: bool,
}

impl SessionStore for Handle {
    async fn acquire(&mut self, asked: &[&Acquire]) -> Result<Vec<Verdict<Acquired>>, StoreError> {
        let keys: Vec<&SessionKey> = asked.iter().map(|acquire| &acquire.key).collect();
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut rows = look(&mut batch, &keys, now).await?;

        let is_free = |(row, acquire): (&Option<Stored>, &&Acquire)| {
            row.as_ref().is_none_or(|stored| stored.row.decision(acquire) == Decision::Free)
        };
        let free: Vec<bool> = rows.iter().zip(asked).map(is_free).collect();
        let mut changed = Vec::new();
        for ((key, row), acquire) in keys.iter().zip(&mut rows).zip(asked) {
            if let Some(stored) = row
                && !stored.repeated
                && matches!(stored.row.decision(acquire), Decision::Granted(_))
            {
                stored.repeated = true;
                changed.push((*key, stored.clone()));
            }
        }
        let count = i64::try_from(free.iter().filter(|&&free| free).count()).unwrap_or(0);
        if count > 0 {
            let last: i64 = sqlx::query_scalar(DRAW_TOKENS)
                .bind(count)
                .fetch_one(&mut *batch)
                .await
                .map_err(classify)?;
            let mut tokens = last - count + 1..;
            for (index, _) in free.iter().enumerate().filter(|(_, free)| **free) {
                let token = FencingToken(tokens.next().unwrap_or(last));
                let bound = rows[index].take().and_then(|stored| stored.row.lease.epic);
                let granted = grant(asked[index], token, bound, now);
                changed.push((keys[index], granted.clone()));
                rows[index] = Some(granted);
            }
        }
        write(&mut batch, &changed).await?;
        batch.commit().await.map_err(classify)?;
        rows.into_iter()
            .zip(free)
            .map(|(row, fresh)| Some(Verdict::Decided(Acquired { row: row?.row, fresh })))
            .collect::<Option<_>>()
            .ok_or_else(|| StoreError::fault("a session was left undecided"))
    }

    async fn renew(
        &mut self,
        asked: &[&Renew],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let keys: Vec<&SessionKey> = asked.iter().map(|renew| &renew.key).collect();
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut answers = Vec::with_capacity(asked.len());
        let mut changed = Vec::new();
        for (row, renew) in look(&mut batch, &keys, now).await?.into_iter().zip(asked) {
            let live = row.filter(|row| row.row.live && row.row.lease.id == renew.lease);
            let renewed = live.map(|mut stored| {
                let lease = &mut stored.row.lease;
                lease.expire_time = now.after(renew.ttl);
                lease.remaining = lease.expire_time.since(now);
                changed.push((&renew.key, stored.clone()));
                stored.row
            });
            answers.push(Verdict::Decided(renewed));
        }
        write(&mut batch, &changed).await?;
        batch.commit().await.map_err(classify)?;
        Ok(answers)
    }

    async fn release(&mut self, asked: &[&Release]) -> Result<Vec<Verdict<bool>>, StoreError> {
        let keys: Vec<&SessionKey> = asked.iter().map(|release| &release.key).collect();
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut answers = Vec::with_capacity(asked.len());
        let mut changed = Vec::new();
        for (row, release) in look(&mut batch, &keys, now).await?.into_iter().zip(asked) {
            let mut released = false;
            if let Some(mut stored) = row.filter(|row| row.row.lease.id == release.lease) {
                if stored.row.live && !(release.unless_repeated && stored.repeated) {
                    stored.released = true;
                    stored.row.lease.expire_time = now;
                    changed.push((&release.key, stored.clone()));
                }
                released = stored.released;
            }
            answers.push(Verdict::Decided(released));
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

async fn look(
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

async fn write(
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

fn stored(row: &SqliteRow, now: Timestamp) -> Result<Stored, sqlx::Error> {
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
