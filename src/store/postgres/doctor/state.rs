//! The server and the tables: what a commit is worth, the clock, vacuum.

use std::time::{Duration, SystemTime};

use sqlx::{PgConnection, Row as _};
use tokio::time::Instant;

use super::{
    super::{notify_channel::PROVE, timestamp::PgTimestamp},
    About, classify,
};
use crate::{
    domain::Timestamp,
    store::{StoreError, doctor::Finding},
};

/// How far the database's clock may be from this machine's.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(250);
/// Up to this many dead rows, and a fifth of the others, vacuum keeps up.
const DEAD_ROWS: i64 = 100_000;
/// How far transactions may go on after PostgreSQL began to freeze rows by itself.
const UNFROZEN: i64 = 300_000_000;
/// PostgreSQL refuses writes 3,000,000 transactions before 2^31.
const LAST: i64 = (1 << 31) - 100_000_000;

pub(in super::super) const STANDBYS: &str = "SELECT count(*) FROM pg_stat_replication";

pub(in super::super) const TABLES: &str = "
SELECT c.relname::text AS name, COALESCE(s.n_dead_tup, 0) AS dead, COALESCE(s.n_live_tup, 0) AS live,
    current_setting('autovacuum', true) IS DISTINCT FROM 'off' AS is_on
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE n.nspname = current_schema() AND c.relname IN ('processed_events', 'oncegate_sessions',
    'oncegate_waiters', 'oncegate_replicas', 'oncegate_fence')
ORDER BY dead DESC, name
";

pub(in super::super) const AGE: &str = "
SELECT age(datfrozenxid)::bigint AS age, current_setting('autovacuum_freeze_max_age')::bigint AS freeze
FROM pg_database WHERE datname = current_database()
";

pub(super) async fn durability(
    database: &mut PgConnection,
    about: &About,
) -> Result<Finding, StoreError> {
    if let Some(loss) = about.durability.loss() {
        let name = about.durability.reason();
        return Ok(Finding::failed(loss).advise(format!("set {name} = on")));
    }
    let commit = about.synchronous_commit.as_deref().unwrap_or("unknown");
    let names = about.standby_names.as_deref().unwrap_or_default();
    let standbys: i64 = sqlx::query_scalar(STANDBYS)
        .persistent(false)
        .fetch_one(database)
        .await
        .map_err(classify)?;
    let found = format!(
        "fsync and full_page_writes on, synchronous_commit {commit}; {standbys} standbys, \
         synchronous_standby_names '{names}'"
    );
    let is_synchronous = !names.is_empty() && commit != "local";
    if standbys > 0 && !is_synchronous {
        return Ok(Finding::warning(found).advise(
            "a failover can lose marks and leases that were answered: set \
             synchronous_standby_names, and synchronous_commit = on",
        ));
    }
    Ok(Finding::ok(found))
}

#[expect(clippy::disallowed_methods, reason = "compares the store's clock with this machine's")]
pub(super) async fn clock(database: &mut PgConnection) -> Result<Finding, StoreError> {
    let (sent, begun) = (SystemTime::now(), Instant::now());
    let row = sqlx::query(PROVE).persistent(false).fetch_one(database).await;
    let trip = begun.elapsed();
    let PgTimestamp(at) = row.and_then(|row| row.try_get(0)).map_err(classify)?;
    let sent = sent.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(offset(at, sent + trip / 2, trip))
}

/// Compares the database's clock with this machine's at the middle of a round trip.
fn offset(at: Timestamp, here: Duration, trip: Duration) -> Finding {
    let here = i64::try_from(here.as_micros()).unwrap_or(i64::MAX);
    let micros = at.as_micros().saturating_sub(here);
    let span = Duration::from_micros(micros.unsigned_abs());
    let way = if micros < 0 { "behind" } else { "ahead of" };
    let millis = |span: Duration| span.as_millis();
    let found = format!(
        "the database is {} ms {way} this machine, within {} ms",
        millis(span),
        millis(trip / 2) + 1
    );
    if span > CLOCK_TOLERANCE + trip / 2 {
        return Finding::warning(found).advise(
            "only the database's clock decides expiries, so a failover to a server with another \
             clock moves them: synchronize all clocks (NTP)",
        );
    }
    Finding::ok(found)
}

pub(super) async fn vacuum(database: &mut PgConnection) -> Result<Finding, StoreError> {
    let rows = sqlx::query(TABLES).persistent(false).fetch_all(database).await.map_err(classify)?;
    let mut found = Vec::new();
    let (mut is_late, mut is_on) = (false, true);
    for row in &rows {
        let count = |column| row.try_get::<i64, _>(column).map_err(classify);
        let (dead, live) = (count("dead")?, count("live")?);
        let name: String = row.try_get("name").map_err(classify)?;
        is_on = row.try_get("is_on").map_err(classify)?;
        is_late |= dead > DEAD_ROWS.max(live / 5);
        found.push(format!("{name} {dead}"));
    }
    let found = match found.split_first() {
        None => "no tables yet".to_owned(),
        Some((most, _)) => format!("dead rows, the most: {most}"),
    };
    if !is_on {
        return Ok(
            Finding::warning(format!("autovacuum is off; {found}")).advise("set autovacuum = on")
        );
    }
    if is_late {
        return Ok(Finding::warning(found).advise(
            "vacuum does not keep up: look for long transactions, prepared transactions and \
             replication slots, and run VACUUM",
        ));
    }
    Ok(Finding::ok(found))
}

pub(super) async fn transaction_ids(database: &mut PgConnection) -> Result<Finding, StoreError> {
    let row = sqlx::query(AGE).persistent(false).fetch_one(database).await.map_err(classify)?;
    let count = |column| row.try_get::<i64, _>(column).map_err(classify);
    Ok(age(count("age")?, count("freeze")?))
}

/// `age` of the oldest row that is not frozen; `freeze`: from when PostgreSQL freezes by itself.
fn age(age: i64, freeze: i64) -> Finding {
    let advice = "look for long transactions, prepared transactions and replication slots, and run \
                  VACUUM FREEZE";
    let found = format!("{age} since the oldest row that is not frozen, of 2147483648");
    if age > LAST {
        return Finding::failed(found).advise(advice);
    }
    if age > freeze.saturating_add(UNFROZEN) {
        return Finding::warning(found).advise(advice);
    }
    Finding::ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::doctor::Severity;

    #[test]
    fn an_age_is_judged_by_when_rows_are_frozen() {
        let freeze = 200_000_000;
        for (number, severity) in [
            (0, Severity::Ok),
            (500_000_000, Severity::Ok),
            (500_000_001, Severity::Warning),
            (LAST, Severity::Warning),
            (LAST + 1, Severity::Failed),
        ] {
            assert_eq!(age(number, freeze).severity, severity, "{number}");
        }
        assert_eq!(age(1_200_000_000, 1_000_000_000).severity, Severity::Ok);
    }

    #[test]
    fn a_slow_answer_is_no_offset() {
        let (at, trip) = (Timestamp::from_micros(10_000_000), Duration::from_secs(1));
        for (millis, trip, severity) in [
            (10_000, Duration::ZERO, Severity::Ok),
            (9_750, Duration::ZERO, Severity::Ok),
            (9_749, Duration::ZERO, Severity::Warning),
            (10_251, Duration::ZERO, Severity::Warning),
            (9_500, trip, Severity::Ok),
            (10_751, trip, Severity::Warning),
        ] {
            let here = Duration::from_millis(millis);
            assert_eq!(offset(at, here, trip).severity, severity, "{millis}");
        }
    }
}
