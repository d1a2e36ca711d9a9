//! Brings the schema up to date, in one transaction: all of it, or nothing.
//!
//! Replicas that start together take turns by an advisory lock that ends with the transaction.
//! Neither that lock nor one that keeps others from a table is waited for here: its holder may
//! keep it for long, and behind a migration that waits, every statement of other replicas would
//! wait. A running autovacuum is ended before, by a lock that no such statement waits for. Nothing
//! outlives the transaction, neither a lock nor a prepared statement, so a proxy that pools
//! transactions does no harm.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _,
    postgres::PgDatabaseError,
};

use super::{classify, connect::MAX_SCHEMA_BYTES, timed};
use crate::store::{
    StoreError,
    schema::{AppliedMigration, MigrationPlan, Schema, SchemaState, Step, Superseded},
};

mod adoption;

pub(super) use adoption::{OLDER_COLUMNS, OLDER_TABLE};

/// Texts of migrations that were replaced before they were released.
const SUPERSEDED: &[Superseded] = &[
    Superseded {
        version: 2,
        checksum: "076bee2fd8be29fd78ac70acba926b42301f686de962aa2f039b400f06b0270a\
                   89b250428c3ef7f7ce8fe488d41246d6",
        reason: "the tables were called sessions and session_fencing_tokens",
    },
    Superseded {
        version: 3,
        checksum: "fe433a2b34a1e7341f4615b98057320da224b8165767d7f4b9a3b9db6c70cc41\
                   b1215536d4f7d72a4c312809674ec852",
        reason: "the tables were called session_waiters and replicas",
    },
    Superseded {
        version: 4,
        checksum: "7fd2befd88f03d6e7a382b79b48bd15e42ac2efb309193cf902fc454dca9b303\
                   f8a3ffc0bbf72a74e6d8079e6edab67c",
        reason: "the table was called session_waiters",
    },
];

// These two are run by the simple protocol: behind some proxies, which pool transactions, a
// prepared statement is not there by the time it is run.

/// Where the tables are, and whether the table of migrations is there.
pub(super) const PLACE: &str = "
SELECT current_schema()::text AS schema, current_user::text AS role,
    to_regclass(quote_ident(current_schema()) || '.oncegate_migrations') IS NOT NULL AS migrated
";

/// The migrations that the database has; `min_reader` may be missing from the table.
pub(super) const APPLIED: &str = "
SELECT version, success, checksum, (to_jsonb(m) ->> 'min_reader')::bigint AS min_reader
FROM oncegate_migrations AS m ORDER BY version
";

/// Takes the turn of this replica, until the end of the transaction, unless another has it.
pub(super) const LOCK: &str =
    "SELECT pg_try_advisory_xact_lock(hashtextextended('oncegate migrations ' || $1, 0))";

/// For how long a vacuum is waited for, until the end of the transaction. Autovacuum gives way to
/// a statement that has waited for `deadlock_timeout`, unless it prevents a wraparound. Less than
/// [`MAX_VACUUM_WAIT`], so that the database says what could not be locked.
pub(super) const WAIT_FOR_VACUUM: &str = "
SELECT set_config('lock_timeout', least(1500 + setting::bigint, 9000)::text, true)
FROM pg_settings WHERE name = 'deadlock_timeout'
";

/// The tables that migrations change, as far as they are there.
pub(super) const OWN_TABLES: &str = "
SELECT string_agg(c.oid::regclass::text, ', ' ORDER BY c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') AND c.relname IN ('processed_events',
    'oncegate_sessions', 'oncegate_waiters', 'oncegate_replicas', 'oncegate_fence')
";

pub(super) const RECORD: &str = "
INSERT INTO oncegate_migrations
    (version, description, success, checksum, execution_time, min_reader)
VALUES ($1, $2, true, $3, 0, $4)
ON CONFLICT (version) DO UPDATE
SET checksum = EXCLUDED.checksum, min_reader = EXCLUDED.min_reader
";

/// While a lock on a table is waited for, other statements wait behind it.
pub(super) const BRIEFLY: &str = "SET LOCAL lock_timeout = '200ms'";

/// For how long all vacuums are waited for: there are three workers by default, and five tables.
const MAX_VACUUM_WAIT: Duration = Duration::from_secs(10);

fn schema() -> Schema {
    Schema::new(&sqlx::migrate!("migrations/postgres"), SUPERSEDED)
}

