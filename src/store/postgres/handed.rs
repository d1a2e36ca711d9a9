//! Hears which leases other replicas have handed to somebody who waits here.
//!
//! What is heard is a hint: whoever waits looks for itself as well, and a proxy that
//! swallows notifications costs only time.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::{channel::Channel, connect::Connector, namespace};
use crate::{domain::LeaseId, store::StoreError};

/// How many hints may wait to be taken.
const UNHEARD: usize = 1_024;

/// How often the connection proves that it hears.
const BEAT: Duration = Duration::from_secs(5);

/// How long it is left alone after it failed; that doubles while it fails.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Listens until nobody wants to know. Gives up a connection that takes longer than
/// `timeout` for a step.
pub(super) fn listen(
    connector: Connector,
    timeout: Duration,
    begins: Arc<Mutex<()>>,
    open: TaskTrackerToken,
) -> mpsc::Receiver<LeaseId> {
    let (leases, heard) = mpsc::channel(UNHEARD);
    tokio::spawn(async move {
        let _open = open;
        let mut pause = MIN_PAUSE;
        loop {
            tokio::select! {
                () = leases.closed() => return,
                Err(error) = follow(&connector, timeout, &begins, &leases, &mut pause) => {
                    tracing::debug!(%error, "handover listener disconnected; waiters fall back to polling");
                }
            }
            tokio::select! {
                () = leases.closed() => return,
                () = sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
            }
        }
    });
    heard
}

async fn follow(
    connector: &Connector,
    limit: Duration,
    begins: &Mutex<()>,
    leases: &mpsc::Sender<LeaseId>,
    pause: &mut Duration,
) -> Result<Infallible, StoreError> {
    let begun = begins.lock().await;
    let mut channel = Channel::open(connector, "queue", namespace::HANDED, limit).await?;
    drop(begun);
    *pause = MIN_PAUSE;
    loop {
        let sent = Instant::now();
        channel.prove(limit).await?;
        while let Ok(notified) = timeout_at(sent + BEAT, channel.hear()).await {
            if let Ok(lease) = Uuid::try_parse(notified?.payload()) {
                // Should there be no room, it is one that was not heard.
                let _ = leases.try_send(LeaseId::from_uuid(lease));
            }
        }
    }
}
