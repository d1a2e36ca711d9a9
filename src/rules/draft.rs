//! Drafts: what a decision reads, and so rests on, and what it writes.

use std::collections::BTreeMap;

use super::{
    Change, Event, EventUpdate, Ids, Notice, Place, Plan, RuleError, Session, SessionWrite, State,
    Waiter, Writes, queue::PLACE_KEPT,
};
use crate::domain::{EventKey, FencingToken, SessionKey, Team, Timestamp};

/// The records that operations are about.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Sessions; with their queues even where nobody waits, if set.
    pub sessions: BTreeMap<SessionKey, bool>,
    /// What is on record under single names of events; with the result of a turn, if set.
    pub events: BTreeMap<EventKey, bool>,
}

impl Wanted {
    /// A session, with its queue if anybody waits.
    pub fn session(&mut self, key: &SessionKey) {
        self.sessions.entry(key.clone()).or_default();
    }

    /// A session with its queue.
    pub fn queue(&mut self, key: &SessionKey) {
        self.sessions.insert(key.clone(), true);
    }

    /// An event under each of `names`.
    pub fn event<'a>(
        &mut self,
        team: &Team,
        names: impl IntoIterator<Item = &'a str>,
        with_result: bool,
    ) {
        for name in names {
            let key = EventKey { team: team.clone(), event: name.to_owned() };
            *self.events.entry(key).or_default() |= with_result;
        }
    }
}

/// Records, as a store read them.
#[derive(Debug)]
pub struct Snapshot {
    /// The store's time.
    pub now: Timestamp,
    /// The floor of fencing tokens.
    pub floor: FencingToken,
    /// The sessions that were wanted.
    pub sessions: BTreeMap<SessionKey, Session>,
    /// The events under the names that were wanted.
    pub events: BTreeMap<EventKey, Event>,
}

impl Snapshot {
    /// Nothing, at that moment.
    #[must_use]
    pub fn empty(now: Timestamp) -> Self {
        let (sessions, events) = (BTreeMap::new(), BTreeMap::new());
        Self { now, floor: FencingToken(0), sessions, events }
    }
}

/// A record as it was read, and as it is to be.
#[derive(Debug)]
struct Drafted<T> {
    read: T,
    now: T,
}

/// One or several operations that are decided and written together.
#[derive(Debug)]
pub struct Draft<'a> {
    snapshot: &'a Snapshot,
    ids: &'a mut Ids,
    sessions: BTreeMap<SessionKey, Drafted<Session>>,
    events: BTreeMap<EventKey, Drafted<Option<Event>>>,
    from: Timestamp,
    until: Timestamp,
    token: Option<FencingToken>,
    is_once: bool,
    /// Changes of events that were read, under all names that they were taken with.
    updates: Vec<EventUpdate>,
    floor: Option<FencingToken>,
    notices: Vec<Notice>,
}

impl<'a> Draft<'a> {
    /// An empty draft on what was read.
    #[must_use]
    pub fn new(snapshot: &'a Snapshot, ids: &'a mut Ids) -> Self {
        Self {
            snapshot,
            ids,
            sessions: BTreeMap::new(),
            events: BTreeMap::new(),
            from: Timestamp::from_micros(i64::MIN),
            until: Timestamp::from_micros(i64::MAX),
            token: None,
            is_once: false,
            updates: Vec::new(),
            floor: None,
            notices: Vec::new(),
        }
    }

