//! The floor of fencing tokens in PostgreSQL.

use sqlx::{Connection as _, PgConnection, Row as _};

use super::{Postgres, link::classify, timestamp::PgTimestamp};
use crate::{
    domain::FencingToken,
    store::{Fence, FenceStore, StoreError},
};

/// $1: the moment, or null for the database's clock.
pub(super) const FENCE: &str = "
SELECT floor, COALESCE((SELECT max(fencing_token) FROM oncegate_sessions), 0) AS highest,
    COALESCE($1::timestamptz, clock_timestamp()) AS at
FROM oncegate_fence WHERE id
";

/// $1: what the floor is raised to, unless it is higher.
pub(super) const RAISE: &str = "
UPDATE oncegate_fence SET floor = $1::bigint WHERE id AND floor < $1
";

impl FenceStore for Postgres {
    async fn fence(&self) -> Result<Fence, StoreError> {
        let mut connection = self.connect().await?;
        let fence = self.read_fence(&mut connection).await;
        let _ = connection.close().await;
        fence
    }

    async fn raise_fence(&self, floor: FencingToken) -> Result<Fence, StoreError> {
        let mut connection = self.connect().await?;
        let raised = sqlx::query(RAISE).bind(floor.0).execute(&mut connection).await;
        let fence = match raised {
            Ok(_) => self.read_fence(&mut connection).await,
            Err(error) => Err(classify(error)),
        };
        let _ = connection.close().await;
        fence
    }
}

impl Postgres {
    async fn read_fence(&self, connection: &mut PgConnection) -> Result<Fence, StoreError> {
        let now = self.clock.now().map(PgTimestamp);
        let row = sqlx::query(FENCE).bind(now).fetch_one(connection).await.map_err(classify)?;
        let read = || {
            let token = |column| row.try_get(column).map(FencingToken);
            let PgTimestamp(now) = row.try_get("at")?;
            Ok(Fence { floor: token("floor")?, highest: token("highest")?, now })
        };
        read().map_err(|error: sqlx::Error| StoreError::fault(error))
    }
}
