//! Whether all replicas can have their connections.

use sqlx::PgConnection;

use super::super::share::{self, ConnectionLimit};
use crate::store::{
    StoreError,
    doctor::{Finding, Planned},
};

pub(super) async fn connections(
    database: &mut PgConnection,
    planned: Planned,
) -> Result<Finding, StoreError> {
    let needed = share::ConnectionPlan::of(planned.writers).needed();
    let limits = share::limits(database).await?;
    // What is left of it for replicas is least.
    let Some(limit) = limits.iter().min_by_key(|limit| limit.most.saturating_sub(others(limit)))
    else {
        return Err(StoreError::internal("the database reports no limit"));
    };
    Ok(judge(limit, needed, planned.replicas))
}

/// How many connections others have, and go on having.
const fn others(limit: &ConnectionLimit) -> usize {
    limit.used.saturating_sub(limit.replicas)
}

/// Of replicas that need so many connections each.
fn judge(limit: &ConnectionLimit, needed: usize, replicas: usize) -> Finding {
    let ConnectionLimit { what, most, used, .. } = limit;
    let (most, others, wanted) = (*most, others(limit), needed * replicas);
    let open = match replicas {
        1 => "1 replica opens".to_owned(),
        count => format!("{count} replicas open"),
    };
    let found =
        format!("{open} up to {wanted} of {most} ({what}); {used} are in use, {others} of others");
    if most < share::LEAST {
        let advice = format!("a replica needs at least {}", share::LEAST);
        return Finding::failed(found).advise(advice);
    }
    let left = most.saturating_sub(others);
    if left < wanted {
        return Finding::warning(found).advise(
            "raise the limit, lower --writers or close other connections; otherwise kinds of work \
             share connections",
        );
    }
    let during = wanted + needed;
    if left < during {
        return Finding::warning(found).advise(format!(
            "one more replica, as during a rolling update, makes that {during}: raise the limit, \
             lower --writers, or replace replicas one after another (maxSurge: 0)"
        ));
    }
    Finding::ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::doctor::Severity;

    #[test]
    fn others_and_one_more_replica_need_connections_too() {
        let limit = |used, replicas| ConnectionLimit {
            what: "a limit".to_owned(),
            most: 40,
            used,
            replicas,
        };
        for (used, replicas, count, severity) in [
            (0, 0, 3, Severity::Ok),
            // Those that run are among the planned ones.
            (30, 30, 3, Severity::Ok),
            (4, 0, 3, Severity::Ok),
            (5, 0, 3, Severity::Warning),
            (0, 0, 4, Severity::Warning),
            (35, 27, 3, Severity::Warning),
        ] {
            let found = judge(&limit(used, replicas), 9, count);
            assert_eq!(found.severity, severity, "{used} {replicas} {count}: {}", found.found);
        }
        let none = ConnectionLimit { most: share::LEAST - 1, ..limit(0, 0) };
        assert_eq!(judge(&none, 9, 1).severity, Severity::Failed);
    }
}
