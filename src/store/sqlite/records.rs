//! Records in `SQLite`: read on a connection of their own, and compared and written within the
//! one transaction that may write.

use std::collections::{BTreeMap, HashSet};

use sqlx::{Row as _, SqliteConnection};

use super::{Handle, classify, events, fence, rows::text, sessions, writer::begin};
use crate::{
    domain::{EventKey, FencingToken, LeaseId, SessionKey, Timestamp},
    rules::{Event, EventUpdate, Ids, Plan, Snapshot, Version, Wanted, Writes},
    store::{
        StoreError,
        records::{Applied, Decided, Records},
    },
};

impl Decided for Handle {}

impl Records for Handle {
    async fn read(&mut self, wanted: &Wanted) -> Result<Snapshot, StoreError> {
        let now = self.now();
        let reader = self.reader().await?;
        let mut snapshot = Snapshot::empty(now);
        if !wanted.sessions.is_empty() {
            let floor = sqlx::query_scalar(fence::FLOOR).fetch_one(&mut *reader).await;
            snapshot.floor = FencingToken(floor.map_err(classify)?);
            snapshot.sessions = sessions::read(reader, &wanted.sessions).await?;
        }
        if !wanted.events.is_empty() {
            snapshot.events = events::read(reader, &wanted.events).await?;
        }
        Ok(snapshot)
    }

    async fn apply(&mut self, plans: Vec<Plan>) -> Result<Vec<Applied>, StoreError> {
        let forgets = plans
            .iter()
            .any(|plan| plan.writes.updates.iter().any(|update| update.event.is_none()));
        let applied = self.apply_all(plans).await;
        if forgets {
            // Even if it failed: it may have been committed.
            self.marks.invalidate();
        }
        applied
    }

    fn known_time(&self) -> Option<Timestamp> {
        Some(self.now())
    }

    fn ids(&mut self) -> &mut Ids {
        &mut self.ids
    }
}

impl Handle {
    async fn apply_all(&mut self, plans: Vec<Plan>) -> Result<Vec<Applied>, StoreError> {
        let added: Option<Vec<_>> = plans.iter().map(Plan::as_new_event).collect();
        if let Some(added) = added {
            return self.add_events(&added).await;
        }
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut current = Current::of(&mut batch, &plans, now).await?;
        let mut all = Writes::default();
        let mut applied = Vec::with_capacity(plans.len());
        for plan in plans {
            if !current.holds(&plan) {
                applied.push(Applied::Conflict);
                continue;
            }
            current.note(&plan);
            let Writes { sessions, updates, puts, floor } = plan.writes;
            let adds = sessions.iter().flat_map(|write| &write.add);
            applied.push(Applied::Written(adds.map(|waiter| (waiter.lease, 0)).collect()));
            all.sessions.extend(sessions);
            all.updates.extend(updates);
            all.puts.extend(puts);
            all.floor = all.floor.max(floor);
        }
        let tickets = write(&mut batch, &all).await?;
        batch.commit().await.map_err(classify)?;
        for applied in &mut applied {
            let Applied::Written(places) = applied else { continue };
            for (lease, ticket) in places {
                *ticket = tickets.get(lease).copied().unwrap_or_default();
            }
        }
        Ok(applied)
    }
}

impl Handle {
    /// Adds events of one name, where there is none: a statement is a transaction of its own.
    async fn add_events(&self, added: &[(&EventKey, &Event)]) -> Result<Vec<Applied>, StoreError> {
        let mut writer = self.writer.lock().await;
        if events::add(&mut writer, added).await? == added.len() as u64 {
            return Ok(vec![Applied::Written(Vec::new()); added.len()]);
        }
        // Nothing else writes meanwhile: an event that is not there by now was not added.
        let of_event = |key: &&EventKey| (key.team.to_string(), key.event.clone());
        let keys: Vec<&EventKey> = added.iter().map(|&(key, _)| key).collect();
        let now = versions(&mut writer, events::VERSIONS, &keys, of_event).await?;
        let applied = added.iter().map(|&(key, event)| {
            let is_own = now.get(key) == Some(&event.version);
            if is_own { Applied::Written(Vec::new()) } else { Applied::Conflict }
        });
        Ok(applied.collect())
    }
}

