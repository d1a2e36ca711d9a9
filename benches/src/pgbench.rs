//! pgbench, PostgreSQL's own load: single inserts, prepared, from C.

use std::{io::Write as _, path::Path, process::Command};

use anyhow::{Context as _, ensure};

use crate::{
    cluster::Database,
    load::Report,
    run::{Run, Watched, watch},
};

/// New events, their ids rising with time over all clients. Variables stay with
/// a client from one transaction to the next.
const SCRIPT: &str = r"
\set count :count + 1
\set team :client_id % 8
\set id :seed * 1000 + :count * 64 + :client_id
INSERT INTO processed_events (team_id, event_id) VALUES (:team, :id) ON CONFLICT DO NOTHING;
";

const COUNT: &str = "SELECT count(*) FROM processed_events";

/// One load by pgbench.
pub struct Spec<'a> {
    pub program: &'a Path,
    pub database: &'a Database<'a>,
    pub clients: usize,
    /// How long, in seconds; pgbench knows only whole ones.
    pub seconds: f64,
    pub warmup: f64,
    /// In microseconds, rising from load to load.
    pub seed: u64,
}

/// Runs the load, and reports. Of the latencies pgbench tells only the mean.
pub fn run(spec: &Spec<'_>, watched: Watched<'_>) -> anyhow::Result<Run> {
    let mut script = tempfile::NamedTempFile::new()?;
    script.write_all(SCRIPT.as_bytes())?;
    let start = |seconds: f64, seed: u64| {
        let seconds = seconds.ceil().max(1.0);
        let mut command = Command::new(spec.program);
        command
            .args(["-n", "-M", "prepared", "-j", "2", "-D", "count=0"])
            .args(["-D", &format!("seed={seed}")])
            .args(["-c", &spec.clients.to_string()])
            .args(["-T", &seconds.to_string()])
            .arg("-f")
            .arg(script.path())
            .arg(&spec.database.url);
        watch(&mut command, 0.0, seconds, watched)
    };
    if spec.warmup > 0.0 {
        start(spec.warmup, spec.seed)?;
    }
    let before = spec.database.number(COUNT)?;
    // The seed must not meet the warm-up's ids.
    let (output, run) = start(spec.seconds, spec.seed + 100_000_000)?;
    let inserted = spec.database.number(COUNT)? - before;
    let said = String::from_utf8_lossy(&output.stdout);
    let load = Report { client_cpu: run.load.client_cpu, ..read(&said, inserted)? };
    let mean = field(&said, "latency average = ")?;
    Ok(Run { load, figures: [("mean_ms", mean)].into(), ..run })
}

fn read(said: &str, inserted: u64) -> anyhow::Result<Report> {
    let done = field::<u64>(said, "number of transactions actually processed: ")?;
    ensure!(done > 0, "pgbench did nothing: give it more --seconds");
    let rate: f64 = field(said, "tps = ")?;
    let failed = field(said, "number of failed transactions: ").unwrap_or(0);
    Ok(Report {
        done,
        failed,
        // Of the inserts, those that met a row.
        wrong: done.abs_diff(inserted),
        seconds: done as f64 / rate,
        rate,
        ..Report::default()
    })
}

/// The number that follows `name`.
fn field<T: std::str::FromStr>(said: &str, name: &str) -> anyhow::Result<T> {
    let value = said.lines().find_map(|line| line.strip_prefix(name));
    let value = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("pgbench does not say {name:?}"))
}
