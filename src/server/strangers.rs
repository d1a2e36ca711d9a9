//! Connections on which no caller has been let in yet: where there is no room, the oldest gives way, unless it has
//! only just come.
//!
//! A connection that makes no call costs its peer next to nothing. Without this, one peer that nobody knows
//! could keep all others out.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::grpc::Known;

/// A connection's place among those of `--max-connections`, until it is dropped.
#[derive(Default)]
pub(super) struct Place {
    /// None where only health is answered, or once another connection has it.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    /// Whether a caller has been let in.
    pub(super) known: Arc<Known>,
    /// Cancelled when another connection has been given the place.
    pub(super) evicted: CancellationToken,
}

impl Place {
    /// Takes the place away, unless a caller has been let in.
    fn vacate(&self) -> Option<OwnedSemaphorePermit> {
        if !self.known.shut_out() {
            return None;
        }
        self.evicted.cancel();
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The places of connections that were not known when they were last looked at, the oldest first, and since when.
pub(super) struct Strangers {
    places: VecDeque<(Instant, Weak<Place>)>,
    /// How many there may be before those that are known or have ended are left out.
    most: usize,
    /// How long each has to make a call: or connections that come fast would end each other's handshakes.
    time: Duration,
}

impl Strangers {
    /// None yet. Each is to have `time`.
    pub(super) const fn new(time: Duration) -> Self {
        Self { places: VecDeque::new(), most: 0, time }
    }

    /// The place of a new connection.
    pub(super) fn place(&mut self, permit: OwnedSemaphorePermit) -> Arc<Place> {
        if self.places.len() >= self.most {
            let is_stranger = |place: Arc<Place>| !place.known.is_set();
            self.places.retain(|(_, place)| place.upgrade().is_some_and(is_stranger));
            self.most = (2 * self.places.len()).max(64);
        }
        let place = Arc::new(Place { permit: Mutex::new(Some(permit)), ..Place::default() });
        self.places.push_back((Instant::now(), Arc::downgrade(&place)));
        place
    }

    /// Ends the oldest connection that is not known and has had its time, and takes its place.
    pub(super) fn evict(&mut self) -> Option<OwnedSemaphorePermit> {
        let has_had_time = |(since, _): &mut (Instant, _)| since.elapsed() >= self.time;
        while let Some((_, oldest)) = self.places.pop_front_if(has_had_time) {
            if let Some(permit) = oldest.upgrade().and_then(|place| place.vacate()) {
                return Some(permit);
            }
        }
        None
    }
}