/// Checks that the schema is one that this binary can use, and answers its name.
pub(super) async fn verify(connection: &mut PgConnection) -> Result<String, StoreError> {
    let location = TableLocation::of(connection).await?;
    let name = location.schema()?.to_owned();
    schema().verify(&location.applied(connection).await?)?;
    Ok(name)
}

/// Where the schema stands, unless this binary must not use it.
pub(super) async fn state(connection: &mut PgConnection) -> Result<SchemaState, StoreError> {
    let location = TableLocation::of(connection).await?;
    location.schema()?;
    schema().state(&location.applied(connection).await?)
}

/// Brings the schema up to date, and answers its name. `wanted` is made if it is missing. All but
/// the migrations themselves is given up after `limit`.
pub(super) async fn run(
    connection: &mut PgConnection,
    wanted: Option<&str>,
    limit: Duration,
) -> Result<String, StoreError> {
    let schema = schema();
    let read = async {
        let location = TableLocation::of(connection).await?;
        // Usually there is nothing to do, and then no privilege is needed for it.
        let is_up_to_date = location.schema.is_some()
            && schema.plan(&location.applied(connection).await?)?.is_empty();
        Ok((location, is_up_to_date))
    };
    let (location, is_up_to_date) = timed(limit, read).await?;
    if let Some(name) = &location.schema
        && is_up_to_date
    {
        return Ok(name.clone());
    }
    let preparation = async {
        // Each statement has to see what the replica before this one has committed.
        let begin = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED");
        let mut transaction = begin.await.map_err(classify)?;
        take_turn(&mut transaction, wanted, &location).await?;
        let (name, plan) = prepare(&schema, &mut transaction).await?;
        Ok((transaction, name, plan))
    };
    let (mut transaction, name, plan) = timed(limit + MAX_VACUUM_WAIT, preparation).await?;
    for step in &plan.to_record {
        record(&mut transaction, step).await?;
    }
    for step in &plan.pending {
        tracing::info!(step.version, "migrating");
        let ran = transaction.execute(step.sql.clone()).await;
        ran.map_err(|error| failed(&format!("migration {} failed", step.version), error))?;
        record(&mut transaction, step).await?;
        tracing::info!(step.version, step.min_reader, "migrated");
    }
    transaction.commit().await.map_err(classify)?;
    Ok(name)
}

/// Keeps other replicas from migrating, and makes the schema if it is missing.
async fn take_turn(
    transaction: &mut PgConnection,
    wanted: Option<&str>,
    location: &TableLocation,
) -> Result<(), StoreError> {
    let lock = wanted.or(location.schema.as_deref()).unwrap_or_default();
    let lock = sqlx::query_scalar::<_, bool>(LOCK).bind(lock).persistent(false);
    if !lock.fetch_one(&mut *transaction).await.map_err(classify)? {
        return Err(StoreError::Conflict);
    }
    transaction.execute(BRIEFLY).await.map_err(classify)?;
    if let Some(wanted) = wanted
        && location.schema.is_none()
    {
        let create = format!("CREATE SCHEMA IF NOT EXISTS \"{wanted}\"");
        let made = transaction.execute(AssertSqlSafe(create)).await;
        made.map_err(|error| failed(&format!("cannot create the schema {wanted:?}"), error))?;
    }
    Ok(())
}

/// Finds out what is to be done, and takes every lock that it needs.
async fn prepare<'a>(
    schema: &'a Schema,
    transaction: &mut PgConnection,
) -> Result<(String, MigrationPlan<'a>), StoreError> {
    let name = TableLocation::of(transaction).await?.schema()?.to_owned();
    let prepared = transaction.execute(include_str!("migrate/table.sql")).await;
    prepared.map_err(|error| failed("cannot create the table oncegate_migrations", error))?;
    // Another replica may have done it in the meantime.
    let location = TableLocation { migrated: true, ..TableLocation::of(transaction).await? };
    let plan = schema.plan(&location.applied(transaction).await?)?;
    if plan.pending.iter().any(|step| step.version == 1) {
        adoption::check(transaction).await?;
    }
    if !plan.pending.is_empty() {
        let own = sqlx::query_scalar(OWN_TABLES).persistent(false).fetch_one(&mut *transaction);
        let own: Option<String> = own.await.map_err(classify)?;
        if let Some(own) = own {
            let wait = sqlx::raw_sql(WAIT_FOR_VACUUM).execute(&mut *transaction);
            wait.await.map_err(classify)?;
            // Calls go on meanwhile; and no other vacuum begins after it.
            lock(transaction, &own, "SHARE UPDATE EXCLUSIVE").await?;
            transaction.execute(BRIEFLY).await.map_err(classify)?;
            lock(transaction, &own, "ACCESS EXCLUSIVE").await?;
        }
    }
    Ok((name, plan))
}

