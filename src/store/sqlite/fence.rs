//! The floor of fencing tokens in `SQLite`.

use sqlx::SqliteConnection;

use super::{Sqlite, classify, writer::begin};
use crate::{
    domain::FencingToken,
    store::{Fence, FenceStore, StoreError, fence::no_row},
};

pub(super) const FLOOR: &str = "SELECT floor FROM oncegate_fence";

/// $1: what the floor is raised to, unless it is higher.
pub(super) const RAISE: &str = "UPDATE oncegate_fence SET floor = $1 WHERE floor < $1";

pub(super) const HIGHEST: &str = "SELECT COALESCE(max(fencing_token), 0) FROM oncegate_sessions";

/// Raises the floor to `token`, of a session row that is deleted in this batch.
pub(super) async fn raise_floor(
    batch: &mut SqliteConnection,
    token: FencingToken,
) -> Result<(), StoreError> {
    sqlx::query(RAISE).bind(token.0).execute(batch).await.map(drop).map_err(classify)
}

impl FenceStore for Sqlite {
    async fn fence(&self) -> Result<Fence, StoreError> {
        let mut writer = self.writer.lock().await;
        self.read_fence(&mut writer).await
    }

    async fn raise_fence(&self, floor: FencingToken) -> Result<Fence, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        raise_floor(&mut batch, floor).await?;
        let fence = self.read_fence(&mut batch).await?;
        batch.commit().await.map_err(classify)?;
        Ok(fence)
    }
}

impl Sqlite {
    async fn read_fence(&self, writer: &mut SqliteConnection) -> Result<Fence, StoreError> {
        let floor = sqlx::query_scalar(FLOOR).fetch_optional(&mut *writer).await;
        let floor: i64 = floor.map_err(classify)?.ok_or_else(no_row)?;
        let highest: i64 = sqlx::query_scalar(HIGHEST).fetch_one(writer).await.map_err(classify)?;
        let now = self.marks.clock.now();
        Ok(Fence { floor: FencingToken(floor), highest: FencingToken(highest), now })
    }
}
