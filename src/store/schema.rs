//! The schema's versions, alike on every store.

use sqlx::migrate::{Migrate, MigrateError, Migrator};

use super::StoreError;

/// The table that notes which migrations a database has: one of our own, for
/// the database may be one that another application migrates with sqlx too.
pub(super) const TABLE: &str = "oncegate_migrations";

/// Checks that the migrations of a database are those of this binary.
pub(super) async fn verify(
    migrator: &Migrator,
    connection: &mut impl Migrate,
    classify: fn(sqlx::Error) -> StoreError,
) -> Result<(), StoreError> {
    let applied: Vec<i64> = match connection.list_applied_migrations(TABLE).await {
        Ok(applied) => applied.iter().map(|migration| migration.version).collect(),
        Err(error) => match fault(error, classify) {
            away @ StoreError::Unavailable(_) => return Err(away),
            // A database that was never migrated has no such table.
            _ => Vec::new(),
        },
    };
    let wanted: Vec<i64> = migrator.iter().map(|migration| migration.version).collect();
    if applied == wanted {
        return Ok(());
    }
    let advice = if applied.len() > wanted.len() {
        "this binary is older than its database: run the newer one"
    } else {
        "run `oncegate migrate`"
    };
    Err(StoreError::fault(format!(
        "the schema has migrations {applied:?}, this binary needs {wanted:?}: {advice}"
    )))
}

/// What a failed migration means.
pub(super) fn fault(error: MigrateError, classify: fn(sqlx::Error) -> StoreError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => classify(error),
        MigrateError::VersionMissing(version) => StoreError::fault(format!(
            "the schema has migration {version}, which this binary does not know: it is older \
             than its database, run the newer one"
        )),
        error => StoreError::fault(format!("migration: {error}")),
    }
}
