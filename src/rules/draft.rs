//! Drafts: what a decision reads, and so rests on, and what it writes.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{Event, Ids, Latest, RuleError, Session, State, Version, Waiter};
use crate::domain::{EventKey, FencingToken, LeaseId, RequestId, SessionKey, Timestamp};

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
        team: &str,
        names: impl IntoIterator<Item = &'a str>,
        with_result: bool,
    ) {
        for name in names {
            let key = EventKey { team: team.to_owned(), event: name.to_owned() };
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
    /// What there is under the names that were wanted.
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

/// What a store writes as a whole if what it rests on still holds, or not at all.
#[derive(Debug)]
pub struct Plan {
    /// The sessions that it rests on: the version of each, none where it is absent.
    pub sessions: BTreeMap<SessionKey, Option<Version>>,
    /// The names of events that it rests on: the version of each, none where it is absent.
    pub events: BTreeMap<EventKey, Option<Version>>,
    /// The store's clock must have reached this moment: what had ended has.
    pub from: Timestamp,
    /// And not this: what ran still does.
    pub until: Timestamp,
    /// The lowest token that it grants: the floor must be below.
    pub token: Option<FencingToken>,
    /// What is written.
    pub writes: Writes,
    /// What other replicas are notified of once it is written.
    pub notices: Vec<Notice>,
}

/// What other replicas are notified of. Each may be lost; what they are about, the records decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A lease was handed to a caller that waits.
    Handed(LeaseId),
    /// A newer call has taken over the place that was to end in this lease.
    TakenOver(LeaseId),
    /// The holder or the queue of a session has changed.
    Session(SessionKey),
    /// The event was forgotten that the turn of this request had claimed.
    Forgotten(RequestId),
}

/// What a plan writes.
#[derive(Debug, Default)]
pub struct Writes {
    /// Sessions and their queues.
    pub sessions: Vec<SessionWrite>,
    /// Changes of events under all names that they were taken with; before `puts`.
    pub updates: Vec<EventUpdate>,
    /// Events that are written under all of their names, whatever is there.
    pub puts: Vec<(String, Event)>,
    /// What the floor of fencing tokens is raised to, unless it is higher.
    pub floor: Option<FencingToken>,
}

/// A session, as a plan writes it.
#[derive(Debug)]
pub struct SessionWrite {
    /// Which.
    pub key: SessionKey,
    /// What becomes of its row.
    pub latest: Change<Latest>,
    /// Places that are taken, first to last.
    pub add: Vec<Waiter>,
    /// Places that another call has now, or that are left behind.
    pub change: Vec<Waiter>,
    /// The tickets of places that are gone.
    pub remove: Vec<i64>,
}

/// An event, as a plan changes it.
#[derive(Debug)]
pub struct EventUpdate {
    /// Its team.
    pub team: String,
    /// The version that it had: a row under one of its names that has another stays.
    pub was: Version,
    /// The names that it was taken with.
    pub names: Vec<String>,
    /// What it becomes, names and digest apart; none if it is deleted.
    pub event: Option<Event>,
}

/// What becomes of a row.
#[derive(Debug)]
pub enum Change<T> {
    /// It stays as it is.
    Keep,
    /// It is written.
    Put(T),
    /// It is deleted.
    Delete,
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
    writes: Writes,
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
            writes: Writes::default(),
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
        self.sessions.insert(key.clone(), Drafted { read: read.clone(), now: read.clone() });
        read
    }

    /// Writes a session that was read.
    pub fn put_session(&mut self, key: &SessionKey, mut session: Session) {
        if let Some(latest) = &mut session.latest {
            latest.version = self.ids.version();
        }
        if let Some(drafted) = self.sessions.get_mut(key) {
            drafted.now = session;
        }
    }

    /// Reads an event under one of its names, which the decision then rests on. What an alias
    /// was taken with is another delivery's payload.
    pub fn event(&mut self, team: &str, name: &str) -> Option<Event> {
        let key = EventKey { team: team.to_owned(), event: name.to_owned() };
        match self.events.entry(key) {
            Entry::Occupied(drafted) => drafted.get().now.clone(),
            Entry::Vacant(vacant) => {
                let read = self.snapshot.events.get(vacant.key()).cloned();
                vacant.insert(Drafted { read: read.clone(), now: read.clone() });
                if let Some(event) = &read {
                    if let State::Claimed(until) = event.state
                        && until > event.time
                    {
                        self.rests_on(until);
                    }
                    self.rests_on(event.expire_time);
                }
                read
            }
        }
    }

    /// Writes an event under all of its names, each of which was read.
    pub fn put_event(&mut self, team: &str, mut event: Event) {
        event.version = self.ids.version();
        for (place, name) in event.names.iter().enumerate() {
            let key = EventKey { team: team.to_owned(), event: name.clone() };
            if let Some(drafted) = self.events.get_mut(&key) {
                let digest = event.digest.filter(|_| place == 0);
                drafted.now = Some(Event { digest, ..event.clone() });
            }
        }
        self.writes.puts.push((team.to_owned(), event));
    }

    /// Changes an event that was read, under all names that it was taken with; deletes it if
    /// there is no `event`.
    pub fn update_event(&mut self, team: &str, was: &Event, mut event: Option<Event>) {
        if let Some(event) = &mut event {
            event.version = self.ids.version();
        }
        for name in &was.names {
            let key = EventKey { team: team.to_owned(), event: name.clone() };
            if let Some(drafted) = self.events.get_mut(&key)
                && let Some(now) = drafted.now.as_mut().filter(|now| now.version == was.version)
            {
                let digest = now.digest;
                drafted.now = event.clone().map(|event| Event { digest, ..event });
            }
        }
        let put = self.writes.puts.iter_mut().find(|(_, put)| put.version == was.version);
        let update =
            self.writes.updates.iter_mut().find(|update| {
                update.event.as_ref().is_some_and(|event| event.version == was.version)
            });
        match (put, update, event) {
            (Some((_, put)), _, Some(event)) => *put = Event { digest: put.digest, ..event },
            (_, Some(update), event) => update.event = event,
            (_, None, event) => {
                self.writes.puts.retain(|(_, put)| put.version != was.version);
                let (team, names) = (team.to_owned(), was.names.clone());
                self.writes.updates.push(EventUpdate { team, was: was.version, names, event });
            }
        }
    }

    /// The token of a grant, above that of the session's row.
    ///
    /// # Errors
    /// [`RuleError::TokensExhausted`].
    pub fn token(&mut self, row: Option<FencingToken>) -> Result<FencingToken, RuleError> {
        let floor = self.snapshot.floor.max(self.writes.floor.unwrap_or(self.snapshot.floor));
        let token = FencingToken::next(row, floor, self.now());
        let token = token.ok_or(RuleError::TokensExhausted)?;
        self.token = Some(self.token.map_or(token, |lowest| lowest.min(token)));
        Ok(token)
    }

    /// Raises the floor of fencing tokens to that of a session that is deleted.
    pub fn raise_floor(&mut self, token: FencingToken) {
        self.writes.floor = self.writes.floor.max(Some(token));
    }

    /// Notifies other replicas once it is written.
    pub fn notify(&mut self, notice: Notice) {
        self.notices.push(notice);
    }

    /// The decision rests on which side of `moment` it is.
    fn rests_on(&mut self, moment: Timestamp) {
        if moment > self.now() {
            self.until = self.until.min(moment);
        } else {
            self.from = self.from.max(moment);
        }
    }

    /// What is to be written, and what that rests on.
    #[must_use]
    pub fn into_plan(self) -> Plan {
        let mut writes = self.writes;
        let mut sessions = BTreeMap::new();
        for (key, drafted) in self.sessions {
            writes.sessions.extend(drafted.write(&key));
            sessions.insert(key, drafted.read.latest.map(|latest| latest.version));
        }
        let version = |event: Drafted<Option<Event>>| event.read.map(|event| event.version);
        Plan {
            sessions,
            events: self.events.into_iter().map(|(key, event)| (key, version(event))).collect(),
            from: self.from,
            until: self.until,
            token: self.token,
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
}

impl Plan {
    /// The event that it adds under one name, if that is all that it does.
    #[must_use]
    pub fn as_new_event(&self) -> Option<(&str, &Event)> {
        let Writes { sessions, updates, puts, floor } = &self.writes;
        let [(team, event)] = &puts[..] else { return None };
        let is_all = sessions.is_empty() && updates.is_empty() && floor.is_none();
        let is_new = self.sessions.is_empty() && self.events.values().all(Option::is_none);
        (is_all && is_new && event.names.len() == 1).then_some((team, event))
    }

    /// Whether it writes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Writes { sessions, updates, puts, floor } = &self.writes;
        sessions.is_empty() && updates.is_empty() && puts.is_empty() && floor.is_none()
    }
}
