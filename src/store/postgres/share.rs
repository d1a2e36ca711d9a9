//! How many connections a replica opens, and which kinds of work share one.

use std::sync::Arc;

use sqlx::{PgConnection, Row as _, postgres::PgRow};
use tokio::sync::Mutex;

use super::{classify, line::Line, privileges};
use crate::store::{StoreError, Work};

/// What may be connected at once: by the role, to the database, to the server; and how many
/// are, but for this one, and how many of those are replicas'.
pub(super) const LIMITS: &str = "
WITH own AS MATERIALIZED (
    SELECT oid, rolsuper, rolconnlimit FROM pg_roles WHERE rolname = session_user
), used AS MATERIALIZED (
    SELECT count(*) FILTER (WHERE usesysid = (SELECT oid FROM own)) AS by_role,
        count(*) FILTER (WHERE datname = current_database()) AS to_database,
        count(*) AS to_server,
        count(*) FILTER (WHERE usesysid = (SELECT oid FROM own) AND datname = current_database()
            AND starts_with(application_name, current_setting('application_name'))) AS replicas
    FROM pg_stat_activity WHERE usesysid IS NOT NULL AND pid <> pg_backend_pid()
)
SELECT 'the role''s CONNECTION LIMIT' AS what, rolconnlimit::bigint AS most, by_role AS used,
    replicas
FROM own, used WHERE rolconnlimit >= 0 AND NOT rolsuper
UNION ALL
SELECT 'the database''s CONNECTION LIMIT', datconnlimit, to_database, replicas
FROM pg_database, own, used
WHERE datname = current_database() AND datconnlimit >= 0 AND NOT rolsuper
UNION ALL
SELECT 'the server''s max_connections', current_setting('max_connections')::bigint
    - CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::bigint
        + COALESCE(current_setting('reserved_connections', true)::bigint, 0) END,
    to_server, replicas
FROM own, used
";

/// One more for a moment, when one begins to listen.
const SPARE: usize = 1;
/// The least that all of the service works with.
pub(super) const LEAST: usize = ConnectionPlan { writers: 1, sharing: Sharing::Least }.needed();

/// How connections are shared. Each form needs fewer than the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Each writer of marks has its own, and one of leases shares with one of turns; all other
    /// short statements share one.
    Kinds,
    /// All but marks share one.
    Writes,
    /// All share one.
    All,
    /// And none listens for leases that other replicas hand over: waiters poll.
    Least,
}

/// Which connections a replica opens. One that scans is never shared with other work.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionPlan {
    writers: usize,
    sharing: Sharing,
}

impl ConnectionPlan {
    /// With `writers` for each kind of writing, if as many connections may be opened as
    /// needed.
    pub(super) const fn of(writers: usize) -> Self {
        Self { writers, sharing: Sharing::Kinds }
    }

    /// The same, within `allowed` connections, as far as that goes.
    fn within(self, allowed: usize) -> Self {
        let fewer = (1..=self.writers).rev().map(Self::of);
        let shared = [Sharing::Writes, Sharing::All, Sharing::Least];
        let shared = shared.map(|sharing| Self { writers: 1, sharing });
        let mut plans = fewer.chain(shared);
        plans.find(|plan| plan.needed() <= allowed).unwrap_or(shared[2])
    }

    /// How many connections it takes at most.
    pub(super) const fn needed(self) -> usize {
        let lines = match self.sharing {
            Sharing::Kinds => 2 * self.writers + 2,
            Sharing::Writes => 3,
            Sharing::All | Sharing::Least => 2,
        };
        // For marks that were taken away.
        lines + 1 + self.hears_of_leases() as usize + SPARE
    }

    /// Whether one listens for leases that other replicas hand over.
    pub(super) const fn hears_of_leases(self) -> bool {
        !matches!(self.sharing, Sharing::Least)
    }

    pub(super) fn writers(self, wanted: usize) -> usize {
        wanted.min(self.writers)
    }

    /// Which connection has this work.
    pub(super) const fn line(self, work: Work) -> Which {
        match (work, self.sharing) {
            (Work::Scans, _) => Which::Scans,
            (Work::Marks, Sharing::Kinds | Sharing::Writes) => Which::Own,
            (Work::Leases, Sharing::Kinds) => Which::Sessions(0),
            (Work::Turns, Sharing::Kinds) => Which::Sessions(1),
            (Work::Short, _)
            | (Work::Leases | Work::Turns, Sharing::Writes)
            | (Work::Marks | Work::Leases | Work::Turns, Sharing::All | Sharing::Least) => {
                Which::Short
            }
        }
    }
}

