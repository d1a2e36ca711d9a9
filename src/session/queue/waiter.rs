//! How events reach one waiter.

use std::sync::Mutex;

use tokio::{sync::Notify, time::Instant};

use super::locked;
use crate::domain::SessionRow;

/// Passes events to one waiter.
#[derive(Default)]
pub(super) struct WaiterSlot {
    state: Mutex<WaiterState>,
    arrived: Notify,
    /// Positions may have changed.
    moved: Notify,
}

#[derive(Default)]
struct WaiterState {
    /// When the store had the place in its queue; none before.
    stored_at: Option<Instant>,
    event: Option<WaiterEvent>,
}

/// An event for a waiter.
pub(in crate::session) enum WaiterEvent {
    /// The lease has come: its row, read by a statement that began then.
    Given(SessionRow, Instant),
    /// Another replica says that the lease has come.
    Heard,
    /// The store does not have the place any more.
    Lost,
}

impl WaiterSlot {
    pub(super) fn notify(&self, event: WaiterEvent) {
        let mut state = locked(&self.state);
        // A lease that has come is not replaced by a hint.
        if !matches!(state.event, Some(WaiterEvent::Given(..))) {
            state.event = Some(event);
            self.arrived.notify_one();
        }
    }

    /// Waits for an event.
    pub(super) async fn event(&self) -> WaiterEvent {
        loop {
            if let Some(event) = locked(&self.state).event.take() {
                return event;
            }
            self.arrived.notified().await;
        }
    }

    /// The store has the place.
    pub(super) fn stored(&self) {
        locked(&self.state).stored_at = Some(Instant::now());
    }

    /// Whether the store had the place before a statement that began at `asked`.
    pub(super) fn was_stored_before(&self, asked: Instant) -> bool {
        locked(&self.state).stored_at.is_some_and(|stored_at| stored_at < asked)
    }

    /// Positions may have changed.
    pub(super) fn notify_moved(&self) {
        self.moved.notify_one();
    }

    /// Waits until positions may have changed.
    pub(super) async fn moved(&self) {
        self.moved.notified().await;
    }
}