    /// The moment of the decision.
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.snapshot.now
    }

    /// New ids.
    pub const fn ids(&mut self) -> &mut Ids {
        self.ids
    }

    /// Reads a session, which the decision then rests on.
    pub fn session(&mut self, key: &SessionKey) -> Session {
        if let Some(drafted) = self.sessions.get(key) {
            return drafted.now.clone();
        }
        let read = self.snapshot.sessions.get(key).cloned().unwrap_or_default();
        if let Some(latest) = read.latest.as_ref().filter(|latest| !latest.released) {
            self.rests_on(latest.expire_time);
        }
        for left_at in read.queue.iter().filter_map(|waiter| waiter.left_at) {
            self.rests_on(left_at.plus(PLACE_KEPT));
        }
        self.sessions.insert(key.clone(), Drafted { read: read.clone(), now: read.clone() });
        read
    }

    /// Writes a session that was read.
    pub fn put_session(&mut self, key: &SessionKey, mut session: Session) {
        if let Some(latest) = &mut session.latest {
            latest.version = self.ids.version();
        }
        let drafted = self.sessions.get_mut(key);
        debug_assert!(drafted.is_some(), "{key:?} was not read");
        if let Some(drafted) = drafted {
            drafted.now = session;
        }
    }

    /// Reads an event under one of its names, which the decision then rests on.
    pub fn event(&mut self, team: &Team, name: &str) -> Option<Event> {
        let key = EventKey { team: team.clone(), event: name.to_owned() };
        if let Some(drafted) = self.events.get(&key) {
            return drafted.now.clone();
        }
        let read = self.snapshot.events.get(&key).cloned();
        if let Some(event) = &read {
            if let State::Claimed(until) = event.state
                && until > event.time
            {
                self.rests_on(until);
            }
            self.rests_on(event.expire_time);
        }
        // It may have been changed under another of its names.
        let update = read.as_ref().and_then(|read| {
            let of = |update: &&EventUpdate| {
                update.team == *team && update.is_of(read) && update.names.contains(&key.event)
            };
            self.updates.iter().find(of)
        });
        let now = match (&read, update) {
            (Some(read), Some(update)) => update.event_under(read.digest),
            _ => read.clone(),
        };
        self.events.insert(key, Drafted { read, now: now.clone() });
        now
    }

    /// Writes an event under all of its names, each of which was read; its digest under its own
    /// name alone, since another delivery with that name as its own may have another payload.
    pub fn put_event(&mut self, team: &Team, mut event: Event) {
        event.version = self.ids.version();
        for (place, name) in event.names.iter().enumerate() {
            let key = EventKey { team: team.clone(), event: name.clone() };
            let drafted = self.events.get_mut(&key);
            debug_assert!(drafted.is_some(), "{name} was not read");
            if let Some(drafted) = drafted {
                let digest = event.digest.filter(|_| place == 0);
                drafted.now = Some(Event { digest, ..event.clone() });
            }
        }
    }

    /// Changes an event that was read, under all names that it was taken with; deletes it if
    /// there is no `event`.
    pub fn update_event(&mut self, team: &Team, was: &Event, mut event: Option<Event>) {
        if let Some(event) = &mut event {
            event.version = self.ids.version();
        }
        let update = EventUpdate {
            team: team.clone(),
            was: was.version,
            request: was.request,
            taken_with: was.names.clone(),
            names: was.names.clone(),
            event,
        };
        for name in &update.names {
            let key = EventKey { team: update.team.clone(), event: name.clone() };
            if let Some(Drafted { now, .. }) = self.events.get_mut(&key)
                && let Some(row) = now.as_ref().filter(|row| update.is_of(row))
            {
                *now = update.event_under(row.digest);
            }
        }
        let earlier = self.updates.iter_mut().find(|earlier| {
            earlier.event.as_ref().is_some_and(|event| event.version == was.version)
        });
        match earlier {
            Some(earlier) => earlier.event = update.event,
            None => self.updates.push(update),
        }
    }

    /// The token of a grant, above that of the session's row.
    ///
    /// # Errors
    /// [`RuleError::TokensExhausted`].
    pub fn token(&mut self, row: Option<FencingToken>) -> Result<FencingToken, RuleError> {
        let floor = self.snapshot.floor.max(self.floor.unwrap_or_default());
        let token = FencingToken::next(row, floor, self.now());
        let token = token.ok_or(RuleError::TokensExhausted)?;
        self.token = Some(self.token.map_or(token, |lowest| lowest.min(token)));
        Ok(token)
    }

    /// Raises the floor of fencing tokens to that of a session that is deleted.
    pub fn raise_floor(&mut self, token: FencingToken) {
        self.floor = self.floor.max(Some(token));
    }

    /// If its outcome is unknown, it must not be written again.
    pub fn only_once(&mut self) {
        self.is_once = true;
    }

    /// Notifies other replicas once it is written.
    pub fn notify(&mut self, notice: Notice) {
        self.notices.push(notice);
    }

    /// The decision rests on which side of `moment` it is.
    pub(super) fn rests_on(&mut self, moment: Timestamp) {
        if moment > self.now() {
            self.until = self.until.min(moment);
        } else {
            self.from = self.from.max(moment);
        }
    }

    /// What is to be written, and what that rests on.
    #[must_use]
    pub fn into_plan(self) -> Plan {
        let mut writes = Writes { updates: self.updates, floor: self.floor, ..Writes::default() };
        // What was read is written by itself; under its other names an event is updated.
        for EventUpdate { team, names, .. } in &mut writes.updates {
            names.retain(|name| {
                let key = EventKey { team: team.clone(), event: name.clone() };
                !self.events.contains_key(&key)
            });
        }
        writes.updates.retain(|update| !update.names.is_empty());
        let (mut sessions, mut events) = (BTreeMap::new(), BTreeMap::new());
        let mut places = Vec::new();
        for (key, drafted) in self.sessions {
            if let Some(write) = drafted.write(&key) {
                places.extend(drafted.places(&key, &write));
                writes.sessions.push(write);
            }
            sessions.insert(key, drafted.read.latest.map(|latest| latest.version));
        }
        for (key, Drafted { read, now }) in self.events {
            let was = read.as_ref().map(|event| event.version);
            let taken = read.map(|event| (event.request, event.names));
            match (was, now) {
                (was, Some(event)) if was != Some(event.version) => {
                    writes.puts.push((key.clone(), event));
                }
                (Some(was), None) => {
                    let EventKey { team, event } = key.clone();
                    let (request, taken_with) = taken.unwrap_or_default();
                    let (names, event) = (vec![event], None);
                    let update = EventUpdate { team, was, request, taken_with, names, event };
                    writes.updates.push(update);
                }
                _ => {}
            }
            events.insert(key, was);
        }
        Plan {
            sessions,
            events,
            from: self.from,
            until: self.until,
            token: self.token,
            places,
            is_once: self.is_once,
            writes,
            notices: self.notices,
        }
    }
}

