//! A service account's token, until it expires.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use oncegate::grpc::pb::{AcquireSessionLeaseRequest, HoldSessionLeaseRequest};
use oncegate::server::Server;
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::harness::{acquire, config, mark, metrics::metric, seconds, session};

const URL: &str = "https://issuer.test";
/// How long a token is accepted after its `exp`.
const LEEWAY: u64 = 60;
/// What the metrics say while a part of the files is not in use.
const STALE: &str = "oncegate_config_stale{what=\"auth\"} 1";

/// What signs tokens of the service account `bots/acme`.
pub(super) struct Issuer(Ed25519KeyPair);

impl Issuer {
    pub(super) fn new() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap())
    }

    /// A file in which its service account is the principal `pod`. It names the set of keys, which
    /// is put into `directory`.
    pub(super) fn file(&self, directory: &TempDir) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
        let keys = json!({"keys": [{"kty": "OKP", "kid": "1", "crv": "Ed25519", "x": x}]});
        let jwks = directory.path().join("jwks.json");
        fs::write(&jwks, keys.to_string()).unwrap();
        format!(
            "[[principal]]\nname = \"pod\"\nrole = \"bot\"\nteams = [\"T1\"]\n\
             service_account = [\"bots/acme\"]\n\
             [jwt.cluster]\nissuer = {URL:?}\naudience = \"oncegate\"\njwks = \"{}\"\n",
            jwks.display()
        )
    }

    /// A token that is accepted until `until`.
    pub(super) fn token(&self, until: SystemTime) -> String {
        let exp = until.duration_since(UNIX_EPOCH).unwrap().as_secs() - LEEWAY;
        let claims = json!({
            "iss": URL,
            "aud": ["oncegate"],
            "sub": "system:serviceaccount:bots:acme",
            "iat": exp - 600,
            "exp": exp,
            "kubernetes.io": {"namespace": "bots", "serviceaccount": {"name": "acme"}},
        });
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": "EdDSA", "kid": "1"}).to_string());
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()));
        format!("{signed}.{}", plant(signature))
    }
}

/// The system's clock ends a token: no other could be set without a way around the check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_token_allowed_ends_as_it_expires() {
    let (issuer, keys) = (Issuer::new(), tempfile::tempdir().unwrap());
    let server = Guarded::start(&issuer.file(&keys)).await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    // Whole seconds.
    let until = now() + Duration::from_secs(5);
    let token = issuer.token(until);
    client.mark_processed(with(&token, mark("T1", "a"))).await.unwrap();
    let request = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "a".into(),
        ..Default::default()
    };
    let mut holding = client.hold_session_lease(with(&token, request)).await.unwrap().into_inner();
    holding.message().await.unwrap().unwrap();
    let waits = AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "s", "b") };
    let waiting = {
        let token = token.clone();
        tokio::spawn(async move { other.acquire_session_lease(with(&token, waits)).await })
    };
    let ended = async {
        loop {
            if let Err(status) = holding.message().await {
                break status;
            }
        }
    };
    is_unauthenticated(&timeout(PATIENCE, ended).await.unwrap());
    assert!(now() + Duration::from_secs(1) >= until, "before its time");
    match timeout(PATIENCE, waiting).await.unwrap().unwrap() {
        Err(status) => is_unauthenticated(&status),
        // The lease that the stream held came first.
        Ok(answer) => assert!(answer.into_inner().outcome.is_some()),
    }
    // On the connection that has shown it before.
    is_unauthenticated(&client.mark_processed(with(&token, mark("T1", "b"))).await.unwrap_err());
    let renewed = issuer.token(now() + Duration::from_mins(5));
    client.mark_processed(with(&renewed, mark("T1", "c"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_set_that_cannot_be_used_keeps_its_keys_and_delays_no_revocation() {
    let (issuer, keys, revoked) = (Issuer::new(), tempfile::tempdir().unwrap(), new_token());
    let file = issuer.file(&keys);
    let both = principal("gone", "bot", &["T1"], &[&revoked]) + &file;
    let server = Guarded::start_with(&both, &["--ops-listen", "127.0.0.1:0"]).await;
    let mut client = server.client().await;
    client.mark_processed(with(&revoked, mark("T1", "a"))).await.unwrap();
    let pod = issuer.token(now() + Duration::from_mins(5));
    for spoil in [
        |path: &Path| fs::write(path, "{").unwrap(),
        |path: &Path| {
            fs::remove_file(path).unwrap();
        },
    ] {
        spoil(&keys.path().join("jwks.json"));
        server.replace(&both);
        client.mark_processed(with(&pod, mark("T1", "b"))).await.unwrap();
    }
    server.replace(&file);
    is_unauthenticated(&until_refused(&mut client, &revoked).await);
    client.mark_processed(with(&pod, mark("T1", "c"))).await.unwrap();
    metric(&server.replica, STALE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_issuer_whose_key_set_cannot_be_used_delays_no_revocation() {
    let (issuer, keys) = (Issuer::new(), tempfile::tempdir().unwrap());
    let (kept, revoked) = (new_token(), new_token());
    let stays = principal("kept", "bot", &["T1"], &[&kept]);
    let both = stays.clone() + &principal("gone", "bot", &["T1"], &[&revoked]);
    let server = Guarded::start_with(&both, &["--ops-listen", "127.0.0.1:0"]).await;
    let mut client = server.client().await;
    client.mark_processed(with(&revoked, mark("T1", "a"))).await.unwrap();
    let with_issuer = stays + &issuer.file(&keys);
    let set = keys.path().join("jwks.json");
    let good = fs::read(&set).unwrap();
    fs::write(&set, "{").unwrap();
    server.replace(&with_issuer);
    is_unauthenticated(&until_refused(&mut client, &revoked).await);
    metric(&server.replica, STALE).await;
    // Without keys, no token is one of that issuer.
    let pod = issuer.token(now() + Duration::from_mins(5));
    is_unauthenticated(&client.mark_processed(with(&pod, mark("T1", "b"))).await.unwrap_err());
    client.mark_processed(with(&kept, mark("T1", "c"))).await.unwrap();
    fs::write(&set, good).unwrap();
    server.replica.server.reloader().reload();
    metric(&server.replica, &STALE.replace("} 1", "} 0")).await;
    client.mark_processed(with(&pod, mark("T1", "d"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_does_not_start_with_a_key_set_that_cannot_be_used() {
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("auth.toml");
    fs::write(&file, Issuer::new().file(&keys)).unwrap();
    fs::write(keys.path().join("jwks.json"), "{").unwrap();
    let flags = ["--auth", file.to_str().unwrap()];
    let error = Server::start(config("memory:", &flags), Clock::Store).await.err();
    let error = format!("{:#}", error.expect("it starts"));
    assert!(error.contains("--auth: cannot use all of "), "{error}");
    assert!(error.contains("auth.toml: jwt.cluster: jwks: line 1"), "{error}");
}
