//! Serving on for a while after SIGTERM, and other signals.

use std::time::Duration;

use oncegate::store::Clock;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{SOON, serve};
use crate::harness::{Replica, config, connect, mark, metrics::page, sqlite_url};

#[tokio::test]
async fn a_server_that_is_to_end_serves_on_but_is_not_ready() {
    let served = serve(&["--lame-duck", "60s"]).await;
    let mut health = HealthClient::new(connect(&served.process.address).await);
    let watch = HealthCheckRequest { service: "readiness".into() };
    let mut states = health.watch(watch).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut old = served.process.client().await;

    served.process.terminate();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let mut new = served.process.client().await;
    for (client, id) in [(&mut old, "Ev1"), (&mut new, "Ev2")] {
        assert!(client.mark_processed(mark("T1", id)).await.unwrap().into_inner().first);
    }
    // The store was looked at since, and did not make it ready again.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let ask = HealthCheckRequest { service: "readiness".into() };
    let now = health.check(ask).await.unwrap().into_inner().status();
    assert_eq!(now, ServingStatus::NotServing);
    // The second signal ends it at once.
    served.process.terminate();
    assert!(served.process.exit(SOON).await.success());
}

#[tokio::test]
async fn pages_follow_readiness_until_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["--lame-duck", "60s", "--ops-listen", "127.0.0.1:0"];
    let replica = Replica::start(&sqlite_url(&directory), Clock::Store, &flags).await;
    let address = replica.server.ops_address().unwrap();
    assert!(page(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    let hurry = replica.server.hurry();
    let stopping = tokio::spawn(replica.server.stop());
    let follow = async {
        while !page(address, "/readyz").await.starts_with("HTTP/1.1 503") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), follow).await.unwrap();
    assert!(page(address, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(page(address, "/metrics").await.contains("oncegate_store_up 1"));
    hurry.cancel();
    stopping.await.unwrap().unwrap();
}

#[test]
fn only_a_pod_serves_on_by_default() {
    let lame_duck = |flags: &[&str]| config("sqlite://x.db", flags).lame_duck();
    let pod = ["--kubernetes-service-host", "10.0.0.1"];
    assert_eq!(lame_duck(&[]), Duration::ZERO);
    assert_eq!(lame_duck(&pod), Duration::from_secs(5));
    assert_eq!(lame_duck(&[&pod[..], &["--lame-duck", "0s"]].concat()), Duration::ZERO);
}

#[tokio::test]
async fn a_hangup_ends_nothing() {
    let served = serve(&[]).await;
    served.process.signal("HUP");
    let mut client = served.process.client().await;
    let logged = async {
        while !served.process.log().contains("SIGHUP") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), logged).await.unwrap();
    assert!(client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    served.process.terminate();
    assert!(served.process.exit(SOON).await.success());
}
