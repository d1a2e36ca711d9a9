//! The server and the tables: what a commit is worth, the clock, vacuum.

use std::time::{Duration, SystemTime};

use sqlx::{PgConnection, Row as _};
use tokio::time::Instant;

use super::{
    super::{
        figures::{self, CLOCK, OldestId, Table},
        timestamp::PgTimestamp,
    },
    About, classify,
};
use crate::{
    domain::Timestamp,
    store::{Durability, StoreError, doctor::Finding},
    telemetry::TableFigures,
};

/// How far the database's clock may be from this machine's.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(250);
/// Up to this many dead rows, and a fifth of the others, vacuum keeps up.
const DEAD_ROWS: i64 = 100_000;
/// How far transactions may go on after PostgreSQL began to freeze rows by itself.
const UNFROZEN: i64 = 300_000_000;
/// PostgreSQL refuses writes 3,000,000 transactions before 2^31.
const LAST: i64 = (1 << 31) - 100_000_000;

/// Backups and subscribers to changes are clients of the log too: those by their names, these by
/// their slots. A role may not see more of a client than that it is there.
pub(in super::super) const STANDBYS: &str = "
SELECT COALESCE(array_agg(COALESCE(r.application_name, '?') ORDER BY r.application_name), '{}') AS names
FROM pg_stat_replication r
WHERE COALESCE(r.state, 'streaming') IN ('streaming', 'catchup')
    AND COALESCE(r.application_name, '') !~ '(basebackup|receivewal|receive_wal)'
    AND NOT EXISTS (
        SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
";

pub(in super::super) const AUTOVACUUM: &str =
    "SELECT current_setting('autovacuum', true) IS DISTINCT FROM 'off'";

pub(super) async fn durability(
    database: &mut PgConnection,
    about: &About,
) -> Result<Finding, StoreError> {
    if let Some(loss) = about.durability.loss() {
        let name = about.durability.reason();
        // Some file systems and storages write pages as a whole.
        return Ok(if about.durability == Durability::FullPageWrites {
            Finding::warning(loss).advise(format!(
                "set {name} = on, unless the storage never tears a page, as that of ZFS, Aurora \
                 and Neon"
            ))
        } else {
            Finding::failed(loss).advise(format!("set {name} = on"))
        });
    }
    let commit = about.synchronous_commit.as_deref().unwrap_or("unknown");
    let names = about.standby_names.as_deref().unwrap_or_default();
    let standbys: Vec<String> = sqlx::query_scalar(STANDBYS)
        .persistent(false)
        .fetch_one(database)
        .await
        .map_err(classify)?;
    let of = match &standbys[..] {
        [] => String::new(),
        names => format!(" ({})", names.join(", ")),
    };
    let found = format!(
        "fsync and full_page_writes on, synchronous_commit {commit}; {} standbys{of}, \
         synchronous_standby_names '{names}'",
        standbys.len()
    );
    let is_synchronous = !names.is_empty() && commit != "local";
    if standbys.is_empty() && is_synchronous {
        return Ok(Finding::failed(found).advise(
            "no standby is connected, so every commit waits: start one, or remove it from \
             synchronous_standby_names",
        ));
    }
    if !standbys.is_empty() && !is_synchronous {
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
    let clock = sqlx::query(CLOCK).bind(None::<PgTimestamp>).persistent(false);
    let row = clock.fetch_one(database).await;
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
    let is_on = sqlx::query_scalar(AUTOVACUUM).persistent(false).fetch_one(&mut *database);
    let is_on: bool = is_on.await.map_err(classify)?;
    let rows = sqlx::query(figures::TABLES).bind(&figures::NAMES[..]).persistent(false);
    let rows = rows.fetch_all(database).await.map_err(classify)?;
    let tables = figures::tables(&rows)?;
    let is_late =
        |table: &Table| table.figures.dead_rows > DEAD_ROWS.max(table.figures.live_rows / 5);
    let found = match tables.first() {
        None => "no tables yet".to_owned(),
        Some(Table { figures: TableFigures { table, dead_rows, .. }, .. }) => {
            format!("dead rows, the most: {table} {dead_rows}")
        }
    };
    if !is_on {
        return Ok(
            Finding::warning(format!("autovacuum is off; {found}")).advise("set autovacuum = on")
        );
    }
    if tables.iter().any(is_late) {
        return Ok(Finding::warning(found).advise(
            "vacuum does not keep up: look for long transactions, prepared transactions and \
             replication slots, and for tables with autovacuum_enabled = off; and run VACUUM",
        ));
    }
    let off = tables.iter().filter(|table| !table.is_vacuumed).map(|table| table.figures.table);
    let off = off.collect::<Vec<_>>();
    if let Some(first) = off.first() {
        let found = format!("autovacuum is off for {}; {found}", off.join(", "));
        return Ok(Finding::warning(found)
            .advise(format!("ALTER TABLE {first} RESET (autovacuum_enabled), and so for each")));
    }
    Ok(Finding::ok(found))
}

pub(super) async fn transaction_ids(database: &mut PgConnection) -> Result<Finding, StoreError> {
    let row = sqlx::query(figures::AGES).persistent(false).fetch_one(database).await;
    let [transactions, multixacts] = figures::ages(&row.map_err(classify)?)?;
    let (one, other) = (age(&transactions, "transaction"), age(&multixacts, "multixact"));
    // The worse one decides; both are said.
    let severity = one.severity.max(other.severity);
    let found = format!("{}; {}", one.found, other.found);
    Ok(Finding { severity, found, advice: one.advice.or(other.advice) })
}

/// Of ids of one kind.
fn age(of: &OldestId, kind: &str) -> Finding {
    let OldestId { age, freeze, database } = of;
    let advice = "look for long transactions, prepared transactions and replication slots, and run \
                  VACUUM FREEZE in that database";
    let found = format!(
        "{age} since the oldest {kind} id that is not frozen, in the database {database:?}, of \
         2147483648"
    );
    if *age > LAST {
        return Finding::failed(found).advise(advice);
    }
    if *age > freeze.saturating_add(UNFROZEN) {
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
        let of = |number, freeze| {
            age(&OldestId { age: number, freeze, database: "bots".to_owned() }, "transaction")
        };
        let freeze = 200_000_000;
        for (number, severity) in [
            (0, Severity::Ok),
            (500_000_000, Severity::Ok),
            (500_000_001, Severity::Warning),
            (LAST, Severity::Warning),
            (LAST + 1, Severity::Failed),
        ] {
            assert_eq!(of(number, freeze).severity, severity, "{number}");
        }
        assert_eq!(of(1_200_000_000, 1_000_000_000).severity, Severity::Ok);
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
