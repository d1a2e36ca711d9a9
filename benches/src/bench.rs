//! What all goals are measured with.

use std::{
    cell::Cell,
    path::PathBuf,
    time::{Instant, SystemTime},
};

use anyhow::Context as _;

use crate::{
    cluster::Cluster,
    handover, load, peers,
    peers::Peer,
    process, rivals,
    run::{Job, Run, Watched},
    server::{self, Server},
};

/// How long the loads run, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Before they measure.
    pub warmup: f64,
    /// While they do.
    pub seconds: f64,
}

/// How marks come and go in the goal about the size of the table.
#[derive(Debug, Clone, Copy)]
pub struct Churn {
    /// How often.
    pub rounds: usize,
    /// How many, each time.
    pub marks: u64,
    /// How long they live, in seconds.
    pub ttl_s: i64,
}

/// The private servers, and the clock that keeps loads apart.
pub struct Bench {
    /// The release build of oncegate.
    pub program: PathBuf,
    /// PostgreSQL.
    pub cluster: Cluster,
    redis: Result<Peer, String>,
    etcd: Result<Peer, String>,
    python: Result<PathBuf, String>,
    pgbench: Result<PathBuf, String>,
    /// How long the loads run.
    pub times: Times,
    /// How marks come and go.
    pub churn: Churn,
    begun: Instant,
    /// Microseconds since 1970 at `begun`.
    epoch: u64,
    last_seed: Cell<u64>,
}

/// A program that is there, or why it is not.
fn there<T>(program: &Result<T, String>) -> anyhow::Result<&T> {
    program.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

impl Bench {
    /// Starts whatever is there to be measured.
    #[expect(clippy::disallowed_methods, reason = "keys hold the time as the platforms' ids do")]
    pub fn start(times: Times, churn: Churn) -> anyhow::Result<Self> {
        let program = server::build().context("build oncegate")?;
        let cluster = Cluster::start().context("start PostgreSQL")?;
        let own = cluster.programs().join("pgbench");
        let pgbench = if own.exists() { Ok(own) } else { process::find("pgbench") };
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
        Ok(Self {
            program,
            cluster,
            redis: peers::redis(),
            etcd: peers::etcd(),
            python: python(),
            pgbench,
            times,
            churn,
            begun: Instant::now(),
            epoch: u64::try_from(epoch)?,
            last_seed: Cell::new(0),
        })
    }

    /// Starts oncegate on the store at `url`, with further `flags`.
    pub fn serve(&self, url: &str, flags: &[&str]) -> anyhow::Result<Server> {
        Server::start(&self.program, url, flags)
    }

    /// Redis.
    ///
    /// # Errors
    /// Why there is none.
    pub fn redis(&self) -> anyhow::Result<&Peer> {
        there(&self.redis)
    }

    /// etcd.
    ///
    /// # Errors
    /// Why there is none.
    pub fn etcd(&self) -> anyhow::Result<&Peer> {
        there(&self.etcd)
    }

    /// A Python that has asyncpg.
    ///
    /// # Errors
    /// Why there is none.
    pub fn python(&self) -> anyhow::Result<&PathBuf> {
        there(&self.python)
    }

    /// pgbench.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pgbench(&self) -> anyhow::Result<&PathBuf> {
        there(&self.pgbench)
    }

    /// Rises from load to load by the microseconds between them, or more.
    pub fn seed(&self) -> u64 {
        let now = self.epoch + u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let seed = now.max(self.last_seed.get() + 1);
        self.last_seed.set(seed);
        seed
    }

    /// Runs a load on the gRPC server at `target`.
    pub fn grpc(&self, target: &str, load: GrpcLoad, watched: Watched<'_>) -> anyhow::Result<Run> {
        self.replicas(&[target], load, watched)
    }

    /// Runs a load on the gRPC servers at `targets`.
    pub fn replicas(
        &self,
        targets: &[&str],
        load: GrpcLoad,
        watched: Watched<'_>,
    ) -> anyhow::Result<Run> {
        crate::run::load(&Job::Grpc(self.load(targets, load)), watched)
    }

    /// A load on the gRPC servers at `targets`.
    pub fn load(&self, targets: &[&str], load: GrpcLoad) -> load::Spec {
        let Times { warmup, seconds } = self.times;
        let GrpcLoad { work, connections, callers, items, timeout_ms, team } = load;
        let targets = targets.iter().map(|&target| target.to_owned()).collect();
        let seed = self.seed();
        load::Spec {
            targets,
            work,
            connections,
            callers,
            items,
            seconds,
            warmup,
            timeout_ms,
            team,
            seed,
            most: None,
            ttl_s: None,
            access: load::Access::default(),
        }
    }

    /// Has a session handed over between `targets`.
    pub fn hand_over(
        &self,
        way: handover::Way,
        targets: [&str; 2],
        watched: Watched<'_>,
    ) -> anyhow::Result<Run> {
        let Times { warmup, seconds } = self.times;
        let (targets, seed) = (targets.map(str::to_owned), self.seed());
        let spec = handover::Spec { targets, way, seconds, warmup, seed };
        crate::run::load(&Job::HandOver(spec), watched)
    }

    /// A load on a rival.
    pub fn rival(&self, target: &str, load: RivalLoad) -> rivals::Spec {
        let Times { warmup, seconds } = self.times;
        let RivalLoad { work, connections, callers, items } = load;
        let (target, seed) = (target.to_owned(), self.seed());
        rivals::Spec { target, work, connections, callers, items, seconds, warmup, seed }
    }

    /// What there is, by name and version; what there is not, and why.
    pub fn versions(&self) -> Vec<(&'static str, String)> {
        let peer = |peer: &Result<Peer, String>| match peer {
            Ok(peer) => peer.version.clone(),
            Err(error) => format!("MISSING: {error}"),
        };
        let program = |program: &Result<PathBuf, String>, version: fn(&PathBuf) -> String| {
            program.as_ref().map_or_else(|error| format!("MISSING: {error}"), version)
        };
        vec![
            ("PostgreSQL", self.cluster.version().to_owned()),
            ("pgbench", program(&self.pgbench, |program| process::version(program))),
            ("Redis", peer(&self.redis)),
            ("etcd", peer(&self.etcd)),
            ("Python", program(&self.python, |python| versions(python).unwrap_or_default())),
        ]
    }
}

