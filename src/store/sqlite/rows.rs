//! Batches as `json_each` reads them.

use sqlx::SqliteConnection;
use uuid::Uuid;

use super::result_code::classify;
use crate::store::StoreError;

/// 128 bits, as the columns keep them.
pub(super) fn hex(uuid: Uuid) -> String {
    uuid.simple().to_string()
}

/// A batch as `json_each` reads it.
pub(super) fn text(batch: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(batch).map_err(StoreError::internal)
}

/// The answer's place that a `json_each` key names.
pub(super) fn slot<T>(answers: &mut [T], key: i64) -> Result<&mut T, StoreError> {
    usize::try_from(key)
        .ok()
        .and_then(|index| answers.get_mut(index))
        .ok_or_else(|| StoreError::internal("unexpected row in the answer"))
}

/// Runs a statement for all of `rows`, if there are any.
pub(super) async fn run(
    batch: &mut SqliteConnection,
    statement: &'static str,
    rows: Vec<serde_json::Value>,
) -> Result<(), StoreError> {
    if !rows.is_empty() {
        let rows = serde_json::Value::from(rows).to_string();
        sqlx::query(statement).bind(rows).execute(batch).await.map_err(classify)?;
    }
    Ok(())
}
