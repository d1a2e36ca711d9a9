//! The real oncegate, as an operator runs it.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{
    http,
    process::{self, Guarded},
};

/// Builds the server, so that no older one is measured, and returns the path of the program.
pub fn build() -> anyhow::Result<PathBuf> {
    // With the benchmark's package, cargo chooses the features that it has just built.
    const ARGUMENTS: [&str; 7] = [
        "build",
        "--release",
        "--locked",
        "--package=oncegate",
        concat!("--package=", env!("CARGO_PKG_NAME")),
        "--bin=oncegate",
        "--message-format=json-render-diagnostics",
    ];
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in env::vars_os() {
        // Build scripts that read what `cargo run` sets, such as ring's, would run again.
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_MANIFEST_") || text.starts_with("CARGO_PKG_") {
            command.env_remove(&name);
        }
    }
    let output = command
        .args(ARGUMENTS)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(output.status.success(), "cargo build failed");
    let messages = String::from_utf8(output.stdout)?;
    let program = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(message.get("executable")?.as_str()?.into())
    });
    program.context("cargo build reported no executable")
}

/// One `oncegate serve` that listens.
pub struct Server {
    program: Guarded,
    /// `HOST:PORT`.
    pub address: String,
    metrics: String,
}

impl Server {
    /// Starts `program` on the store at `url`, on any free port, with further
    /// `flags`. It brings the schema up to date, as every replica does.
    pub fn start(program: &Path, url: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let program = Guarded::start(program, |_| {
            let mut arguments = vec!["serve", "--database-url", url];
            arguments.extend(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
            arguments.extend(flags);
            arguments
        })
        .context("start oncegate")?;
        let (address, metrics) = program.wait_for(|program| {
            let log = program.log();
            let address = log.lines().find_map(|line| line.split_once(" listens on "))?.1;
            let metrics = log.lines().find_map(|line| line.strip_prefix("metrics: http://"))?;
            let (metrics, _) = metrics.split_once('/')?;
            Some((address.to_owned(), metrics.to_owned()))
        })?;
        Ok(Self { program, address, metrics })
    }

    /// Its process.
    pub fn pid(&self) -> process::Pid {
        self.program.pid
    }

    /// The metric whose line begins with `name`; none while it has no value.
    pub fn metric(&self, name: &str) -> anyhow::Result<Option<f64>> {
        let page = http::get(&self.metrics, "/metrics")?;
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().last()).map(|v| Ok(v.parse()?)).transpose()
    }
}
