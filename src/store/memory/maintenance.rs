//! What the service does for records in memory.

use std::{
    collections::BTreeSet,
    future::{Future, ready},
    sync::atomic::Ordering,
};

use super::{Handle, RecordSet};
use crate::{
    domain::{EventKey, FencingToken, LeaseId, SessionKey, Timestamp},
    rules::{
        Event, Ids, Session, State,
        queue::{PLACE_KEPT, is_forgotten},
    },
    store::{Age, Kind, PRESENCE, StoreError, Sweep, Swept, Upkeep},
};

impl Upkeep for Handle {
    fn sweep(&mut self, sweep: &Sweep) -> impl Future<Output = Result<Swept, StoreError>> + Send {
        let (now, mut records) = (self.shared.now(), self.shared.records());
        let rows = records.sweep(sweep, now);
        if sweep.takes_live_marks() {
            self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        }
        ready(Ok(sweep.done(rows, false)))
    }

    fn heartbeat(
        &mut self,
    ) -> impl Future<Output = Result<Vec<(SessionKey, LeaseId)>, StoreError>> + Send {
        let (now, mut records) = (self.shared.now(), self.shared.records());
        records.present.insert(self.replica, now.plus(PRESENCE));
        records.tidy(&mut self.ids, now);
        let mut places = Vec::new();
        for (key, session) in &records.sessions {
            for waiter in session.queue.iter().filter(|waiter| waiter.left_at.is_none()) {
                if records.replicas.get(&waiter.lease) == Some(&self.replica) {
                    places.push((key.clone(), waiter.lease));
                }
            }
        }
        ready(Ok(places))
    }

    fn count_leases(&mut self) -> impl Future<Output = Result<u64, StoreError>> + Send {
        let (now, records) = (self.shared.now(), self.shared.records());
        let latest = records.sessions.values().filter_map(|session| session.latest.as_ref());
        ready(Ok(latest.filter(|latest| latest.is_live(now)).count() as u64))
    }

    fn ping(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send {
        ready(Ok(()))
    }
}

impl RecordSet {
    /// Leaves the places of replicas behind that are gone, and forgets those that were left for
    /// too long.
    fn tidy(&mut self, ids: &mut Ids, now: Timestamp) {
        let Self { sessions, replicas, present, .. } = self;
        for session in sessions.values_mut() {
            let before = session.queue.len();
            let mut is_changed = false;
            for waiter in &mut session.queue {
                let until = replicas.get(&waiter.lease).and_then(|replica| present.get(replica));
                let gone_since = until.filter(|until| **until <= now);
                if let Some(since) = gone_since.filter(|_| waiter.left_at.is_none()) {
                    (waiter.left_at, is_changed) = (Some(*since), true);
                }
            }
            session.queue.retain(|waiter| !is_forgotten(waiter, now));
            if (is_changed || session.queue.len() < before)
                && let Some(latest) = &mut session.latest
            {
                latest.version = ids.version();
            }
        }
        let queues = sessions.values().flat_map(|session| &session.queue);
        let places: BTreeSet<LeaseId> = queues.map(|waiter| waiter.lease).collect();
        replicas.retain(|lease, _| places.contains(lease));
        present.retain(|_, until| until.plus(PLACE_KEPT) > now);
        sessions.retain(|_, session| session.latest.is_some() || !session.queue.is_empty());
    }

    /// Deletes what a sweep takes, or counts it.
    fn sweep(&mut self, sweep: &Sweep, now: Timestamp) -> u64 {
        let limit = usize::try_from(sweep.limit).unwrap_or(usize::MAX);
        let before = match sweep.scope.age {
            Age::Expired => now,
            Age::AtLeast(age) => now.minus(age),
        };
        match sweep.kind {
            Kind::Events => {
                let is_due = |event: &Event| match (sweep.scope.age, &event.state) {
                    (Age::Expired, _) => event.expire_time <= now,
                    (Age::AtLeast(_), State::Claimed(until)) if *until > now => false,
                    (Age::AtLeast(_), _) => event.time <= before,
                };
                let due = self
                    .events
                    .iter()
                    .filter(|(key, event)| sweep.scope.team.covers(&key.team) && is_due(event));
                let due: Vec<EventKey> = due.take(limit).map(|(key, _)| key.clone()).collect();
                if !sweep.scope.dry_run {
                    for key in &due {
                        self.events.remove(key);
                    }
                }
                due.len() as u64
            }
            Kind::Sessions => {
                let is_due = |session: &Session| {
                    let waits = session.queue.iter().any(|waiter| waiter.left_at.is_none());
                    session.latest.as_ref().is_some_and(|latest| {
                        latest.epic.is_none()
                            && latest.expire_time <= before
                            && latest.token.0 <= now.as_micros() - FencingToken::UNSWEPT_MICROS
                    }) && !waits
                };
                let due = self
                    .sessions
                    .iter()
                    .filter(|(key, session)| sweep.scope.team.covers(&key.team) && is_due(session));
                let due: Vec<(SessionKey, FencingToken)> = due
                    .take(limit)
                    .filter_map(|(key, session)| {
                        Some((key.clone(), session.latest.as_ref()?.token))
                    })
                    .collect();
                if !sweep.scope.dry_run {
                    for (key, token) in &due {
                        self.floor = self.floor.max(*token);
                        // Places that were left behind are kept without it.
                        if let Some(session) = self.sessions.get_mut(key) {
                            session.latest = None;
                        }
                    }
                    self.sessions
                        .retain(|_, session| session.latest.is_some() || !session.queue.is_empty());
                }
                due.len() as u64
            }
        }
    }
}
