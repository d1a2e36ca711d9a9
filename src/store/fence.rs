//! What the fence of tokens needs of a database.

use std::{future::Future, time::Duration};

use super::StoreError;
use crate::domain::{FencingToken, Timestamp};

/// What the next fencing tokens are above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The floor: the highest token of any session row that was deleted, or what it was
    /// raised to.
    pub floor: FencingToken,
    /// The highest token of any session row; zero where there is none.
    pub highest: FencingToken,
    /// The store's clock.
    pub now: Timestamp,
}

impl Fence {
    /// How far tokens are above the store's clock, which they are not below. Until the clock has
    /// passed them, it does not make up for tokens that a failover or a restore has lost.
    #[must_use]
    pub fn ahead(&self) -> Duration {
        let ahead = self.floor.max(self.highest).0.saturating_sub(self.now.as_micros());
        Duration::from_micros(u64::try_from(ahead).unwrap_or_default())
    }
}

/// The table has lost its row: grants would follow the clock alone.
pub(super) fn no_row() -> StoreError {
    StoreError::internal(
        "the table oncegate_fence has no row: stop the servers, run INSERT INTO oncegate_fence (id, floor) \
         VALUES (true, 0), and then `oncegate fence raise`",
    )
}

/// The floor of fencing tokens.
pub trait FenceStore {
    /// Reads it.
    ///
    /// # Errors
    /// [`StoreError`].
    fn fence(&self) -> impl Future<Output = Result<Fence, StoreError>> + Send;

    /// Raises it to `floor`, unless it is higher. Answers what it is then. The next grant
    /// of every session is above it.
    ///
    /// # Errors
    /// [`StoreError`]; then it is not known to be raised.
    fn raise_fence(
        &self,
        floor: FencingToken,
    ) -> impl Future<Output = Result<Fence, StoreError>> + Send;
}
