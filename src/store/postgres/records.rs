//! Records in PostgreSQL: read by one statement, and compared and written by one.
//!
//! The version of a record is the transaction that wrote its row last (`xmin`): every
//! change of a row changes it, also by another version of this binary.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Handle,
    line::{Fetched, Repeat},
};
use crate::{
    domain::{SessionKey, Timestamp},
    rules::{Ids, Plan, Session, Snapshot, Wanted},
    store::{
        StoreError,
        records::{Applied, Records},
    },
};

mod apply;
mod json;
mod read;

pub(super) use apply::{APPLY, APPLY_SESSIONS};
pub(super) use read::{
    LIST_EVENTS, LIST_SESSIONS, READ, READ_EVENTS, READ_SESSIONS, event, session,
};

/// The most sessions that are remembered to be waited for.
const MAX_AWAITED: usize = 1_024;

/// Sessions that somebody waits for, as this connection read them last. The short statements
/// leave those undecided.
#[derive(Default)]
pub(super) struct Awaited(BTreeSet<SessionKey>);

impl Awaited {
    pub(super) fn contains(&self, key: &SessionKey) -> bool {
        self.0.contains(key)
    }

    fn note(&mut self, sessions: &BTreeMap<SessionKey, Session>) {
        for (key, Session { latest, .. }) in sessions {
            if !latest.as_ref().is_some_and(|latest| latest.waiting) {
                self.0.remove(key);
                continue;
            }
            if self.0.len() >= MAX_AWAITED {
                // Those that nobody asks for any more would stay.
                self.0.clear();
            }
            self.0.insert(key.clone());
        }
    }
}

/// A plan, and its place among those that are applied together.
type Numbered<'a> = (usize, &'a Plan);

impl Records for Handle {
    async fn read(&mut self, wanted: &Wanted) -> Result<Snapshot, StoreError> {
        let asked = read::Asked::of(wanted);
        let (now, replica) = (self.now(), self.replica);
        let rows = self.fetch(|| asked.statement(now, replica)).await;
        let rows = rows.map_err(StoreError::of_read)?;
        let read::Found { snapshot, leases, claims } = read::found(wanted, &rows)?;
        self.awaited.note(&snapshot.sessions);
        self.shorten(&leases).await;
        self.shorten_claims(&claims).await;
        Ok(snapshot)
    }

    async fn apply(&mut self, plans: Vec<Plan>) -> Result<Vec<Applied>, StoreError> {
        let mut applied = vec![None; plans.len()];
        let mut open: Vec<Numbered<'_>> = plans.iter().enumerate().collect();
        let mut failure = None;
        while !open.is_empty() && failure.is_none() {
            let (now, later) = apart(open);
            failure = self.apply_some(&now, &mut applied).await.err();
            open = later;
        }
        match failure {
            Some(error) if !applied.iter().flatten().any(may_be_written) => Err(error),
            // What is written has been committed.
            failure => {
                let failed = || failure.clone().map_or(Applied::Conflict, Applied::Failed);
                Ok(applied.into_iter().map(|one| one.unwrap_or_else(failed)).collect())
            }
        }
    }

    /// The database's clock is known by asking it.
    fn known_time(&self) -> Option<Timestamp> {
        None
    }

    fn ids(&mut self) -> &mut Ids {
        &mut self.ids
    }
}

impl Handle {
    /// Applies plans that write different rows; by halves, where a row of one was taken
    /// meanwhile.
    async fn apply_some(
        &mut self,
        plans: &[Numbered<'_>],
        applied: &mut [Option<Applied>],
    ) -> Result<(), StoreError> {
        let (now, replica) = (self.now(), self.replica);
        let texts = apply::Texts::of(self.locks, replica, plans)?;
        let repeat = if texts.is_once() { Repeat::Never } else { Repeat::Safe };
        let fetched = self.run(repeat, || texts.statement(now, replica)).await;
        if texts.forgets() {
            // Even if it failed: it may have been committed.
            self.invalidate();
        }
        match fetched {
            Ok(Fetched { rows, is_after_loss, .. }) => {
                apply::note(plans, &rows, applied)?;
                if is_after_loss {
                    self.find_written(plans, applied).await;
                }
                Ok(())
            }
            Err(StoreError::Conflict) => {
                let [_, _, ..] = plans else {
                    for (place, _) in plans {
                        applied[*place] = Some(Applied::Conflict);
                    }
                    return Ok(());
                };
                let (one, other) = plans.split_at(plans.len() / 2);
                Box::pin(self.apply_some(one, applied)).await?;
                Box::pin(self.apply_some(other, applied)).await
            }
            Err(error) => Err(error),
        }
    }

    /// Finds those plans written by the first run of a statement that conflict in the second.
    async fn find_written(&mut self, plans: &[Numbered<'_>], applied: &mut [Option<Applied>]) {
        let conflicts = |place: usize| matches!(applied[place], Some(Applied::Conflict));
        let in_doubt: Vec<_> = plans.iter().filter(|(place, _)| conflicts(*place)).collect();
        let mut wanted = Wanted::default();
        for (_, plan) in &in_doubt {
            plan.wants(&mut wanted);
        }
        let found = self.read(&wanted).await.map_err(StoreError::after_change);
        for (place, plan) in in_doubt {
            match &found {
                Ok(found) => {
                    let tickets = plan.tickets_if_written_in(found);
                    let is_written = tickets.map(Applied::Written);
                    applied[*place] = Some(is_written.unwrap_or(Applied::ConflictAfterLoss));
                }
                Err(error) => applied[*place] = Some(Applied::Failed(error.clone())),
            }
        }
    }
}

const fn may_be_written(applied: &Applied) -> bool {
    // What has failed by itself, beside others, has an unknown outcome.
    matches!(applied, Applied::Written(_) | Applied::ConflictAfterLoss | Applied::Failed(_))
}

/// Parts plans that write the same rows, as two do that are about names of one event: a statement
/// can write a row only once. Answers those that are apart, and the rest.
fn apart(open: Vec<Numbered<'_>>) -> (Vec<Numbered<'_>>, Vec<Numbered<'_>>) {
    let mut taken: BTreeSet<(&str, &str)> = BTreeSet::new();
    open.into_iter().partition(|(_, plan)| {
        let read = plan.events.keys().map(|key| (key.team.as_str(), key.event.as_str()));
        let updated = plan.writes.updates.iter().flat_map(|update| {
            update.names.iter().map(|name| (update.team.as_str(), name.as_str()))
        });
        let names: BTreeSet<_> = read.chain(updated).collect();
        let is_apart = taken.is_disjoint(&names);
        taken.extend(names);
        is_apart
    })
}
