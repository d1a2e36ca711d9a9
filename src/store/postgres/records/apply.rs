//! Writing plans.

use serde_json::json;
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::json::text;
use crate::{
    domain::{EventKey, LeaseId},
    rules::{EventUpdate, Notice, Place, Plan},
    store::{
        PRESENCE, StoreError,
        postgres::{Locks, handle::Statement, timestamp::PgTimestamp},
        records::Applied,
    },
};

mod rows;
mod statement;

use rows::Rows;
pub(in super::super) use statement::{APPLY, APPLY_SESSIONS};

/// Plans as a statement's texts.
pub(super) struct Texts {
    plans: String,
    sessions: String,
    put_sessions: String,
    places: String,
    left: String,
    notices: String,
    rests_on: String,
    /// None where no plan is about an event.
    events: Option<OfEvents>,
    forgets: bool,
    is_once: bool,
}

/// What plans say of events.
struct OfEvents {
    rests_on: String,
    puts: String,
    updates: String,
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
            json!({"plan": plan, "team": team.as_str(), "id": id, "ticket": ticket, "lease": lease, "waits": waits})
        });
        let sessions = sessions.into_iter().map(|(team, id, lock, version, plan)| {
            json!({"plan": plan, "team": team.as_str(), "id": id, "lock_key": lock, "version": version})
        });
        let about_events = || {
            let rests_on = events.iter().map(|(team, id, version, is_read, plan)| {
                json!({"plan": plan, "team": team.as_str(), "id": id, "version": version, "is_read": is_read})
            });
            Ok(OfEvents {
                rests_on: text(&rests_on.collect::<Vec<_>>())?,
                puts: text(&rows.events)?,
                updates: text(&rows.updates)?,
            })
        };
        Ok(Self {
            plans: text(&heads)?,
            sessions: text(&sessions.collect::<Vec<_>>())?,
            put_sessions: text(&rows.sessions)?,
            places: text(&rows.places)?,
            left: text(&rows.left)?,
            notices: text(&notices)?,
            rests_on: text(&rests_on.collect::<Vec<_>>())?,
            events: (!events.is_empty()).then(about_events).transpose()?,
            forgets: rows.forgets,
            is_once,
        })
    }

    /// The statement that writes them.
    pub(super) fn statement(&self, now: Option<PgTimestamp>, replica: Uuid) -> Statement<'_> {
        let of_sessions = |text| {
            sqlx::query(text)
                .bind(now)
                .bind(&self.plans)
                .bind(&self.sessions)
                .bind(&self.put_sessions)
                .bind(&self.places)
                .bind(&self.left)
                .bind(&self.notices)
                .bind(replica)
                .bind(i64::try_from(PRESENCE.as_micros()).unwrap_or(i64::MAX))
                .bind(&self.rests_on)
        };
        let Some(OfEvents { rests_on, puts, updates }) = &self.events else {
            return of_sessions(APPLY_SESSIONS);
        };
        of_sessions(APPLY).bind(rests_on).bind(puts).bind(updates)
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
