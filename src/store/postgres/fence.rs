//! The floor of fencing tokens in PostgreSQL.

use sqlx::{Connection as _, PgConnection, Row as _};

use super::{Postgres, classify, timed, timestamp::PgTimestamp};
use crate::{
    domain::FencingToken,
    store::{Fence, FenceStore, StoreError, fence::no_row},
};

/// The token of a grant at `$at` in a session that has no row: `FencingToken::next` has
/// the rule. `$at` is read after the session's lock was obtained. The floor is read as of
/// the statement's snapshot, which is older than that lock: a row that was deleted in
/// between is not in it. But grants and closes need the lock, and a sweep leaves a row for
/// a while after its token: so what was deleted is below `$at`, unless the clock was stepped back.
macro_rules! new_token {
    ($at:expr) => {
        concat!("GREATEST((SELECT floor FROM oncegate_fence WHERE id) + 1, ", token_of!($at), ")")
    };
}

/// The token of the next grant in the session of `$row`, which the statement has locked, so
/// that it rises whatever the clock and the session's lock do.
macro_rules! next_token {
    ($row:literal, $new:expr) => {
        concat!("GREATEST(", $row, ".fencing_token + 1, ", $new, ")")
    };
}

/// The store's clock as a token: microseconds since 1970.
macro_rules! token_of {
    ($at:expr) => {
        concat!("(extract(epoch FROM ", $at, ") * 1000000)::bigint")
    };
}

/// Raises the floor to the highest token in `$gone`, session rows that the statement has
/// deleted. The floor's row is locked last, after all rows of sessions, and only if it
/// rises.
macro_rules! raise_floor {
    ($gone:literal) => {
        concat!(
            "raised AS (
    UPDATE oncegate_fence f SET floor = g.floor
    FROM (SELECT max(fencing_token) AS floor FROM ",
            $gone,
            ") AS g
    WHERE f.id AND f.floor < g.floor
)"
        )
    };
}

pub(super) use {new_token, next_token, raise_floor, token_of};

/// $1: the moment, or null for the database's clock.
pub(super) const FENCE: &str = "
SELECT floor, COALESCE((SELECT max(fencing_token) FROM oncegate_sessions), 0) AS highest,
    COALESCE($1::timestamptz, clock_timestamp()) AS at
FROM oncegate_fence WHERE id
";

/// Waits for the statements that write sessions: those after it read the raised floor.
pub(super) const EXCLUDE_GRANTS: &str = "LOCK TABLE oncegate_sessions IN SHARE MODE";

/// $1: what the floor is raised to, unless it is higher.
pub(super) const RAISE: &str = "
UPDATE oncegate_fence SET floor = $1::bigint WHERE id AND floor < $1
";

impl FenceStore for Postgres {
    async fn fence(&self) -> Result<Fence, StoreError> {
        let mut connection = self.connect().await?;
        let fence = timed(self.timeout, self.read_fence(&mut connection)).await;
        let _ = connection.close().await;
        fence
    }

    async fn raise_fence(&self, floor: FencingToken) -> Result<Fence, StoreError> {
        let mut connection = self.connect().await?;
        let raise = async {
            let mut raising = connection.begin().await.map_err(classify)?;
            for statement in [sqlx::query(EXCLUDE_GRANTS), sqlx::query(RAISE).bind(floor.0)] {
                statement.execute(&mut *raising).await.map_err(classify)?;
            }
            raising.commit().await.map_err(classify)?;
            self.read_fence(&mut connection).await
        };
        let fence = timed(self.timeout, raise).await;
        let _ = connection.close().await;
        fence
    }
}

impl Postgres {
    pub(super) async fn read_fence(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Fence, StoreError> {
        let now = self.clock.now().map(PgTimestamp);
        let row = sqlx::query(FENCE).bind(now).persistent(false).fetch_optional(connection);
        let row = row.await.map_err(classify)?.ok_or_else(no_row)?;
        let read = || {
            let token = |column| row.try_get(column).map(FencingToken);
            let PgTimestamp(now) = row.try_get("at")?;
            Ok(Fence { floor: token("floor")?, highest: token("highest")?, now })
        };
        read().map_err(|error: sqlx::Error| StoreError::internal(error))
    }
}