const PYTHON_VERSIONS: &str = "import asyncpg, platform; \
    print(platform.python_version(), 'with asyncpg', asyncpg.__version__)";

/// Those of Python and of asyncpg.
fn versions(python: &PathBuf) -> Option<String> {
    process::says(python, &["-c", PYTHON_VERSIONS])
}

fn python() -> Result<PathBuf, String> {
    let python = process::find("python3")?;
    if versions(&python).is_none() {
        return Err("python3 has no asyncpg".to_owned());
    }
    Ok(python)
}

/// What a load on a gRPC server does.
#[derive(Debug, Clone, Copy)]
pub struct GrpcLoad {
    pub work: load::Work,
    pub connections: usize,
    pub callers: usize,
    pub items: usize,
    pub timeout_ms: Option<u64>,
    /// Whose keys they are, see [`load::Spec::team`].
    pub team: Option<usize>,
}

impl GrpcLoad {
    /// Callers over up to eight connections, each asking for one thing at a
    /// time, without a deadline.
    pub const fn new(work: load::Work, callers: usize) -> Self {
        let connections = if callers < 8 { callers } else { 8 };
        Self { work, connections, callers, items: 1, timeout_ms: None, team: None }
    }
}

/// What a load on a rival does.
#[derive(Debug, Clone, Copy)]
pub struct RivalLoad {
    pub work: rivals::Work,
    pub connections: usize,
    pub callers: usize,
    pub items: usize,
}