impl Drafted<Session> {
    fn write(&self, key: &SessionKey) -> Option<SessionWrite> {
        if self.read == self.now {
            return None;
        }
        let latest = match (&self.read.latest, &self.now.latest) {
            (read, now) if read == now => Change::Keep,
            (_, Some(latest)) => Change::Put(latest.clone()),
            (_, None) => Change::Delete,
        };
        let (read, now) = (&self.read.queue, &self.now.queue);
        let of = |ticket| read.iter().find(move |waiter| waiter.ticket == ticket);
        let is_gone = |waiter: &&Waiter| now.iter().all(|now| now.ticket != waiter.ticket);
        Some(SessionWrite {
            key: key.clone(),
            latest,
            add: now.iter().filter(|waiter| waiter.ticket.is_none()).cloned().collect(),
            change: now
                .iter()
                .filter(|waiter| of(waiter.ticket).is_some_and(|read| read != *waiter))
                .cloned()
                .collect(),
            remove: read.iter().filter(is_gone).filter_map(|waiter| waiter.ticket).collect(),
        })
    }

    /// The places that `write` changes or removes, as they were read.
    fn places(&self, key: &SessionKey, write: &SessionWrite) -> Vec<Place> {
        let is_touched = |ticket: &i64| {
            let changed = write.change.iter().filter_map(|waiter| waiter.ticket);
            changed.chain(write.remove.iter().copied()).any(|touched| touched == *ticket)
        };
        let place = |waiter: &Waiter| {
            let ticket = waiter.ticket.filter(is_touched)?;
            let (key, lease, waits) = (key.clone(), waiter.lease, waiter.left_at.is_none());
            Some(Place { key, ticket, lease, waits })
        };
        self.read.queue.iter().filter_map(place).collect()
    }
}
