//! What a server says of those that it refuses, and what it never says.

use std::{env, os::unix::process::ExitStatusExt as _, process::Command};

use oncegate::grpc::pb::{
    BindEpicRequest, CleanupRequest, admin_service_client::AdminServiceClient,
};
use serde_json::Value;

use super::{issuer::Issuer, *};
use crate::harness::{
    mark,
    metrics::{metric, metrics_page},
    process::Process,
    secrets::watch_logs,
    session,
};

const MARK: &str = "oncegate.v1.IdempotencyService/MarkProcessed";
const CLEANUP: &str = "oncegate.v1.IdempotencyService/Cleanup";

/// The audit log.
fn audited(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["target"] == "oncegate::audit").collect()
}

async fn start(file: &str, flags: &[&str]) -> (Process, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("auth.toml");
    fs::write(&path, file).unwrap();
    let mut all = vec!["--auth", path.to_str().unwrap(), "--log-format", "json"];
    all.extend(flags);
    (Process::start("memory:", &all).await, directory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_log_says_who_was_refused_what() {
    let (reader, bot, admin) = (new_token(), new_token(), new_token());
    let file = principal("reads", "reader", &["*"], &[&reader])
        + &principal("bots/acme", "bot", &["T1"], &[&bot])
        + &principal("ops", "admin", &["T1"], &[&admin]);
    let (process, _directory) = start(&file, &[]).await;
    let mut client = process.client().await;
    // Of many refusals of one principal for one reason, the first is noted.
    for _ in 0..3 {
        client.mark_processed(mark("T1", "a")).await.unwrap_err();
        client.mark_processed(with(&new_token(), mark("T1", "a"))).await.unwrap_err();
        client.mark_processed(with(&reader, mark("T1", "a"))).await.unwrap_err();
        client.mark_processed(with(&bot, mark("T2", "a"))).await.unwrap_err();
        client.cleanup(with(&bot, CleanupRequest::default())).await.unwrap_err();
    }
    let mut operator = AdminServiceClient::new(connect(&process.address).await);
    let bind = BindEpicRequest {
        session: session("T1", "s"),
        epic_id: "PROJ-1".into(),
        actor: "jane".into(),
        ..Default::default()
    };
    operator.bind_epic(with(&admin, bind)).await.unwrap();
    let lines = audited(&process.log());
    let refused = lines.iter().filter(|line| line["message"] == "call refused");
    let said: Vec<_> = refused
        .map(|line| {
            assert_eq!(line["level"], "WARN", "{line}");
            let field = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            ["principal", "peer", "method", "team", "reason"].map(field)
        })
        .collect();
    assert_eq!(
        said,
        [
            ["anonymous", "127.0.0.1", MARK, "-", "missing"],
            ["anonymous", "127.0.0.1", MARK, "-", "unknown"],
            ["reads", "127.0.0.1", MARK, "-", "role_denied"],
            ["bots/acme", "127.0.0.1", MARK, "T2", "team_denied"],
            ["bots/acme", "127.0.0.1", CLEANUP, "-", "role_denied"],
        ]
    );
    // The name that the caller gives itself stands beside the one that it has proved.
    let change = lines.iter().find(|line| line["actor"] == "jane").expect("the change");
    assert_eq!((&change["principal"], &change["team"]), (&"ops".into(), &"T1".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_calls_by_principal_and_refusals_by_reason() {
    let (token, reader, gone) = (new_token(), new_token(), new_token());
    let stays = principal("stays", "bot", &["T1"], &[&token])
        + &principal("reads", "reader", &["*"], &[&reader]);
    let file = stays.clone() + &principal("gone", "bot", &["*"], &[&gone]);
    let server = Guarded::start_with(&file, &["--ops-listen", "127.0.0.1:0"]).await;
    let mut client = server.client().await;
    client.mark_processed(with(&token, mark("T1", "a"))).await.unwrap();
    client.mark_processed(with(&token, mark("T2", "a"))).await.unwrap_err();
    client.mark_processed(with(&reader, mark("T1", "a"))).await.unwrap_err();
    client.mark_processed(with(&gone, mark("T1", "a"))).await.unwrap();
    client.mark_processed(mark("T1", "a")).await.unwrap_err();
    client.mark_processed(with(&new_token(), mark("T1", "a"))).await.unwrap_err();
    for line in [
        "oncegate_principal_calls_total{principal=\"stays\"} 2",
        "oncegate_principal_calls_total{principal=\"gone\"} 1",
        "oncegate_principal_calls_total{principal=\"reads\"} 1",
        "oncegate_refused_calls_total{reason=\"team_denied\"} 1",
        "oncegate_refused_calls_total{reason=\"role_denied\"} 1",
        "oncegate_refused_calls_total{reason=\"missing\"} 1",
        "oncegate_refused_calls_total{reason=\"unknown\"} 1",
    ] {
        metric(&server.replica, line).await;
    }
    // A name that is no longer in the file is no longer a label.
    server.replace(&stays);
    is_unauthenticated(&until_refused(&mut client, &gone).await);
    let page = metrics_page(&server.replica).await;
    assert!(!page.contains("principal=\"gone\""), "{page}");
}

/// Runs itself, and logs a secret then.
#[test]
#[expect(clippy::disallowed_methods, reason = "it asks whether it was run by itself")]
fn a_secret_in_a_log_ends_the_suite() {
    const NAME: &str = "auth::audit::a_secret_in_a_log_ends_the_suite";
    const LEAK: &str = "ONCEGATE_TEST_LEAK";
    if env::var_os(LEAK).is_some() {
        watch_logs();
        tracing::info!(secret = plant("planted-secret"), "a leak");
        return;
    }
    let mut again = Command::new(env::current_exe().unwrap());
    let ended = again.args([NAME, "--exact"]).env(LEAK, "1").output().unwrap();
    assert_eq!(ended.status.signal(), Some(6), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("planted-secret"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credential_is_logged() {
    let (issuer, keys) = (Issuer::new(), tempfile::tempdir().unwrap());
    let (token, unknown) = (new_token(), new_token());
    let file = principal("bot", "bot", &["T1"], &[&token]) + &issuer.file(&keys);
    let (process, _directory) = start(&file, &["--log", "trace"]).await;
    let now = now();
    let (jwt, foreign, expired) = (
        issuer.token(now + Duration::from_mins(5)),
        Issuer::new().token(now + Duration::from_mins(5)),
        issuer.token(now - Duration::from_mins(5)),
    );
    let password = "Ym90OnBsYW50ZWQtcGFzc3dvcmQ=";
    let mut raw = Raw::connect(&process.address).await;
    let path = format!("/{MARK}");
    let secrets = [&token, &unknown, &jwt, &foreign, &expired, password];
    for secret in secrets {
        for scheme in ["Bearer ", "bearer ", "Basic ", "", "Bearer  "] {
            let value = format!("{scheme}{secret}");
            for values in [vec![value.as_str()], vec![value.as_str(); 2]] {
                let metadata: Vec<_> =
                    values.into_iter().map(|value| ("authorization", value)).collect();
                let mut call = raw.begin(&path, &metadata).await;
                call.send(framed(&mark("T2", "a")), true);
                let code = call.status().await.code();
                assert!(matches!(code, Code::Unauthenticated | Code::PermissionDenied), "{code:?}");
                // A call with a good token: the connection is not closed for refusals.
                let good = format!("Bearer {token}");
                let mut call = raw.begin(&path, &[("authorization", good.as_str())]).await;
                call.send(framed(&mark("T1", "a")), true);
                assert_eq!(call.status().await.code(), Code::Ok);
            }
        }
    }
    let log = process.log();
    assert!(log.contains("call refused") && log.contains("\"TRACE\""), "it says too little");
    for secret in secrets {
        let digest = Digest::of(secret.as_bytes()).to_hex();
        for part in secret.split('.').chain([secret, digest.as_str()]) {
            let line = log.lines().find(|line| line.contains(part));
            assert!(line.is_none(), "{line:?}");
        }
    }
}
