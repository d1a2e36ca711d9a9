//! The embedded store's file, replaced by an older copy of it.

use std::time::Duration;

use super::{Bots, LOST_ROUNDS, OLD_TEAMS, Service, TEAMS};
use crate::harness::sqlite_url;

/// Ends a server in good order, so that its file is whole.
async fn stop(service: Service) {
    service.process.terminate();
    assert!(service.process.exit(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_after_an_older_copy_of_the_file_is_put_back() {
    let directory = tempfile::tempdir().unwrap();
    let url = sqlite_url(&directory);
    let path = |suffix: &str| directory.path().join(format!("oncegate.db{suffix}"));
    let mut bots = Bots::new();
    let mut service = Service::start(&url).await;
    bots.live(&mut service, 1, OLD_TEAMS).await;
    stop(service).await;
    for suffix in ["", "-wal", "-shm"] {
        if path(suffix).exists() {
            std::fs::copy(path(suffix), path(&format!("{suffix}.copy"))).unwrap();
        }
    }

    let mut service = Service::start(&url).await;
    bots.live(&mut service, LOST_ROUNDS, &TEAMS).await;
    service.kill();
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(path(suffix));
        let copy = path(&format!("{suffix}.copy"));
        if copy.exists() {
            std::fs::rename(copy, path(suffix)).unwrap();
        }
    }

    let mut service = Service::start(&url).await;
    bots.live_on(&mut service).await;
}
