//! What the fence of tokens needs of a database.

use std::future::Future;

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
