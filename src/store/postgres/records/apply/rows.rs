//! What plans write, row by row, as the statement takes it.

use serde_json::{Value, json};

use crate::{
    domain::{SessionKey, Timestamp},
    rules::{Change, Event, EventUpdate, Latest, Plan, Waiter, Writes},
    store::records::state::StateColumns,
};

/// What plans write, row by row.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) sessions: Vec<Value>,
    pub(super) events: Vec<Value>,
    pub(super) updates: Vec<Value>,
    pub(super) places: Vec<Value>,
    pub(super) left: Vec<Value>,
    pub(super) forgets: bool,
}

impl Rows {
    pub(super) fn add(&mut self, plan: usize, of: &Plan) {
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
                json!({"plan": plan, "team": key.team.as_str(), "id": key.session, "ticket": ticket})
            }));
        }
        for EventUpdate { team, request, taken_with, names, event, .. } in updates {
            self.forgets |= event.is_none();
            for name in names {
                let mut row = event.as_ref().map_or_else(|| json!({}), state);
                row["plan"] = json!(plan);
                row["is_gone"] = json!(event.is_none());
                row["team"] = json!(team.as_str());
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
            row["team"] = json!(key.team.as_str());
            row["id"] = json!(key.event);
            row["request"] = json!(event.request.map(|request| request.as_uuid().to_string()));
            row["names"] = json!((event.names.len() > 1).then_some(&event.names));
            row["digest"] = json!(event.digest.map(|digest| digest.as_uuid().to_string()));
            self.events.push(row);
        }
    }
}

fn session(plan: usize, kind: &str, key: &SessionKey, latest: Option<&Latest>) -> Value {
    let mut row = json!({"plan": plan, "kind": kind, "team": key.team.as_str(), "id": key.session});
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
        "team": key.team.as_str(),
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
    json!(StateColumns::of(event))
}

fn micros_of(span: std::time::Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