/// A connection of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// One that nobody else uses.
    Own,
    /// The next that has no user of this kind yet: leases are 0, turns are 1.
    Sessions(usize),
    /// The one for all other statements that find their rows by the key.
    Short,
    /// The one for what scans.
    Scans,
}

/// Connections that leases and turns share, each by at most one user of either kind.
#[derive(Default)]
pub(super) struct SessionLines {
    lines: Vec<Arc<Mutex<Line>>>,
    users: [usize; 2],
}

impl SessionLines {
    /// The first that has no user of that kind.
    pub(super) fn next(
        &mut self,
        kind: usize,
        new: impl FnOnce() -> Arc<Mutex<Line>>,
    ) -> Arc<Mutex<Line>> {
        let place = self.users[kind];
        self.users[kind] += 1;
        if self.lines.len() == place {
            self.lines.push(new());
        }
        Arc::clone(&self.lines[place])
    }
}

/// A limit on connections.
pub(super) struct ConnectionLimit {
    pub(super) what: String,
    pub(super) most: usize,
    /// How many are open, but for the one that asks.
    pub(super) used: usize,
    /// How many of these are replicas', and not others'.
    pub(super) replicas: usize,
}

/// What limits the connections of this role.
pub(super) async fn limits(
    connection: &mut PgConnection,
) -> Result<Vec<ConnectionLimit>, StoreError> {
    let rows = sqlx::query(LIMITS).persistent(false).fetch_all(connection).await;
    let read = |row: &PgRow| {
        let count =
            |column| row.try_get::<i64, _>(column).map(|count| usize::try_from(count).unwrap_or(0));
        Ok(ConnectionLimit {
            what: row.try_get("what")?,
            most: count("most")?,
            used: count("used")?,
            replicas: count("replicas")?,
        })
    };
    let limits = rows.map_err(classify)?.iter().map(read).collect::<Result<_, sqlx::Error>>();
    limits.map_err(classify)
}

/// Plans for `writers` within what the database allows over `connection`.
///
/// # Errors
/// [`StoreError::Misconfigured`] when it never allows for enough, or the role lacks a privilege.
pub(super) async fn plan(
    connection: &mut PgConnection,
    writers: usize,
) -> Result<ConnectionPlan, StoreError> {
    privileges::check(connection).await?;
    let wanted = ConnectionPlan::of(writers);
    let limits = match limits(connection).await {
        Ok(limits) => limits,
        Err(error) => {
            tracing::debug!(%error, "cannot read the database's connection limits");
            return Ok(wanted);
        }
    };
    let mut tightest: Option<(usize, usize, String)> = None;
    for ConnectionLimit { what, most, used, .. } in limits {
        if most < LEAST {
            return Err(StoreError::Misconfigured(
                format!("a replica needs at least {LEAST} connections; {what} is {most}").into(),
            ));
        }
        let left = most.saturating_sub(used);
        if tightest.as_ref().is_none_or(|(least, ..)| left < *least) {
            tightest = Some((left, most, what));
        }
    }
    let Some((left, limit, limited_by)) = tightest else { return Ok(wanted) };
    let plan = wanted.within(left);
    let (needed, planned) = (wanted.needed(), plan.needed());
    if planned < needed {
        tracing::warn!(
            needed,
            left,
            limit,
            limited_by,
            planned,
            "too few database connections are left for a replica under full load; kinds of \
             work share them"
        );
    } else {
        tracing::info!(needed, left, limit, limited_by, "enough database connections are left");
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_fits_what_is_allowed() {
        assert_eq!(ConnectionPlan::of(2).needed(), 9);
        for writers in 1..6 {
            for allowed in LEAST..40 {
                let plan = ConnectionPlan::of(writers).within(allowed);
                assert!(plan.needed() <= allowed, "{plan:?} in {allowed}");
                assert!((1..=writers).contains(&plan.writers));
            }
        }
        assert_eq!(ConnectionPlan::of(2).within(9).writers, 2);
        assert_eq!(ConnectionPlan::of(2).within(8).writers, 1);
    }
}
