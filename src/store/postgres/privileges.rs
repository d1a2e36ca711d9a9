//! What the role of the service must be granted: `docs/security.md` has the same as SQL.

use sqlx::{PgConnection, Row as _};

use super::classify;
use crate::store::StoreError;

/// The GRANTs that the role lacks. A privilege on some columns counts: it is the owner's choice, and
/// a statement that needs another column names the table.
pub(super) const MISSING: &str = "
WITH needed AS (
    SELECT name, privilege
    FROM unnest(ARRAY['processed_events', 'oncegate_sessions', 'oncegate_waiters',
            'oncegate_replicas', 'oncegate_fence']) AS name,
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
    WHERE name <> 'oncegate_fence' OR privilege IN ('SELECT', 'UPDATE')
)
SELECT format('GRANT %s ON %I TO %I', string_agg(privilege, ', ' ORDER BY privilege), name,
    current_user) AS missing
FROM needed
WHERE NOT CASE privilege WHEN 'DELETE' THEN has_table_privilege(name, privilege)
    ELSE has_any_column_privilege(name, privilege) END
GROUP BY name
UNION ALL
SELECT format('GRANT USAGE ON SEQUENCE oncegate_tickets TO %I', current_user)
WHERE NOT has_sequence_privilege('oncegate_tickets', 'USAGE')
    AND NOT has_sequence_privilege('oncegate_tickets', 'UPDATE')
ORDER BY missing
";

/// What a migration needs: may the role create tables, and which of ours does it not own?
pub(super) const MAY_MIGRATE: &str = "
SELECT has_schema_privilege(n.oid, 'CREATE') AS may_create, current_user::text AS role,
    n.nspname::text AS schema, (
        SELECT string_agg(c.relname::text, ', ' ORDER BY c.relname) FROM pg_class c
        WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND c.relname IN ('processed_events',
                'oncegate_sessions', 'oncegate_waiters', 'oncegate_replicas', 'oncegate_fence',
                'oncegate_migrations')
            AND NOT pg_has_role(c.relowner, 'USAGE')) AS not_owned
FROM pg_namespace n WHERE n.nspname = current_schema()
";

/// Why the role cannot migrate, if it cannot.
pub(super) async fn why_no_migration(
    connection: &mut PgConnection,
) -> Result<Option<String>, StoreError> {
    let row = sqlx::query(MAY_MIGRATE).persistent(false).fetch_one(connection).await;
    let row = row.map_err(classify)?;
    let text = |column| row.try_get::<Option<String>, _>(column).map_err(classify);
    let (role, schema) = (text("role")?.unwrap_or_default(), text("schema")?.unwrap_or_default());
    if let Some(tables) = text("not_owned")? {
        return Ok(Some(format!("the role {role:?} does not own {tables}")));
    }
    if row.try_get("may_create").map_err(classify)? {
        return Ok(None);
    }
    Ok(Some(format!("the role {role:?} may not create tables in the schema {schema:?}")))
}

/// Checks that the role may do what the service does, so that a missing GRANT is found at startup and
/// not by the first call that needs it.
///
/// # Errors
/// [`StoreError::Misconfigured`] with the statements that grant what is missing.
pub(super) async fn check(connection: &mut PgConnection) -> Result<(), StoreError> {
    let rows = match sqlx::query(MISSING).persistent(false).fetch_all(connection).await {
        Ok(rows) => rows,
        // A table is missing, which the first statement reports.
        Err(error) if error.as_database_error().is_some() => {
            let error = classify(error);
            tracing::debug!(%error, "cannot read the privileges of the role");
            return Ok(());
        }
        Err(error) => return Err(classify(error)),
    };
    let missing = rows.iter().map(|row| row.try_get::<String, _>("missing"));
    let missing = missing.collect::<Result<Vec<_>, _>>().map_err(StoreError::internal)?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(StoreError::Misconfigured(
        format!(
            "the role lacks privileges: run, as the owner of the tables, {}",
            missing.join("; ")
        )
        .into(),
    ))
}
