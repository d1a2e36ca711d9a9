//! Giving leases back.

use sqlx::Row as _;
use uuid::Uuid;

use super::{Keys, Link, Locks, Statement, slot, sql::RELEASE};
use crate::{
    domain::{Release, StreamId},
    store::{StoreError, Verdict},
};

impl Link {
    /// Reads what became of leases that are not there to be ended.
    pub(super) async fn release(
        &mut self,
        asked: &[&Release],
    ) -> Result<Vec<Verdict<bool>>, StoreError> {
        let (now, arrays) = (self.now(), Arrays::of(self.locks, asked));
        let rows = self.fetch(|| arrays.bind(sqlx::query(RELEASE).bind(now))).await?;
        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let released = row.try_get("released").map_err(StoreError::fault)?;
            *slot(&mut verdicts, row.try_get("ord"))? = Verdict::Decided(released);
        }
        Ok(verdicts)
    }
}

/// Leases to be given back as five of a statement's arrays.
pub(super) struct Arrays<'a> {
    keys: Keys<'a>,
    leases: Vec<Uuid>,
    unless_resumed: Vec<Option<Uuid>>,
}

impl<'a> Arrays<'a> {
    pub(super) fn of(locks: Locks, asked: &[&'a Release]) -> Self {
        Self {
            keys: Keys::of(locks, asked.iter().map(|release| &release.key)),
            leases: asked.iter().map(|release| release.lease.as_uuid()).collect(),
            unless_resumed: asked.iter().map(|release| unless_resumed(release)).collect(),
        }
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        self.keys.bind(statement).bind(&self.leases).bind(&self.unless_resumed)
    }
}

/// The stream that a release is for, if it is to spare a lease that was carried on since.
pub(super) fn unless_resumed(release: &Release) -> Option<Uuid> {
    release.unless_resumed.map(StreamId::as_uuid)
}