/// What plans rest on, as it stands.
struct Current {
    now: Timestamp,
    floor: FencingToken,
    sessions: BTreeMap<SessionKey, Version>,
    events: BTreeMap<EventKey, Version>,
    /// What the plans before have written.
    touched_sessions: HashSet<SessionKey>,
    touched_events: HashSet<EventKey>,
}

impl Current {
    async fn of(
        batch: &mut SqliteConnection,
        plans: &[Plan],
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let floor = if plans.iter().any(|plan| plan.token.is_some()) {
            sqlx::query_scalar(fence::FLOOR).fetch_one(&mut *batch).await.map_err(classify)?
        } else {
            0
        };
        let sessions: Vec<&SessionKey> =
            plans.iter().flat_map(|plan| plan.sessions.keys()).collect();
        let events: Vec<&EventKey> = plans.iter().flat_map(|plan| plan.events.keys()).collect();
        let of_session = |key: &&SessionKey| (key.team.to_string(), key.session.clone());
        let of_event = |key: &&EventKey| (key.team.to_string(), key.event.clone());
        Ok(Self {
            now,
            floor: FencingToken(floor),
            sessions: versions(batch, sessions::VERSIONS, &sessions, of_session).await?,
            events: versions(batch, events::VERSIONS, &events, of_event).await?,
            touched_sessions: HashSet::new(),
            touched_events: HashSet::new(),
        })
    }

    /// Whether all that a plan rests on still holds.
    fn holds(&self, plan: &Plan) -> bool {
        (plan.from..plan.until).contains(&self.now)
            && plan.token.is_none_or(|token| token > self.floor)
            && plan.sessions.iter().all(|(key, version)| {
                self.sessions.get(key) == version.as_ref() && !self.touched_sessions.contains(key)
            })
            && plan.events.iter().all(|(key, version)| {
                self.events.get(key) == version.as_ref() && !self.touched_events.contains(key)
            })
    }

    /// Notes what a plan writes: one that follows was decided without it.
    fn note(&mut self, plan: &Plan) {
        let Writes { sessions, updates, puts, floor } = &plan.writes;
        self.touched_sessions.extend(sessions.iter().map(|write| write.key.clone()));
        for EventUpdate { team, names, was, .. } in updates {
            let key = |event: &String| EventKey { team: team.clone(), event: event.clone() };
            // Under another version the name is another event's by now, and stays as it is. Rows from
            // before there were versions share one: then a plan of the other event is retried.
            let is_of = |key: &EventKey| self.events.get(key) == Some(was);
            self.touched_events.extend(names.iter().map(key).filter(is_of));
        }
        self.touched_events.extend(puts.iter().map(|(key, _)| key.clone()));
        self.floor = floor.map_or(self.floor, |floor| self.floor.max(floor));
    }
}

/// The versions that records have.
async fn versions<K: Ord + Clone>(
    batch: &mut SqliteConnection,
    statement: &'static str,
    keys: &[&K],
    parts: impl Fn(&&K) -> (String, String),
) -> Result<BTreeMap<K, Version>, StoreError> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let asked: Vec<_> = keys.iter().map(parts).collect();
    let rows =
        sqlx::query(statement).bind(text(&asked)?).fetch_all(batch).await.map_err(classify)?;
    let mut versions = BTreeMap::new();
    for row in rows {
        let place: i64 = row.try_get("key").map_err(StoreError::internal)?;
        let key = usize::try_from(place).ok().and_then(|place| keys.get(place));
        let key = key.ok_or_else(|| StoreError::internal("unexpected row in the answer"))?;
        let version = row.try_get("version").map_err(StoreError::internal)?;
        versions.insert((*key).clone(), Version(version));
    }
    Ok(versions)
}

/// Writes what plans come to. Answers the tickets of new places.
async fn write(
    batch: &mut SqliteConnection,
    writes: &Writes,
) -> Result<BTreeMap<LeaseId, i64>, StoreError> {
    let Writes { sessions, updates, puts, floor } = writes;
    events::write(batch, updates, puts).await?;
    if let Some(floor) = floor {
        fence::raise_floor(batch, *floor).await?;
    }
    sessions::write(batch, sessions).await
}
