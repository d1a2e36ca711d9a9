//! Turns as arrays of a statement.

use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

use super::small;
use crate::{
    domain::{Begin, LeaseId, SessionKey, TurnId, limits::CLAIM_MEMORY},
    store::postgres::{Locks, events::interval, handle::Statement},
};

/// Requests for turns as a statement's arrays, $2 to $14 and $16, and how long attempts
/// are counted.
pub(super) struct Wishes<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    claims: Vec<PgInterval>,
    holders: Vec<&'a str>,
    most: Vec<i32>,
    sessions: Vec<Option<&'a str>>,
    locks: Vec<Option<i64>>,
    leases: Vec<Option<Uuid>>,
    attempts: Vec<Option<Uuid>>,
    epics: Vec<Option<&'a str>>,
    ttls: Vec<Option<i64>>,
    labels: Vec<Option<String>>,
    digests: Vec<Option<Uuid>>,
}

/// A request for a turn, with the id that its lease has if one is granted.
pub(super) type Wish<'a> = (&'a Begin, Uuid);

impl<'a> Wishes<'a> {
    pub(super) fn of(locks: Locks, asked: &[Wish<'a>]) -> Self {
        let in_session = |&(begin, lease): &Wish<'a>| begin.session.as_ref().map(|_| lease);
        let leases = asked.iter().map(in_session).collect();
        let asked = asked.iter().map(|(begin, _)| *begin);
        let sessions = || asked.clone().map(|begin| begin.session.as_ref());
        Self {
            teams: asked.clone().map(|begin| begin.event.key.team.as_str()).collect(),
            events: asked.clone().map(|begin| begin.event.key.event.as_str()).collect(),
            requests: asked.clone().map(|begin| begin.request.as_uuid()).collect(),
            claims: asked.clone().map(|begin| interval(begin.claim_ttl.span())).collect(),
            holders: asked.clone().map(|begin| begin.holder.as_str()).collect(),
            most: asked.clone().map(|begin| small(begin.max_attempts)).collect(),
            sessions: sessions().map(|asked| Some(asked?.key.session.as_str())).collect(),
            locks: sessions().map(|asked| Some(locks.session(&asked?.key))).collect(),
            leases,
            attempts: sessions().map(|asked| Some(asked?.request.as_uuid())).collect(),
            epics: sessions().map(|asked| asked?.epic.as_deref()).collect(),
            ttls: sessions().map(|asked| Some(asked?.ttl.as_micros())).collect(),
            labels: sessions().map(|asked| Some(asked?.labels.to_json())).collect(),
            digests: asked.map(|begin| Some(begin.event.digest?.as_uuid())).collect(),
        }
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement
            .bind(&self.teams)
            .bind(&self.events)
            .bind(&self.requests)
            .bind(&self.claims)
            .bind(&self.holders)
            .bind(&self.most)
            .bind(&self.sessions)
            .bind(&self.locks)
            .bind(&self.leases)
            .bind(&self.attempts)
            .bind(&self.epics)
            .bind(&self.ttls)
            .bind(&self.labels)
            .bind(interval(CLAIM_MEMORY))
            .bind(&self.digests)
    }
}

/// Turns as a statement's arrays.
pub(super) struct Turns<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    attempts: Vec<i32>,
    sessions: Vec<Option<&'a str>>,
    locks: Vec<Option<i64>>,
    leases: Vec<Option<Uuid>>,
}

impl<'a> Turns<'a> {
    pub(super) fn of(locks: Locks, turns: impl Iterator<Item = &'a TurnId> + Clone) -> Self {
        let sessions = turns.clone().map(|turn| turn.lease.as_ref());
        let key = |lease: Option<&'a (SessionKey, LeaseId)>| lease.map(|(key, _)| key);
        Self {
            teams: turns.clone().map(|turn| turn.event.team.as_str()).collect(),
            events: turns.clone().map(|turn| turn.event.event.as_str()).collect(),
            requests: turns.clone().map(|turn| turn.request.as_uuid()).collect(),
            attempts: turns.map(|turn| small(turn.attempt)).collect(),
            sessions: sessions.clone().map(|lease| Some(key(lease)?.session.as_str())).collect(),
            locks: sessions.clone().map(|lease| Some(locks.session(key(lease)?))).collect(),
            leases: sessions.map(|lease| Some(lease?.1.as_uuid())).collect(),
        }
    }

    /// Binds all, and what is `seventh`.
    pub(super) fn bind<'q>(
        &'q self,
        statement: Statement<'q>,
        seventh: impl FnOnce(Statement<'q>) -> Statement<'q>,
    ) -> Statement<'q> {
        let first = statement
            .bind(&self.teams)
            .bind(&self.sessions)
            .bind(&self.locks)
            .bind(&self.leases)
            .bind(&self.events);
        seventh(first).bind(&self.requests).bind(&self.attempts)
    }
}
