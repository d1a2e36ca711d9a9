//! The real oncegate, as an operator runs it.

use std::path::Path;

use anyhow::Context as _;

use crate::{
    http,
    process::{self, Guarded},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_oncegate");

/// One `oncegate serve` that listens.
pub struct Server {
    program: Guarded,
    /// `HOST:PORT`.
    pub address: String,
    metrics: String,
}

impl Server {
    /// Starts a server on the store at `url`, on any free port, with further
    /// `flags`. It brings the schema up to date, as every replica does.
    pub fn start(url: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let program = Guarded::start(Path::new(PROGRAM), |_| {
            let mut arguments = vec!["serve", "--database-url", url];
            arguments.extend(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
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
