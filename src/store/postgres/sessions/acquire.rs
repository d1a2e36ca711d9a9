//! Taking leases.

use std::collections::HashMap;

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Keys, Locks, Statement};
use crate::{
    domain::{Acquire, Acquired, FencingToken, Lease, LeaseId, Obtained, SessionRow},
    store::{StoreError, postgres::timestamp::PgTimestamp},
};

/// Requests for leases as a statement's arrays, from $2 to $10.
pub(super) struct Arrays<'a> {
    keys: Keys<'a>,
    leases: Vec<Uuid>,
    requests: Vec<Uuid>,
    holders: Vec<&'a str>,
    labels: Vec<String>,
    epics: Vec<Option<&'a str>>,
    ttls: Vec<i64>,
}

impl<'a> Arrays<'a> {
    pub(super) fn of(locks: Locks, asked: &[&'a Acquire]) -> Self {
        let acquires = asked.iter().copied();
        Self {
            keys: Keys::of(locks, acquires.clone().map(|acquire| &acquire.key)),
            leases: acquires.clone().map(|acquire| acquire.lease.id().as_uuid()).collect(),
            requests: acquires.clone().map(|acquire| acquire.request.as_uuid()).collect(),
            holders: acquires.clone().map(|acquire| acquire.holder.as_str()).collect(),
            labels: acquires.clone().map(|acquire| acquire.labels.to_json()).collect(),
            epics: acquires.clone().map(|acquire| acquire.epic.as_deref()).collect(),
            ttls: acquires.map(|acquire| acquire.ttl.as_micros()).collect(),
        }
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        self.keys
            .bind(statement)
            .bind(&self.leases)
            .bind(&self.requests)
            .bind(&self.holders)
            .bind(&self.labels)
            .bind(&self.epics)
            .bind(&self.ttls)
    }
}

/// Finds the request for a row that `take` returns. The row has only what the caller does not know.
pub(super) struct Places<'a> {
    asked: &'a [&'a Acquire],
    by_lease: HashMap<LeaseId, usize>,
}

impl<'a> Places<'a> {
    pub(super) fn of(asked: &'a [&'a Acquire]) -> Self {
        Self { asked, by_lease: asked.iter().map(|acquire| acquire.lease.id()).zip(0..).collect() }
    }

    pub(super) fn taken(&self, row: &PgRow) -> Result<(usize, Acquired), StoreError> {
        let read = || {
            let id = LeaseId::from_uuid(row.try_get("lease_id")?);
            let Some(&place) = self.by_lease.get(&id) else { return Ok(None) };
            let acquire = self.asked[place];
            let expire_time = row.try_get::<PgTimestamp, _>("expires_at")?.0;
            let lease = Lease {
                id,
                token: FencingToken(row.try_get("fencing_token")?),
                holder: acquire.holder.clone(),
                acquire_time: row.try_get::<PgTimestamp, _>("acquired_at")?.0,
                expire_time,
                remaining: expire_time.since(row.try_get::<PgTimestamp, _>("at")?.0),
                epic: row.try_get("epic_id")?,
                labels: acquire.labels.clone(),
            };
            let (request, queue) = (acquire.request, Vec::new());
            let row = SessionRow { lease, request, live: true, waiting: false, queue };
            Ok(Some((place, Acquired { row, obtained: Some(Obtained::Granted) })))
        };
        let taken = read().map_err(|error: sqlx::Error| StoreError::internal(error))?;
        taken.ok_or_else(|| StoreError::internal("unexpected row in the answer"))
    }
}
