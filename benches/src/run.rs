//! One run of one load in a process of its own, and what it cost whom.

use std::{
    collections::BTreeMap,
    env,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    cluster::Cluster,
    handover,
    load::{self, Report},
    process::{self, Pid},
    rivals,
};

/// What one run of a subject came to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Run {
    /// What the load reports; nothing for a subject that is none.
    #[serde(flatten)]
    pub load: Report,
    /// What the server in question used within the measured time, in seconds of
    /// CPU.
    pub server_cpu: Option<f64>,
    /// The same, of all of PostgreSQL's processes.
    pub database_cpu: Option<f64>,
    /// What else was measured, by its name, which ends with the unit.
    pub figures: BTreeMap<&'static str, f64>,
    /// Whether a part of the load is meant to be refused.
    pub sheds: bool,
}

impl Run {
    /// A run that is no load.
    pub fn of(figures: impl IntoIterator<Item = (&'static str, f64)>) -> Self {
        Self { figures: figures.into_iter().collect(), ..Self::default() }
    }
}

/// One load for a process of its own, as its only argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// On a gRPC server.
    Grpc(load::Spec),
    /// On anything else.
    Rival(rivals::Spec),
    /// From one to the other.
    HandOver(handover::Spec),
}

impl Job {
    /// Runs it here.
    pub fn run(&self) -> anyhow::Result<Report> {
        match self {
            Self::Grpc(spec) => load::grpc::run(spec),
            Self::Rival(spec) => rivals::run(spec),
            Self::HandOver(spec) => handover::run(spec),
        }
    }

    /// How long it runs, in seconds: before it measures, and while it does.
    fn times(&self) -> (f64, f64) {
        match self {
            Self::Grpc(spec) => (spec.warmup, spec.seconds),
            Self::Rival(spec) => (spec.warmup, spec.seconds),
            Self::HandOver(spec) => (spec.warmup, spec.seconds),
        }
    }
}

/// Whose CPU is counted besides the client's.
#[derive(Clone, Copy, Default)]
pub struct Watched<'a> {
    /// The server in question.
    pub server: Option<Pid>,
    /// The PostgreSQL below it.
    pub cluster: Option<&'a Cluster>,
}

impl Watched<'_> {
    fn cpu(self) -> anyhow::Result<(Option<f64>, Option<f64>)> {
        Ok((
            self.server.map(process::cpu).transpose()?,
            self.cluster.map(Cluster::cpu).transpose()?,
        ))
    }
}

/// Runs a load.
pub fn load(job: &Job, watched: Watched<'_>) -> anyhow::Result<Run> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("load").arg(serde_json::to_string(job)?);
    report(&mut command, job.times(), watched)
}

/// Runs a load that is a Python program.
pub fn python(
    python: &Path,
    program: &str,
    spec: &rivals::Spec,
    watched: Watched<'_>,
) -> anyhow::Result<Run> {
    let mut command = Command::new(python);
    command.args(["-c", program]).arg(serde_json::to_string(spec)?);
    report(&mut command, (spec.warmup, spec.seconds), watched)
}

fn report(
    command: &mut Command,
    (warmup, seconds): (f64, f64),
    watched: Watched<'_>,
) -> anyhow::Result<Run> {
    let (output, run) = watch(command, warmup, seconds, watched)?;
    let load = serde_json::from_slice(&output.stdout).context("an odd report")?;
    Ok(Run { load, ..run })
}

/// Runs a program that is a load, and answers what it printed, and what was
/// used while it measured. Its start, some milliseconds, is taken for a part of
/// its warm-up.
pub fn watch(
    command: &mut Command,
    warmup: f64,
    seconds: f64,
    watched: Watched<'_>,
) -> anyhow::Result<(Output, Run)> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the load")?;
    pause(&mut child, begun, warmup)?;
    let (before, client_before) = (watched.cpu()?, process::cpu(child.id()));
    pause(&mut child, begun, warmup + seconds)?;
    let (after, client_after) = (watched.cpu()?, process::cpu(child.id()));
    let output = child.wait_with_output()?;
    let complaints = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "the load ended with {}: {complaints}", output.status);
    if !complaints.is_empty() {
        eprintln!("    {complaints}");
    }
    let used = |before: Option<f64>, after: Option<f64>| Some(after? - before?);
    let client_cpu = match (client_before, client_after) {
        (Ok(before), Ok(after)) => after - before,
        // It ended too soon.
        _ => f64::NAN,
    };
    let run = Run {
        load: Report { client_cpu, ..Report::default() },
        server_cpu: used(before.0, after.0),
        database_cpu: used(before.1, after.1),
        ..Run::default()
    };
    Ok((output, run))
}

/// Waits until `seconds` after `begun`, or until the load has ended too soon.
fn pause(child: &mut Child, begun: Instant, seconds: f64) -> anyhow::Result<()> {
    let until = begun + Duration::from_secs_f64(seconds);
    while Instant::now() < until && child.try_wait()?.is_none() {
        let left = until.saturating_duration_since(Instant::now());
        thread::sleep(left.min(Duration::from_millis(200)));
    }
    Ok(())
}
