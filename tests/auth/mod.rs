//! Who may call what: servers with `--auth`, over real gRPC.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use oncegate::{
    auth::token::{self, Digest},
    config::Address,
    grpc::pb,
    store::Clock,
};
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use tempfile::TempDir;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::harness::{
    Client, Replica, connect,
    raw::{Raw, framed},
    secrets::plant,
};

mod audit;
mod credentials;
mod issuer;
mod limits;
mod revoked;
mod roles;
mod teams;

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server with an `--auth` file, in memory.
struct Guarded {
    replica: Replica,
    file: PathBuf,
    directory: TempDir,
}

impl Guarded {
    /// Serves the principals of `file`.
    async fn start(file: &str) -> Self {
        Self::start_with(file, &[]).await
    }

    async fn start_with(text: &str, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("auth.toml");
        fs::write(&file, text).unwrap();
        let mut all = vec!["--auth", file.to_str().unwrap(), "--reload-interval", "1h"];
        all.extend(flags);
        let replica = Replica::start("memory:", Clock::Store, &all).await;
        Self { replica, file, directory }
    }

    fn address(&self) -> &Address {
        self.replica.server.address()
    }

    async fn client(&self) -> Client {
        Client::new(connect(self.address()).await)
    }

    /// Replaces the file, and has it read.
    fn replace(&self, text: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &self.file).unwrap();
        self.replica.server.reloader().reload();
    }
}

/// A `[[principal]]` with the token.
fn principal(name: &str, role: &str, teams: &[&str], tokens: &[&str]) -> String {
    let digests: Vec<_> =
        tokens.iter().map(|token| Digest::of(token.as_bytes()).to_hex()).collect();
    format!(
        "[[principal]]\nname = {name:?}\nrole = {role:?}\nteams = {teams:?}\ntoken_sha256 = {digests:?}\n"
    )
}

fn new_token() -> String {
    plant(token::generate().unwrap())
}

/// A request with a token.
fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

/// Every method of the contract.
fn methods() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// How a call of `path` ends that sends one message.
async fn call(
    raw: &mut Raw,
    path: &str,
    authorization: Option<&str>,
    message: &DynamicMessage,
) -> Status {
    let metadata: Vec<_> =
        authorization.map(|value| ("authorization", value)).into_iter().collect();
    let mut call = raw.begin(path, &metadata).await;
    call.send(framed(message), true);
    call.status().await
}

/// The same over any connection, again and again until it is refused.
async fn until_refused(client: &mut Client, token: &str) -> Status {
    for call in 0..3_000 {
        let request = with(token, crate::harness::mark("T1", &format!("again-{call}")));
        if let Err(status) = client.mark_processed(request).await {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it is still accepted");
}

/// The time by which tokens expire.
#[expect(clippy::disallowed_methods, reason = "a token expires by the machine's clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// The reason of an error.
fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

fn is_unauthenticated(status: &Status) {
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert_eq!((status.message(), reason(status).as_str()), ("unauthenticated", "UNAUTHENTICATED"));
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert!(info.metadata.is_empty() && details.bad_request().is_none(), "{status:?}");
}
