//! The operator API on records in memory.

use std::future::{Future, ready};

use super::{Handle, RecordSet};
use crate::{
    domain::{ProcessedBy, SessionKey, SessionRow, Timestamp},
    rules::{Event, State},
    store::{AdminStore, Counts, EventFilter, EventStatus, Events, Page, StoreError},
};

impl AdminStore for Handle {
    fn list_sessions(
        &mut self,
        page: &Page,
        held: Option<bool>,
    ) -> impl Future<Output = Result<Vec<(SessionKey, SessionRow)>, StoreError>> + Send {
        let (now, records) = (self.shared.now(), self.shared.records());
        let listed = records.sessions.iter().filter_map(|(key, session)| {
            Some((key.clone(), records.seen(session, false, self.replica, now).row(now)?))
        });
        let listed = listed.filter(|(key, row)| {
            page.has(&key.team, &key.session) && held.is_none_or(|held| row.live == held)
        });
        ready(Ok(listed.take(page.most()).collect()))
    }

    fn list_events(
        &mut self,
        page: &Page,
        filter: &EventFilter,
    ) -> impl Future<Output = Result<Events, StoreError>> + Send {
        let (at, records) = (self.shared.now(), self.shared.records());
        let listed = records.events.iter().filter(|(key, event)| {
            page.has(&key.team, &key.event)
                && event.names.first() == Some(&key.event)
                && filter.takes(event, at)
        });
        let rows = listed.take(page.most()).map(|(key, event)| (key.clone(), event.row(at)));
        ready(Ok(Events { at, rows: rows.collect() }))
    }

    fn count(
        &mut self,
        team: Option<&str>,
    ) -> impl Future<Output = Result<Counts, StoreError>> + Send {
        let (now, records) = (self.shared.now(), self.shared.records());
        ready(Ok(records.count(team, now)))
    }
}

impl RecordSet {
    fn count(&self, team: Option<&str>, now: Timestamp) -> Counts {
        let mut counts = Counts::default();
        let is_counted = |of: &str| team.is_none_or(|team| team == of);
        for (key, event) in &self.events {
            if is_counted(&key.team) && event.names.first() == Some(&key.event) {
                let count = if event.expire_time > now {
                    &mut counts.events
                } else {
                    &mut counts.expired_events
                };
                *count += 1;
            }
        }
        for (key, session) in &self.sessions {
            if is_counted(&key.team) {
                let latest = session.latest.as_ref();
                counts.sessions += u64::from(latest.is_some());
                counts.held_sessions += u64::from(latest.is_some_and(|latest| latest.is_live(now)));
                let waits = session.queue.iter().filter(|waiter| waiter.left_at.is_none());
                counts.waiters += waits.count() as u64;
            }
        }
        counts
    }
}

impl Page {
    /// Whether something is on the page, its length apart.
    fn has(&self, team: &str, id: &str) -> bool {
        let (after_team, after_id) = &self.after;
        self.team.covers(team) && (team, id) > (after_team.as_str(), after_id.as_str())
    }

    fn most(&self) -> usize {
        usize::try_from(self.limit).unwrap_or(usize::MAX)
    }
}

impl EventFilter {
    fn takes(&self, event: &Event, now: Timestamp) -> bool {
        let is_known = event.attempts.is_none_or(|attempts| attempts.claimed > 0);
        let stands = match (self.standing, &event.state) {
            (None, _) | (Some(EventStatus::Processed), State::Handled(..)) => true,
            (Some(EventStatus::Claimed), State::Claimed(_)) => event.is_live(now),
            (Some(EventStatus::Free), State::Claimed(_)) => !event.is_live(now),
            (Some(EventStatus::Succeeded), State::Handled(by, _)) => {
                matches!(by, ProcessedBy::Turn(_))
            }
            (Some(EventStatus::Rejected), State::Handled(by, _)) => {
                matches!(by, ProcessedBy::Rejected(_))
            }
            (Some(EventStatus::GaveUp), State::Handled(by, _)) => {
                matches!(by, ProcessedBy::GaveUp(_))
            }
            _ => false,
        };
        event.expire_time > now
            && is_known
            && stands
            && self.newer_than.is_none_or(|span| event.time > now.minus(span))
            && self.older_than.is_none_or(|span| event.time <= now.minus(span))
    }
}
