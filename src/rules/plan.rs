//! Plans: what a store writes, and what that rests on.

use std::collections::BTreeMap;

use super::{Event, Latest, Session, Snapshot, Version, Waiter, Wanted};
use crate::domain::{
    EventKey, FencingToken, LeaseId, PayloadDigest, RequestId, SessionKey, Team, Timestamp,
};

/// What a store writes as a whole if what it rests on still holds, or not at all.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The sessions that it rests on: the version of each, none where it is absent.
    pub sessions: BTreeMap<SessionKey, Option<Version>>,
    /// The places in queues that it changes or removes. An older version of the server removes one
    /// without a change of its session.
    pub places: Vec<Place>,
    /// The names of events that it rests on: the version of each, none where it is absent.
    pub events: BTreeMap<EventKey, Option<Version>>,
    /// The store's clock must have reached this moment: what had ended has.
    pub from: Timestamp,
    /// And not this: what ran still does.
    pub until: Timestamp,
    /// The lowest token that it grants: the floor must be below.
    pub token: Option<FencingToken>,
    /// Whether it must not be written again when its outcome is unknown: by then it would end or
    /// remove what came after it.
    pub is_once: bool,
    /// What is written.
    pub writes: Writes,
    /// What other replicas are notified of once it is written.
    pub notices: Vec<Notice>,
}

/// A place in a queue, as a plan rests on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The session.
    pub key: SessionKey,
    /// Its number.
    pub ticket: i64,
    /// The lease that it is to end in.
    pub lease: LeaseId,
    /// Whether its caller waits; otherwise it was left behind.
    pub waits: bool,
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
#[derive(Debug, Clone, Default)]
pub struct Writes {
    /// Sessions and their queues.
    pub sessions: Vec<SessionWrite>,
    /// Changes of events under names that they were taken with. No row is among both these and
    /// `puts`.
    pub updates: Vec<EventUpdate>,
    /// Events, each under one of its names.
    pub puts: Vec<(EventKey, Event)>,
    /// What the floor of fencing tokens is raised to, unless it is higher.
    pub floor: Option<FencingToken>,
}

/// A session, as a plan writes it.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone)]
pub struct EventUpdate {
    /// Its team.
    pub team: Team,
    /// The version that it had, and the request: a row under one of its names that has others
    /// stays. The version alone does not distinguish the rows of two events that were written
    /// before rows had versions.
    pub was: Version,
    /// The request that had it.
    pub request: Option<RequestId>,
    /// All names that it was taken with: the same request may have left a row under one of them
    /// when it was taken with others.
    pub taken_with: Vec<String>,
    /// The names under which it is changed.
    pub names: Vec<String>,
    /// What it becomes, names and digest apart; none if it is deleted.
    pub event: Option<Event>,
}

/// What becomes of a row.
#[derive(Debug, Clone)]
pub enum Change<T> {
    /// It stays as it is.
    Keep,
    /// It is written.
    Put(T),
    /// It is deleted.
    Delete,
}

impl SessionWrite {
    /// If the session is as it is written: the tickets of its new places.
    fn tickets_in(&self, session: &Session) -> Option<Vec<(LeaseId, i64)>> {
        let is_latest = match (&self.latest, &session.latest) {
            (Change::Keep, _) => true,
            (Change::Put(own), Some(row)) => *own == Latest { version: own.version, ..row.clone() },
            (Change::Put(_), None) => false,
            (Change::Delete, row) => row.is_none(),
        };
        let at = |ticket| session.queue.iter().find(|waiter| waiter.ticket == Some(ticket));
        let is_changed = |own: &Waiter| {
            let place = own.ticket.and_then(at);
            place.is_some_and(|place| (place.lease, place.left_at) == (own.lease, own.left_at))
        };
        let is_queue = self.change.iter().all(is_changed)
            && self.remove.iter().all(|ticket| at(*ticket).is_none());
        let ticket = |own: &Waiter| {
            let place = session.queue.iter().find(|waiter| waiter.lease == own.lease)?;
            Some((own.lease, place.ticket?))
        };
        let tickets = self.add.iter().map(ticket).collect::<Option<_>>();
        tickets.filter(|_| is_latest && is_queue)
    }
}

impl EventUpdate {
    /// Whether `row`, under one of its names, is a row of the event.
    #[must_use]
    pub fn is_of(&self, row: &Event) -> bool {
        row.version == self.was && row.request == self.request
    }

    /// What becomes of the event under a name that it was taken with this digest under.
    #[must_use]
    pub fn event_under(&self, digest: Option<PayloadDigest>) -> Option<Event> {
        self.event.clone().map(|event| Event { digest, ..event })
    }
}

impl Plan {
    /// The event that it adds under one name, if that is all that it does.
    #[must_use]
    pub fn as_new_event(&self) -> Option<(&EventKey, &Event)> {
        let Writes { sessions, updates, puts, floor } = &self.writes;
        let [(key, event)] = &puts[..] else { return None };
        let is_all = sessions.is_empty() && updates.is_empty() && floor.is_none();
        let is_new = self.sessions.is_empty() && self.events.values().all(Option::is_none);
        (is_all && is_new && event.names.len() == 1).then_some((key, event))
    }

    /// Asks for the records that it writes.
    pub fn wants(&self, wanted: &mut Wanted) {
        for write in &self.writes.sessions {
            wanted.queue(&write.key);
        }
        for (EventKey { team, event }, _) in &self.writes.puts {
            wanted.event(team, [event.as_str()], true);
        }
    }

    /// If the records that were found are as it writes them: the tickets of the places that it
    /// adds. Then it does not matter which run of its statement wrote it.
    #[must_use]
    pub fn tickets_if_written_in(&self, found: &Snapshot) -> Option<Vec<(LeaseId, i64)>> {
        let is_event = |(key, own): &(EventKey, Event)| {
            let row = found.events.get(key).cloned();
            row.is_some_and(|row| *own == Event { version: own.version, ..row })
        };
        if !self.writes.puts.iter().all(is_event) {
            return None;
        }
        let none = Session::default();
        let mut tickets = Vec::new();
        for write in &self.writes.sessions {
            let session = found.sessions.get(&write.key).unwrap_or(&none);
            tickets.extend(write.tickets_in(session)?);
        }
        Some(tickets)
    }

    /// Whether it writes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Writes { sessions, updates, puts, floor } = &self.writes;
        sessions.is_empty() && updates.is_empty() && puts.is_empty() && floor.is_none()
    }
}