async fn lock(transaction: &mut PgConnection, tables: &str, mode: &str) -> Result<(), StoreError> {
    let lock = format!("LOCK TABLE {tables} IN {mode} MODE");
    let locked = transaction.execute(AssertSqlSafe(lock)).await;
    locked.map(drop).map_err(|error| failed(&format!("cannot lock {tables}"), error))
}

async fn record(transaction: &mut PgConnection, step: &Step) -> Result<(), StoreError> {
    let record = sqlx::query(RECORD)
        .bind(step.version)
        .bind(&*step.description)
        .bind(&*step.checksum)
        .bind(step.min_reader)
        .persistent(false);
    let recorded = record.execute(transaction).await;
    recorded
        .map(drop)
        .map_err(|error| failed(&format!("cannot record migration {}", step.version), error))
}

/// Where a connection finds tables.
struct TableLocation {
    /// None where the search path names no schema that exists and may be used.
    schema: Option<String>,
    role: String,
    migrated: bool,
}

impl TableLocation {
    async fn of(connection: &mut PgConnection) -> Result<Self, StoreError> {
        let read = async {
            let row = sqlx::raw_sql(PLACE).fetch_one(connection).await?;
            let schema = row.try_get("schema")?;
            Ok(Self { schema, role: row.try_get("role")?, migrated: row.try_get("migrated")? })
        };
        read.await.map_err(classify)
    }

    fn schema(&self) -> Result<&str, StoreError> {
        if self.schema.as_ref().is_some_and(|name| name.len() > MAX_SCHEMA_BYTES) {
            return Err(StoreError::internal(format!(
                "the name of the schema with the tables must be at most {MAX_SCHEMA_BYTES} bytes"
            )));
        }
        self.schema.as_deref().ok_or_else(|| {
            StoreError::internal(format!(
                "the search path of role {:?} has no schema that exists and that the role may use: \
                 run `oncegate migrate` as a role that may create it, or GRANT USAGE ON SCHEMA",
                self.role
            ))
        })
    }

    async fn applied(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<AppliedMigration>, StoreError> {
        if !self.migrated {
            return Ok(Vec::new());
        }
        let rows = sqlx::raw_sql(APPLIED).fetch_all(connection).await;
        let rows = rows.map_err(|error| match code(&error).as_deref() {
            Some("42501") => StoreError::internal(format!(
                "role {0:?} may not read oncegate_migrations: GRANT SELECT ON \
                 oncegate_migrations TO {0:?}",
                self.role
            )),
            Some("42703") => StoreError::internal(
                "the table oncegate_migrations is not one of oncegate's: rename it, or keep \
                 oncegate's tables in a schema of their own with --database-schema",
            ),
            _ => classify(error),
        })?;
        let read = rows.iter().map(|row| {
            Ok(AppliedMigration {
                version: row.try_get("version")?,
                success: row.try_get("success")?,
                checksum: row.try_get("checksum")?,
                min_reader: row.try_get("min_reader")?,
            })
        });
        read.collect::<Result<_, sqlx::Error>>().map_err(classify)
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// What it means that a step of a migration failed: all of it was rolled back.
fn failed(what: &str, error: sqlx::Error) -> StoreError {
    let Some(database) =
        error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
    else {
        return classify(error);
    };
    let cause = format!("{what}: {}", database.message());
    let detail = database.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
    let advice = match database.code() {
        // A transaction such as that of pg_dump holds a lock on a table.
        "55P03" => return StoreError::LockTimeout(cause.into()),
        // 08 the connection, 40 a deadlock, 53 out of resources, 57P the server stops or starts:
        // the next try may succeed.
        code if ["08", "40", "53"].contains(&&code[..2]) || code.starts_with("57P") => {
            return StoreError::unavailable(cause);
        }
        // A table, index, sequence or type of this name is there.
        "42P07" | "42710" => {
            ", and it is not oncegate's: rename it, or keep oncegate's tables in a schema of their \
             own with --database-schema"
        }
        "42701" => ": an older table must not have columns of this name, rename it",
        "42501" => ": run `oncegate migrate` as the owner of the tables",
        _ => "",
    };
    StoreError::internal(format!("{cause}{detail}{advice}. Nothing was changed"))
}
