//! Tokens as they must not be, and uids.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::harness::mark;

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
