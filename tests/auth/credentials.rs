//! Tokens as they must not be, and uids.

use std::os::unix::fs::MetadataExt as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic_health::pb::HealthCheckResponse;

use super::*;
use crate::harness::{
    mark,
    web::{BINARY, Body, TEXT, answer, over},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_whole_bearer_token_counts() {
    let token = new_token();
    let server = Guarded::start(&principal("bot", "bot", &["*"], &[&token])).await;
    let path = "/oncegate.v1.IdempotencyService/MarkProcessed";
    let (good, other) = (format!("Bearer {token}"), format!("Bearer {}", new_token()));
    let mut raw = Raw::connect(server.address()).await;
    // RFC 9110 compares schemes without case; this server takes `Bearer` alone.
    let lower = format!("bearer {token}");
    let bad: Vec<Vec<&str>> = vec![
        vec![],
        vec![""],
        vec!["Bearer"],
        vec!["Bearer "],
        vec![&token],
        vec![&lower],
        vec!["Basic Ym90OmJvdA=="],
        vec![&good, &good],
        vec![&good, &other],
        vec![&other],
        vec![&good[..good.len() - 1]],
    ];
    for values in bad {
        let metadata: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
        let mut call = raw.begin(path, &metadata).await;
        call.send(framed(&()), true);
        is_unauthenticated(&call.status().await);
    }
    for bad in
        [format!("{good} "), format!("{good}\t"), format!("Bearer  {token}"), format!("{good},x")]
    {
        let mut call = raw.begin(path, &[("authorization", bad.as_str())]).await;
        call.send(framed(&()), true);
        // HTTP may have cut the spaces at its ends off.
        let status = call.status().await;
        assert!(matches!(status.code(), Code::Unauthenticated | Code::InvalidArgument), "{bad:?}");
    }
    let mut call = raw.begin(path, &[("authorization", good.as_str())]).await;
    call.send(framed(&()), true);
    assert_eq!(call.status().await.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_with_many_refusals_in_a_row_is_closed() {
    let token = new_token();
    let server = Guarded::start(&principal("bot", "bot", &["*"], &[&token])).await;
    let path = "/oncegate.v1.IdempotencyService/MarkProcessed";
    let mut raw = Raw::connect(server.address()).await;
    let mut refused = 0;
    while let Some(mut call) = raw.try_begin(path, &[]).await {
        call.send(framed(&()), true);
        let status = call.status().await;
        if status.code() != Code::Unauthenticated {
            break;
        }
        refused += 1;
        assert!(refused < 1_000, "the connection goes on");
    }
    assert!(refused >= 99, "{refused}");
    let mut client = server.client().await;
    client.mark_processed(with(&token, mark("T1", "Ev1"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_between_good_calls_do_not_close_the_connection() {
    let token = new_token();
    let server = Guarded::start(&principal("bot", "bot", &["*"], &[&token])).await;
    let path = "/oncegate.v1.IdempotencyService/MarkProcessed";
    let mut raw = Raw::connect(server.address()).await;
    let good = format!("Bearer {token}");
    for _ in 0..4 {
        for _ in 0..60 {
            let mut call = raw.begin(path, &[]).await;
            call.send(framed(&()), true);
            is_unauthenticated(&call.status().await);
        }
        let mut call = raw.begin(path, &[("authorization", good.as_str())]).await;
        call.send(framed(&()), true);
        assert_eq!(call.status().await.code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_of_a_megabyte_is_refused() {
    let token = new_token();
    let server = Guarded::start(&principal("bot", "bot", &["*"], &[&token])).await;
    let path = "/oncegate.v1.IdempotencyService/MarkProcessed";
    for size in [10_000, 17_000, 100_000, 1_000_000] {
        let mut raw = Raw::connect(server.address()).await;
        let long = format!("Bearer {token}{}", "a".repeat(size));
        let Some(mut call) = raw.try_begin(path, &[("authorization", long.as_str())]).await else {
            continue;
        };
        call.send(framed(&mark("T1", "Ev1")), true);
        let status = call.status().await;
        assert_ne!(status.code(), Code::Ok, "{size}");
    }
    let mut client = server.client().await;
    assert!(
        client.mark_processed(with(&token, mark("T1", "Ev1"))).await.unwrap().into_inner().first
    );
}

/// Over HTTP/1.1, in which a header is what is between its colon and its line's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_bytes_in_a_header_are_refused() {
    let token = new_token();
    let server = Guarded::start(&principal("bot", "bot", &["*"], &[&token])).await;
    let body = framed(&mark("T1", "Ev1"));
    for (value, is_good) in [
        (format!("Bearer {token}"), true),
        (format!("Bearer {token}\0"), false),
        (format!("Bearer {token}\x07"), false),
        (format!("Bearer \x1b{token}"), false),
        (format!("Bearer {token}\x7f"), false),
        (format!("Bearer {token}\rx: y"), false),
        (format!("Bearer {token}\r\n folded"), false),
        (format!("Bearer\t{token}"), false),
        (format!("Bearer {token}\u{85}"), false),
    ] {
        let head = format!(
            "POST /oncegate.v1.IdempotencyService/MarkProcessed HTTP/1.1\r\nHost: x\r\n\
             Content-Type: application/grpc-web+proto\r\nAuthorization: {value}\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = posted(&server, &[head.as_bytes(), &body].concat()).await;
        let is_ok = answer.starts_with("HTTP/1.1 200") && answer.contains("grpc-status:0");
        assert_eq!(is_ok, is_good, "{value:?}: {answer}");
        let is_refused = answer.starts_with("HTTP/1.1 400") || answer.contains("grpc-status:16");
        assert_ne!(is_ok, is_refused, "{value:?}: {answer}");
    }
}

/// The status of a call of gRPC-Web is in the body of an HTTP 200.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_web_needs_a_credential_too() {
    let token = new_token();
    let server = Guarded::start(&principal("bot", "bot", &["*"], &[&token])).await;
    let Address::Tcp(address) = *server.address() else { panic!("not TCP") };
    let mut requests = over(TcpStream::connect(address).await.unwrap()).await;
    let (path, good) = ("/oncegate.v1.IdempotencyService/MarkProcessed", format!("Bearer {token}"));
    let (health, marked) = ("/grpc.health.v1.Health/Check", framed(&mark("T1", "Ev1")));
    for kind in [BINARY, TEXT] {
        for (path, message, credential) in
            [(path, &marked, None), (path, &marked, Some(&good)), (health, &framed(&()), None)]
        {
            let body = if kind == TEXT { STANDARD.encode(message).into() } else { message.clone() };
            let mut request =
                http::Request::post(path).header("host", "x").header("content-type", kind);
            if let Some(value) = credential {
                request = request.header("authorization", value);
            }
            requests.ready().await.unwrap();
            let answering = requests.send_request(request.body(Body::from(body)).unwrap());
            let answered = timeout(PATIENCE, answering).await.unwrap().unwrap().map(Body::new);
            // It checks that HTTP says 200, and has no status of gRPC.
            let (message, status) = answer::<HealthCheckResponse>(answered).await;
            if path == health || credential.is_some() {
                assert_eq!(status.code(), Code::Ok, "{kind} {path}: {status:?}");
                assert!(message.is_some());
            } else {
                is_unauthenticated(&status);
                assert!(message.is_none());
            }
        }
    }
}

/// What is answered to a request over HTTP/1.1.
async fn posted(server: &Guarded, request: &[u8]) -> String {
    let Address::Tcp(address) = *server.address() else { panic!("not TCP") };
    let mut peer = TcpStream::connect(address).await.unwrap();
    peer.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, peer.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uid_names_its_principal_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let uid = fs::metadata(directory.path()).unwrap().uid();
    let listen = format!("unix:{}", directory.path().join("s").display());
    let by_uid = |uid: u32| {
        format!(
            "[[principal]]\nname = \"u\"\nrole = \"bot\"\nteams = [\"T1\"]\nunix_uid = [{uid}]\n"
        )
    };
    let server = Guarded::start_with(&by_uid(uid), &["--listen", &listen]).await;
    let mut client = server.client().await;
    assert!(client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    let denied = client.mark_processed(mark("T2", "Ev1")).await.unwrap_err();
    assert_eq!(reason(&denied), "TEAM_DENIED");
    // Not even uid 0 is known unless the file names it.
    server.replace(&by_uid(uid + 1));
    let mut last = None;
    for _ in 0..1_000 {
        match client.mark_processed(mark("T1", "Ev2")).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(status) => {
                last = Some(status);
                break;
            }
        }
    }
    is_unauthenticated(&last.expect("refused"));
}
