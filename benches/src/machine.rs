//! What the figures were measured on: they mean nothing without it.

use std::{
    fs::{self, File},
    io::{Seek as _, Write as _},
    thread,
    time::Instant,
};

use serde::Serialize;

use crate::{bench::Bench, cluster, process};

/// Where, with what, and how it was measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The command's arguments.
    pub arguments: Vec<String>,
    /// oncegate's version, and the commit it was built from as far as that is
    /// known.
    pub oncegate: String,
    /// The processor's model.
    pub cpu: String,
    /// How many threads it runs at once.
    pub cores: usize,
    /// In gigabytes.
    pub memory_gb: f64,
    /// Linux's release.
    pub kernel: String,
    /// How PostgreSQL differs from its defaults.
    pub settings: &'static [&'static str],
    /// What else was there, by name and version.
    pub programs: Vec<(&'static str, String)>,
}

impl Machine {
    /// Looks around.
    pub fn look(bench: &Bench, arguments: Vec<String>) -> anyhow::Result<Self> {
        let repository = env!("CARGO_MANIFEST_DIR");
        let commit = process::says("git", &["-C", repository, "describe", "--always", "--dirty"]);
        let commit = commit.unwrap_or_else(|| "commit unknown".to_owned());
        let kib = field("/proc/meminfo", "MemTotal").unwrap_or_default();
        let kib: f64 = kib.trim_end_matches(" kB").parse().unwrap_or_default();
        Ok(Self {
            arguments,
            oncegate: format!("{} ({commit})", process::version(&bench.program)),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: thread::available_parallelism()?.get(),
            memory_gb: (kib * 1024.0 / 1e9).round(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            settings: cluster::SETTINGS,
            programs: bench.versions(),
        })
    }
}

/// The value of the first line of `name: value`.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// What 8 KiB to the disk cost, in microseconds, at the median: written where the
/// servers keep their data, as PostgreSQL writes its log, over what is there.
pub fn fdatasync_us() -> anyhow::Result<f64> {
    const PAGE: [u8; 8192] = [7; 8192];
    let mut file: File = tempfile::tempfile()?;
    let mut costs = Vec::new();
    for _ in 0..50 {
        file.rewind()?;
        file.write_all(&PAGE)?;
        let begun = Instant::now();
        file.sync_data()?;
        costs.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    costs.sort_by(f64::total_cmp);
    Ok(costs[costs.len() / 2])
}
