//! Hears the hints of other replicas.
//!
//! None is needed: waiters poll, and streams renew. A proxy that swallows notifications costs
//! only time.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::{connect::Connector, namespace, namespace::Locks, notify_channel::Channel};
use crate::{
    backoff::Backoff,
    domain::{LeaseId, RequestId},
    store::{Hint, StoreError},
};

/// How many hints may wait to be followed. Further ones are dropped.
const HINT_BUFFER: usize = 1_024;

/// How often the connection proves that it hears.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Pause after a failure; it doubles while it fails.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What it takes to listen.
pub(super) struct Listener {
    pub(super) connector: Connector,
    /// A connection that takes longer for a step is given up.
    pub(super) timeout: Duration,
    pub(super) locks: Locks,
    /// This replica, which needs no hints of its own.
    pub(super) replica: Uuid,
    /// Held while it begins.
    pub(super) begins: Arc<Mutex<()>>,
}

impl Listener {
    /// Listens until the receiver is dropped.
    pub(super) fn listen(self, open: TaskTrackerToken) -> mpsc::Receiver<Hint> {
        let (hints, receiver) = mpsc::channel(HINT_BUFFER);
        tokio::spawn(async move {
            let _open = open;
            let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
            loop {
                tokio::select! {
                    () = hints.closed() => return,
                    Err(error) = self.follow(&hints, &mut backoff) => {
                        tracing::debug!(
                            %error,
                            "hint listener disconnected; waiters poll, streams learn by renewals"
                        );
                    }
                }
                tokio::select! {
                    () = hints.closed() => return,
                    () = sleep(backoff.take()) => {}
                }
            }
        });
        receiver
    }

    async fn follow(
        &self,
        hints: &mpsc::Sender<Hint>,
        backoff: &mut Backoff,
    ) -> Result<Infallible, StoreError> {
        let begun = self.begins.lock().await;
        let mut channel =
            Channel::open(&self.connector, "queue", namespace::HINTS, self.timeout).await?;
        drop(begun);
        backoff.reset();
        // What was notified before was not heard.
        let _ = hints.try_send(Hint::Any);
        loop {
            let sent = Instant::now();
            channel.prove(self.timeout).await?;
            while let Ok(notified) = timeout_at(sent + HEARTBEAT, channel.hear()).await {
                if let Some(hint) = self.read(notified?.payload()) {
                    let _ = hints.try_send(hint);
                }
            }
        }
    }

    /// The hint of a payload; none for this replica's own, and those of newer versions.
    fn read(&self, payload: &str) -> Option<Hint> {
        if let Ok(lease) = Uuid::try_parse(payload) {
            return Some(Hint::Handed(LeaseId::from_uuid(lease)));
        }
        let (kind, about) = payload.split_at_checked(1)?;
        match kind {
            "s" => {
                let (lock, replica) = about.split_once(' ')?;
                let is_own = Uuid::try_parse(replica).ok()? == self.replica;
                let lock_key = self.locks.lock_key(lock.parse().ok()?);
                (!is_own).then_some(Hint::Session(lock_key))
            }
            "t" => Some(Hint::TakenOver(LeaseId::from_uuid(Uuid::try_parse(about).ok()?))),
            "e" => Some(Hint::Forgotten(RequestId::from_uuid(Uuid::try_parse(about).ok()?))),
            _ => None,
        }
    }
}
