//! Hears which leases other replicas have handed to somebody who waits here.
//!
//! What is heard is a hint: whoever waits looks for itself as well. So nothing is
//! proved, and a proxy that swallows notifications costs only time.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use crate::domain::LeaseId;

/// How many hints may wait to be taken.
const UNHEARD: usize = 1_024;

/// How long a connection that was lost is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// Listens until nobody wants to know.
pub(super) fn listen(options: PgConnectOptions, open: TaskTrackerToken) -> mpsc::Receiver<LeaseId> {
    let (leases, heard) = mpsc::channel(UNHEARD);
    tokio::spawn(async move {
        let _open = open;
        loop {
            tokio::select! {
                () = leases.closed() => return,
                // Whatever ended it, it is tried again.
                _ = follow(&options, &leases) => {}
            }
            tokio::select! {
                () = leases.closed() => return,
                () = sleep(PAUSE) => {}
            }
        }
    });
    heard
}

async fn follow(
    options: &PgConnectOptions,
    leases: &mpsc::Sender<LeaseId>,
) -> Result<(), sqlx::Error> {
    let options = options.clone().application_name("oncegate queue");
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(handed_channel!()).await?;
    while let Some(notified) = listener.try_recv().await? {
        if let Ok(lease) = Uuid::try_parse(notified.payload()) {
            // Should there be no room, it is one that was not heard.
            let _ = leases.try_send(LeaseId::from_uuid(lease));
        }
    }
    Ok(())
}
