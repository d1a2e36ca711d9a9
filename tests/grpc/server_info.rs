//! What a server says of itself, and the version in every response.

use std::time::Duration;

use http::{HeaderMap, Request};
use oncegate::grpc::pb::{
    GetServerInfoRequest, HoldSessionLeaseRequest, server_service_client::ServerServiceClient,
};
use tonic::body::Body;
use tower::ServiceExt as _;

use super::{SERVICE, channel, post};
use crate::harness::{
    Fixture, Replica, connect, execute, mark, postgres, raw::framed, seconds, session,
};

const HEADER: &str = "oncegate-version";

#[tokio::test]
async fn a_server_describes_itself_also_without_its_store() {
    let mut cluster = tokio::task::spawn_blocking(postgres::Cluster::start).await.unwrap();
    let flags = ["--max-hold", "2h", "--call-timeout", "7s"];
    let replica = Replica::start(&cluster.url(), oncegate::store::Clock::Store, &flags).await;
    tokio::task::spawn_blocking(move || cluster.stop()).await.unwrap();
    let mut client = ServerServiceClient::new(connect(replica.server.address()).await);
    let asked = client.get_server_info(GetServerInfoRequest {});
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap().unwrap();
    let info = answer.into_inner();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    let limits = info.limits.unwrap();
    assert_eq!((limits.max_hold, limits.call_timeout), (seconds(7_200), seconds(7)));
    assert_eq!((limits.max_id_bytes, limits.max_batch_items), (512, 1_000));
    assert_eq!((limits.max_request_bytes, limits.max_result_bytes), (1 << 20, 64 << 10));
    assert_eq!((limits.max_payload_bytes, limits.max_detail_bytes), (256 << 10, 2 << 10));
    assert_eq!((limits.max_aliases, limits.max_waiters_per_session), (8, 64));
    assert_eq!((limits.max_event_ttl, limits.max_claim_ttl), (seconds(2_592_000), seconds(3_600)));
    assert_eq!((limits.max_lease_ttl, limits.max_wait), (seconds(900), seconds(600)));
    let features = [
        "turns",
        "streams.resume",
        "grpc-web",
        "consumer",
        "platform.slack",
        "platform.github",
        "platform.discord",
        "platform.telegram",
        "platform.teams",
        "platform.stripe",
        "platform.standard-webhooks",
    ];
    assert_eq!(info.features, features);
}

#[tokio::test]
async fn every_response_carries_the_version() {
    let f = Fixture::sqlite().await;
    let channel = channel(&f).await;
    let has_version = |headers: &HeaderMap, what: &str| {
        let version = headers.get(HEADER).unwrap_or_else(|| panic!("{what}: {headers:?}"));
        assert_eq!(version, env!("CARGO_PKG_VERSION"), "{what}");
    };
    let hold = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "a".into(),
        ..Default::default()
    };
    for (path, kind, body) in [
        (format!("/{SERVICE}/MarkProcessed"), "application/grpc", framed(&mark("T1", "Ev1"))),
        (format!("/{SERVICE}/MarkProcessed"), "application/grpc", framed(&mark("", ""))),
        (format!("/{SERVICE}/MarkProcessed"), "application/grpc", vec![0, 0, 0, 0, 1, 0xff]),
        (format!("/{SERVICE}/MarkProcessed"), "text/plain", Vec::new()),
        (format!("/{SERVICE}/HoldSessionLease"), "application/grpc", framed(&hold)),
        (format!("/{SERVICE}/Nothing"), "application/grpc", Vec::new()),
        ("/grpc.health.v1.Health/Check".into(), "application/grpc", vec![0; 5]),
        (
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".into(),
            "application/grpc",
            vec![0; 5],
        ),
    ] {
        let response = post(&channel, &path, kind, body).await;
        has_version(response.headers(), &path);
    }
    execute(&f.url, "ALTER TABLE processed_events RENAME TO elsewhere").await;
    let body = Body::new(axum::body::Body::from(framed(&mark("T1", "Ev1"))));
    let request = Request::post(format!("/{SERVICE}/MarkProcessed"));
    let request = request.header("content-type", "application/grpc").body(body).unwrap();
    has_version(channel.oneshot(request).await.unwrap().headers(), "an error of the store");
}
