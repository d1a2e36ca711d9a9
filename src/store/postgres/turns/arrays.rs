//! Turns as arrays of a statement.

use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

use crate::{
    domain::{Acquire, Begin, LeaseId, SessionKey, TurnId, limits::CLAIM_MEMORY},
    store::postgres::{Locks, events::interval, handle::Statement},
};

/// A turn that is to begin, and the request for its session.
#[derive(Clone, Copy)]
pub(super) struct BeginRow<'a> {
    pub(super) begin: &'a Begin,
    pub(super) acquire: &'a Acquire,
}

/// Turns that are to begin as a statement's arrays, $2 to $13 and $15, and how long attempts are
/// counted.
pub(super) struct Begins<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    claims: Vec<PgInterval>,
    holders: Vec<&'a str>,
    sessions: Vec<&'a str>,
    locks: Vec<i64>,
    leases: Vec<Uuid>,
    attempts: Vec<Uuid>,
    epics: Vec<Option<&'a str>>,
    ttls: Vec<i64>,
    labels: Vec<String>,
    digests: Vec<Option<Uuid>>,
}

impl<'a> Begins<'a> {
    pub(super) fn of(locks: Locks, rows: &[BeginRow<'a>]) -> Self {
        let begins = || rows.iter().map(|row| row.begin);
        let acquires = || rows.iter().map(|row| row.acquire);
        Self {
            teams: begins().map(|begin| begin.event.key.team.as_str()).collect(),
            events: begins().map(|begin| begin.event.key.event.as_str()).collect(),
            requests: begins().map(|begin| begin.request.as_uuid()).collect(),
            claims: begins().map(|begin| interval(begin.claim_ttl.span())).collect(),
            holders: begins().map(|begin| begin.holder.as_str()).collect(),
            sessions: acquires().map(|acquire| acquire.key.session.as_str()).collect(),
            locks: acquires().map(|acquire| locks.session(&acquire.key)).collect(),
            leases: acquires().map(|acquire| acquire.lease.id().as_uuid()).collect(),
            attempts: acquires().map(|acquire| acquire.request.as_uuid()).collect(),
            epics: acquires().map(|acquire| acquire.epic.as_deref()).collect(),
            ttls: acquires().map(|acquire| acquire.ttl.as_micros()).collect(),
            labels: acquires().map(|acquire| acquire.labels.to_json()).collect(),
            digests: begins().map(|begin| Some(begin.event.digest?.as_uuid())).collect(),
        }
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement
            .bind(&self.teams)
            .bind(&self.events)
            .bind(&self.requests)
            .bind(&self.claims)
            .bind(&self.holders)
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

/// A turn in a session, and that session's lease.
#[derive(Clone, Copy)]
pub(super) struct TurnRow<'a> {
    pub(super) turn: &'a TurnId,
    pub(super) key: &'a SessionKey,
    pub(super) lease: LeaseId,
}

/// Turns as a statement's arrays.
pub(super) struct Turns<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    attempts: Vec<i32>,
    sessions: Vec<&'a str>,
    locks: Vec<i64>,
    leases: Vec<Uuid>,
}

impl<'a> Turns<'a> {
    pub(super) fn of(locks: Locks, rows: &[TurnRow<'a>]) -> Self {
        let turns = || rows.iter().map(|row| row.turn);
        Self {
            teams: turns().map(|turn| turn.event.team.as_str()).collect(),
            events: turns().map(|turn| turn.event.event.as_str()).collect(),
            requests: turns().map(|turn| turn.request.as_uuid()).collect(),
            attempts: turns().map(|turn| i32::try_from(turn.attempt).unwrap_or(i32::MAX)).collect(),
            sessions: rows.iter().map(|row| row.key.session.as_str()).collect(),
            locks: rows.iter().map(|row| locks.session(row.key)).collect(),
            leases: rows.iter().map(|row| row.lease.as_uuid()).collect(),
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
