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
