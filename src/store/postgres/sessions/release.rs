//! Giving leases back.

use uuid::Uuid;

use super::{Keys, Locks, Statement};
use crate::domain::{Release, StreamId};

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
