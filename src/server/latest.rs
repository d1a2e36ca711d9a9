//! Connections that are served however many others there are: the latest stay.

use std::collections::VecDeque;

use tokio::task::AbortHandle;

/// How many are served at once.
pub(super) const MOST: usize = 32;

/// The tasks that serve the latest connections, the oldest first.
#[derive(Default)]
pub(super) struct EvictingConnections(VecDeque<AbortHandle>);

impl EvictingConnections {
    /// Adds one, and ends the oldest where there are too many.
    pub(super) fn add(&mut self, task: AbortHandle) {
        self.0.retain(|task| !task.is_finished());
        if self.0.len() >= MOST
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(task);
    }
}
