//! Client certificates.

use std::time::Duration;

use oncegate::grpc::pb::HoldSessionLeaseRequest;
use rcgen::ExtendedKeyUsagePurpose;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::{call, call_over, serve};
use crate::harness::{
    Client, Replica,
    certs::{Authority, Files, Pair, client, named, self_signed, valid},
    mark,
    metrics::{metric, metrics_page},
    session,
};

const PATIENCE: Duration = Duration::from_secs(10);
const COMPLETED_NONE: &str =
    "oncegate_tls_handshakes_total{listener=\"grpc\",outcome=\"completed\"} 0";

/// Waits until the server has refused so many clients for their certificates, or more: clients try again.
async fn refused_certificates(replica: &Replica, least: usize) {
    let name = r#"oncegate_tls_handshakes_total{listener="grpc",outcome="client_certificate"} "#;
    let until = Instant::now() + PATIENCE;
    loop {
        let page = metrics_page(replica).await;
        let count = page.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        if count.parse::<usize>().unwrap() >= least {
            return;
        }
        assert!(Instant::now() < until, "{count} of {least}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Certificates that must not be accepted, each with what is wrong with it.
fn bad(files: &Files) -> Vec<(&'static str, Pair)> {
    let params = client("bot");
    let mut server_only = client("bot");
    server_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut without_intermediate = files.clients.intermediate("in between").sign(&params);
    let own_end = without_intermediate.chain.find("-----END CERTIFICATE-----\n").unwrap();
    without_intermediate.chain.truncate(own_end + "-----END CERTIFICATE-----\n".len());
    // The same name does not make it the same authority.
    let namesake = Authority::new("clients");
    vec![
        ("expired", files.clients.sign(&valid(2020, 2021, params.clone()))),
        ("not yet valid", files.clients.sign(&valid(2080, 2090, params.clone()))),
        ("another authority", files.servers.sign(&params)),
        ("an authority of the same name", namesake.sign(&params)),
        ("self-signed", self_signed(&params)),
        ("for servers only", files.clients.sign(&server_only)),
        ("without its intermediate", without_intermediate),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_valid_client_certificate_is_accepted() {
    let files = Files::new();
    let replica = serve(&files.mutual("required"), &[]).await;
    let bad = bad(&files);
    for (what, pair) in &bad {
        call(&files, &replica, Some(pair)).await.expect_err(what);
    }
    call(&files, &replica, None).await.expect_err("none");
    // The server says why: with TLS 1.3 a client has ended its own part of the handshake before it is
    // refused, and may see no more than a connection that is lost.
    refused_certificates(&replica, 1 + bad.len()).await;
    // Nobody got past the handshake, however often the clients tried.
    metric(&replica, COMPLETED_NONE).await;
    // The same checks accept what is right: with an intermediate, and without a purpose, which
    // RFC 5280 takes for any.
    let intermediate = files.clients.intermediate("in between");
    for good in [
        files.clients.sign(&client("bot")),
        intermediate.sign(&client("bot")),
        files.clients.sign(&named("bot")),
    ] {
        call(&files, &replica, Some(&good)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_optional_certificate_may_be_missing_but_not_wrong() {
    let files = Files::new();
    let replica = serve(&files.mutual("optional"), &[]).await;
    call(&files, &replica, None).await.unwrap();
    call(&files, &replica, Some(&files.clients.sign(&client("bot")))).await.unwrap();
    for (what, pair) in bad(&files) {
        call(&files, &replica, Some(&pair)).await.expect_err(what);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_once_the_authorities_no_longer_accept_its_client() {
    let files = Files::new();
    let other = Authority::new("others");
    files.put("client-ca.pem", &(files.clients.pem() + &other.pem()));
    let replica = serve(&files.mutual("optional"), &[]).await;
    let address = replica.server.address();
    let [leaving, staying] = [files.clients.sign(&client("a")), other.sign(&client("b"))];
    let channels = [
        files.connect(address, Some(&leaving)).await,
        files.connect(address, Some(&staying)).await,
    ];
    let hold = |holder: &str| HoldSessionLeaseRequest {
        session: session("T1", holder),
        holder: holder.into(),
        ..Default::default()
    };
    let mut streams = Vec::new();
    for (channel, holder) in channels.iter().zip(["a", "b"]) {
        let stream = Client::new(channel.clone()).hold_session_lease(hold(holder)).await.unwrap();
        let mut stream = stream.into_inner();
        stream.message().await.unwrap().unwrap();
        streams.push(stream);
    }
    files.put("client-ca.pem", &other.pem());
    replica.server.reloader().reload();
    // The stream of the one ends as in a drain: its lease stays, for it to come back with another
    // certificate.
    let ended = async {
        loop {
            match streams[0].message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a status"),
                Err(status) => return status,
            }
        }
    };
    let status = timeout(PATIENCE, ended).await.expect("it goes on");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let until = Instant::now() + PATIENCE;
    // The connection itself ends; a new one is refused.
    while call_over(channels[0].clone()).await.is_ok() {
        assert!(Instant::now() < until, "it is still served");
        sleep(Duration::from_millis(20)).await;
    }
    call(&files, &replica, Some(&leaving)).await.expect_err("its authority is gone");
    // The other was not disturbed.
    call_over(channels[1].clone()).await.unwrap();
    assert!(timeout(Duration::from_millis(50), streams[1].message()).await.is_err());
    call(&files, &replica, Some(&staying)).await.unwrap();
    call(&files, &replica, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_does_not_outlive_the_authority() {
    let files = Files::new();
    let replica = serve(&files.mutual("required"), &[]).await;
    let address = replica.server.address();
    let pair = files.clients.sign(&client("bot"));
    // The same configuration each time, so that it has the tickets of the first connection.
    let endpoint = files.endpoint(address, Some(&pair));
    let mut client = Client::new(endpoint.connect().await.unwrap());
    client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    files.put("client-ca.pem", &Authority::new("others").pem());
    replica.server.reloader().reload();
    let line = "oncegate_reload_total{what=\"tls\",outcome=\"applied\"} 1";
    metric(&replica, line).await;
    let again = async { call_over(endpoint.connect().await.unwrap()).await };
    again.await.expect_err("the ticket was taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "a certificate expires by the machine's clock")]
async fn a_ticket_does_not_outlive_the_certificate() {
    let files = Files::new();
    let replica = serve(&files.mutual("required"), &[]).await;
    let address = replica.server.address();
    // It expires while the test runs.
    let mut params = client("bot");
    let left = Duration::from_secs(3);
    params.not_after = (std::time::SystemTime::now() + left).into();
    let pair = files.clients.sign(&params);
    let endpoint = files.endpoint(address, Some(&pair));
    call_over(endpoint.connect().await.unwrap()).await.unwrap();
    sleep(left + Duration::from_secs(1)).await;
    let again = async { call_over(endpoint.connect().await.map_err(drop)?).await.map_err(drop) };
    again.await.expect_err("the ticket was taken");
    // That of before.
    let line = "oncegate_tls_handshakes_total{listener=\"grpc\",outcome=\"completed\"} 1";
    metric(&replica, line).await;
}
