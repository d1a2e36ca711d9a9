//! Brings the schema of a file up to date, in one transaction.

use sqlx::{Connection as _, Executor as _, Row as _, SqliteConnection};

use super::classify;
use crate::store::{
    StoreError,
    schema::{AppliedMigration, Schema, SchemaState, Step},
};

pub(super) const APPLIED: &str = "
SELECT version, success, checksum, min_reader FROM oncegate_migrations ORDER BY version
";

pub(super) const RECORD: &str = "
INSERT INTO oncegate_migrations
    (version, description, success, checksum, execution_time, min_reader)
VALUES (?1, ?2, true, ?3, 0, ?4)
ON CONFLICT (version) DO UPDATE
SET checksum = excluded.checksum, min_reader = excluded.min_reader
";

fn schema() -> Schema {
    Schema::new(&sqlx::migrate!("migrations/sqlite"), &[])
}

/// Checks that the schema is one that this binary can use.
pub(super) async fn verify(writer: &mut SqliteConnection) -> Result<(), StoreError> {
    schema().verify(&read(writer).await?)
}

/// Where the schema stands, unless this binary must not use it.
pub(super) async fn state(writer: &mut SqliteConnection) -> Result<SchemaState, StoreError> {
    schema().state(&read(writer).await?)
}

/// The migrations that the file has. Nothing is changed.
async fn read(writer: &mut SqliteConnection) -> Result<Vec<AppliedMigration>, StoreError> {
    // The column may be missing: so the table is made as it has to be, and no more.
    let mut transaction = writer.begin().await.map_err(classify)?;
    let applied = applied(&mut transaction).await?;
    transaction.rollback().await.map_err(classify)?;
    Ok(applied)
}

/// Brings the schema up to date.
pub(super) async fn run(writer: &mut SqliteConnection) -> Result<(), StoreError> {
    let schema = schema();
    let mut transaction = writer.begin().await.map_err(classify)?;
    let applied = applied(&mut transaction).await?;
    let plan = schema.plan(&applied)?;
    for step in &plan.to_record {
        record(&mut transaction, step).await?;
    }
    for step in &plan.pending {
        transaction.execute(step.sql.clone()).await.map_err(|error| {
            StoreError::internal(format!(
                "migration {}: {error}. Nothing was changed",
                step.version
            ))
        })?;
        record(&mut transaction, step).await?;
    }
    transaction.commit().await.map_err(classify)
}

/// The migrations that the file has. Makes their table as it is to be.
async fn applied(transaction: &mut SqliteConnection) -> Result<Vec<AppliedMigration>, StoreError> {
    let make = async {
        transaction.execute(include_str!("migrate/table.sql")).await?;
        let has_column = "SELECT count(*) FROM pragma_table_info('oncegate_migrations') \
             WHERE name = 'min_reader'";
        if sqlx::query_scalar::<_, i64>(has_column).fetch_one(&mut *transaction).await? == 0 {
            let add = "ALTER TABLE oncegate_migrations ADD COLUMN min_reader INTEGER";
            transaction.execute(add).await?;
        }
        let rows = sqlx::query(APPLIED).fetch_all(transaction).await?;
        let read = rows.iter().map(|row| {
            Ok(AppliedMigration {
                version: row.try_get("version")?,
                success: row.try_get("success")?,
                checksum: row.try_get("checksum")?,
                min_reader: row.try_get("min_reader")?,
            })
        });
        read.collect::<Result<_, sqlx::Error>>()
    };
    make.await.map_err(classify)
}

async fn record(transaction: &mut SqliteConnection, step: &Step) -> Result<(), StoreError> {
    let record = sqlx::query(RECORD)
        .bind(step.version)
        .bind(&*step.description)
        .bind(&*step.checksum)
        .bind(step.min_reader);
    record.execute(transaction).await.map(drop).map_err(classify)
}
