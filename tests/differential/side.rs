//! One of the stores, and what it has granted.

use std::{collections::BTreeMap, fmt::Debug};

use oncegate::{
    domain::{
        EventKey, LeaseId, Mark, PriorGrant, ResumedBy, SessionKey, TeamFilter, Timestamp, TurnId,
    },
    store::{Connection, EventFilter, Look, Page, StoreError, Sweep},
};

mod sessions;
mod turns;

use super::{
    names::{Names, Tickets},
    steps::{Grant, Op, Step, lease},
};

const ALL: EventFilter = EventFilter { standing: None, newer_than: None, older_than: None };

/// A store under test.
pub struct Side<C> {
    /// Two connections that take turns: what one has read, the other has not.
    connections: [C; 2],
    taken: usize,
    /// Compares rows, which neither of the two has read by that.
    observer: C,
    names: Names,
    tickets: BTreeMap<SessionKey, Tickets>,
    /// Leases that were granted, also as places in queues that are to end in one.
    pub leases: BTreeMap<Grant, (SessionKey, LeaseId)>,
    /// Turns that were granted.
    pub turns: BTreeMap<Grant, TurnId>,
    /// When they were claimed.
    pub claim_times: BTreeMap<Grant, Timestamp>,
}

impl<C: Connection> Side<C> {
    pub fn new([one, other, observer]: [C; 3]) -> Self {
        Self {
            connections: [one, other],
            taken: 0,
            observer,
            names: Names::default(),
            tickets: BTreeMap::new(),
            leases: BTreeMap::new(),
            turns: BTreeMap::new(),
            claim_times: BTreeMap::new(),
        }
    }

    fn store(&mut self) -> &mut C {
        &mut self.connections[self.taken % 2]
    }

    /// Takes a step. Returns its answer.
    pub async fn take(&mut self, step: &Step) -> String {
        self.taken += 1;
        let done = match &step.op {
            // The replica is there: its callers are not passed over.
            Op::Advance(_) => self.heartbeat().await,
            Op::Mark(marks) => self.mark(marks).await,
            Op::Change(acquires, releases) => self.change(step.number, acquires, releases).await,
            Op::Enqueue(asked) => self.enqueue(step.number, asked).await,
            Op::Crowd(first, count) => self.crowd(step.number, first, *count).await,
            Op::HandOn(keys) => self.hand_on(keys).await,
            Op::Leave(places, keep) => self.leave(places, *keep).await,
            Op::Renew(asked, max_hold) => self.renew(asked, *max_hold).await,
            Op::Turns(begins, finishes) => self.turns(step.number, begins, finishes).await,
            Op::RenewTurn(asked, max_hold) => self.prolong(asked, *max_hold).await,
            Op::Bind(key, epic) => self.store().bind_epic(key, *epic).await.map(debug),
            Op::Force(key) => self.store().force_release(key).await.map(debug),
            Op::Close(key) => self.store().close_session(key).await.map(debug),
            Op::Forget(key) => self.store().forget_event(key).await.map(debug),
            Op::Sweep(sweep) => self.sweep(sweep).await,
            Op::ListSessions(page, held) => {
                self.store().list_sessions(page, *held).await.map(debug)
            }
            Op::ListEvents(page, filter) => self.store().list_events(page, filter).await.map(debug),
            Op::Count(team) => self.store().count(team.as_deref()).await.map(debug),
        };
        let text = done.unwrap_or_else(|error| format!("error: {error}"));
        self.names.rename(&text)
    }

    /// All rows, as far as they show.
    pub async fn rows(&mut self, sessions: &[SessionKey], events: &[EventKey]) -> String {
        let text = self.try_rows(sessions, events).await;
        self.names.rename(&text.unwrap_or_else(|error| format!("error: {error}")))
    }

    async fn try_rows(
        &mut self,
        sessions: &[SessionKey],
        events: &[EventKey],
    ) -> Result<String, StoreError> {
        let page = Page { team: TeamFilter::stored(None), after: Default::default(), limit: 1_000 };
        let mut text = debug(self.observer.list_sessions(&page, None).await?);
        text += &debug(self.observer.list_events(&page, &ALL).await?);
        text += &debug(self.observer.count(None).await?);
        text += &debug(self.observer.count_leases().await?);
        let keys: Vec<&SessionKey> = sessions.iter().collect();
        text += &debug(self.observer.look_sessions(&keys).await?);
        let looks: Vec<Look> =
            events.iter().map(|key| Look { key: key.clone(), with_result: true }).collect();
        text += &debug(self.observer.look_events(&looks.iter().collect::<Vec<_>>()).await?);
        Ok(text)
    }

    async fn heartbeat(&mut self) -> Result<String, StoreError> {
        let mut places = self.store().heartbeat().await?;
        // A store returns them in any order.
        places.sort();
        Ok(debug(places))
    }

    async fn mark(&mut self, marks: &[Mark]) -> Result<String, StoreError> {
        for mark in marks {
            self.names.is_chosen(&mark.request.as_uuid());
        }
        let marks: Vec<_> = marks.iter().collect();
        Ok(debug(self.store().mark(&marks).await?))
    }

    async fn sweep(&mut self, sweep: &Sweep) -> Result<String, StoreError> {
        Ok(debug(self.store().sweep(sweep).await?.rows))
    }

    /// This store's lease of a grant; one that there never was where it granted none.
    fn lease(&self, grant: Grant) -> LeaseId {
        self.leases.get(&grant).map_or_else(|| lease(grant), |(_, lease)| *lease)
    }
}

fn debug(answer: impl Debug) -> String {
    format!("{answer:?}\n")
}

/// What a call names that has found something: as `drawn` says, who had carried it on by then.
fn prior<T>(id: T, resumed: ResumedBy, drawn: Option<PriorGrant<T>>) -> PriorGrant<T> {
    PriorGrant { id, resumed: drawn.map_or(resumed, |drawn| drawn.resumed) }
}
