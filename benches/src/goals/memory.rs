//! Memory: of an idle server, and what leases, waiters and connections add.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use oncegate::grpc::pb::{
    self, acquire_session_lease_response::Outcome,
    idempotency_service_client::IdempotencyServiceClient,
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::{
    Bound::{AtMost, None},
    Criterion, Goal, Round, Subject,
    subjects::{self, Lazy, NO_SWEEP},
};
use crate::{bench::Bench, process, run::Run, server::Server};

type Client = IdempotencyServiceClient<Channel>;

const LEASES: usize = 10_000;
/// How many acquires are under way at once.
const ACQUIRES: usize = 64;
/// The most that wait for one session.
const QUEUE: usize = 64;
const WAITERS: usize = 1_024;
const CONNECTIONS: usize = 1_000;
/// Over how many connections leases are asked for.
const CHANNELS: usize = 8;
/// How long a server is left alone before its memory is read.
const REST: Duration = Duration::from_secs(1);

const fn kilobytes(
    what: &'static str,
    bound: super::Bound,
    figure: fn(&Round<'_>) -> anyhow::Result<f64>,
) -> Criterion {
    Criterion { what, unit: "KB", bound, figure }
}

pub const MEMORY: Goal = Goal {
    name: "P9",
    title: "memory, resident",
    full_only: false,
    criteria: &[
        Criterion {
            what: "an idle server",
            unit: "MB",
            bound: AtMost(30.0),
            figure: |round| round.figure("idle", "resident_mb"),
        },
        kilobytes("for each held lease", AtMost(1.0), |round| round.figure("leases", "each_kb")),
        kilobytes("for each waiter", AtMost(4.0), |round| round.figure("waiters", "each_kb")),
        kilobytes("for each idle connection", None, |round| round.figure("connections", "each_kb")),
    ],
    subjects: |bench| {
        Ok(vec![
            subject(bench, "idle", "oncegate: no caller yet", idle),
            subject(bench, "leases", "oncegate: 10,000 leases held", leases),
            subject(bench, "waiters", "oncegate: 1,024 callers that wait", waiters),
            subject(bench, "connections", "oncegate: 1,000 idle connections", connections),
        ])
    },
};

/// Something that is measured on a fresh server.
fn subject<'a>(
    bench: &'a Bench,
    id: &'static str,
    what: &str,
    measure: fn(&Server, &Runtime) -> anyhow::Result<Run>,
) -> Subject<'a> {
    let database = Lazy::new(bench, "");
    let run = move || {
        let server = subjects::fresh(&database, &NO_SWEEP)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        measure(&server, &runtime)
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}

/// What a server has, in bytes, once it has come to rest.
fn resident(server: &Server) -> anyhow::Result<f64> {
    thread::sleep(REST);
    process::resident(server.pid())
}

/// What `count` things have added since it was `before`.
fn growth(server: &Server, before: f64, count: usize) -> anyhow::Result<Run> {
    let after = resident(server)?;
    Ok(Run::of([
        ("each_kb", (after - before) / 1e3 / count as f64),
        ("before_mb", before / 1e6),
        ("after_mb", after / 1e6),
    ]))
}

fn idle(server: &Server, _: &Runtime) -> anyhow::Result<Run> {
    Ok(Run::of([("resident_mb", resident(server)? / 1e6)]))
}

fn leases(server: &Server, runtime: &Runtime) -> anyhow::Result<Run> {
    let clients = runtime.block_on(clients(server, CHANNELS))?;
    // What asking takes is not what holding takes: the first round gives back.
    runtime.block_on(acquire_all(&clients, "W", true))?;
    let before = resident(server)?;
    runtime.block_on(acquire_all(&clients, "L", false))?;
    growth(server, before, LEASES)
}

/// Takes every lease of `team`, a few at a time.
async fn acquire_all(clients: &[Client], team: &str, give_back: bool) -> anyhow::Result<()> {
    let workers = (0..ACQUIRES).map(|worker| {
        let mut client = clients[worker % clients.len()].clone();
        async move {
            for number in (worker..LEASES).step_by(ACQUIRES) {
                let lease = take(&mut client, team, &format!("C1:17.{number}")).await?;
                if give_back {
                    let session = session(team, &lease.session_id);
                    let lease_id = lease.lease_id;
                    let release = pb::ReleaseSessionLeaseRequest { session, lease_id };
                    client.release_session_lease(release).await?;
                }
            }
            anyhow::Ok(())
        }
    });
    try_join_all(workers).await.map(drop)
}

fn waiters(server: &Server, runtime: &Runtime) -> anyhow::Result<Run> {
    let mut clients = runtime.block_on(clients(server, CHANNELS))?;
    runtime.block_on(async {
        for number in 0..WAITERS / QUEUE {
            take(&mut clients[0], "Q", &format!("C1:17.{number}")).await?;
        }
        anyhow::Ok(())
    })?;
    let before = resident(server)?;
    // They wait in a task that ends with this scope.
    let waiting = join_all((0..WAITERS).map(|waiter| {
        let mut client = clients[waiter % clients.len()].clone();
        let wait = Some(prost_types::Duration { seconds: 600, nanos: 0 });
        let request = acquire("Q", &format!("C1:17.{}", waiter % (WAITERS / QUEUE)));
        let request = pb::AcquireSessionLeaseRequest { wait, ..request };
        async move { client.acquire_session_lease(request).await }
    }));
    runtime.block_on(async {
        tokio::select! {
            answers = waiting => bail!("a waiter was answered: {:?}", answers.first()),
            run = measure_waiters(server, before) => run,
        }
    })
}

async fn measure_waiters(server: &Server, before: f64) -> anyhow::Result<Run> {
    const WAITING: &str = "oncegate_session_waiters ";
    let until = Instant::now() + Duration::from_secs(10);
    while server.metric(WAITING)? != Some(WAITERS as f64) {
        ensure!(Instant::now() < until, "not all came to wait: {:?}", server.metric(WAITING)?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    growth(server, before, WAITERS)
}

fn connections(server: &Server, runtime: &Runtime) -> anyhow::Result<Run> {
    let before = resident(server)?;
    let _held = runtime.block_on(clients(server, CONNECTIONS))?;
    growth(server, before, CONNECTIONS)
}

async fn clients(server: &Server, count: usize) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address))?;
        clients.push(Client::new(endpoint.connect().await?));
    }
    Ok(clients)
}

#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
fn session(team: &str, id: &str) -> Option<pb::SessionKey> {
    let key = Some(pb::session_key::Key::SessionId(id.to_owned()));
    Some(pb::SessionKey { team_id: team.to_owned(), key, ..Default::default() })
}

/// For as long as the measurement can take.
fn acquire(team: &str, id: &str) -> pb::AcquireSessionLeaseRequest {
    pb::AcquireSessionLeaseRequest {
        session: session(team, id),
        holder: "bot-7d9f8b6c5-x2x7v".to_owned(),
        ttl: Some(prost_types::Duration { seconds: 900, nanos: 0 }),
        ..Default::default()
    }
}

async fn take(client: &mut Client, team: &str, id: &str) -> anyhow::Result<pb::SessionLease> {
    let answer = client.acquire_session_lease(acquire(team, id)).await?.into_inner();
    match answer.outcome.context("no outcome")? {
        Outcome::Lease(lease) => Ok(lease),
        Outcome::Held(held) => bail!("held: {held:?}"),
    }
}
