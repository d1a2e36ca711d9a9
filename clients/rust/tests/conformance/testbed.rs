//! The server behind proxies, and the faults of a scenario.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
    sync::OnceLock,
};

use serde_json::Value;
use tokio::process::Command;

use crate::{lines::LineProcess, variable};

const DATABASE: &str = "ONCEGATE_TEST_DATABASE_URL";

/// Of the database server for all scenarios.
static DATABASE_URL: OnceLock<String> = OnceLock::new();

pub(crate) struct Testbed {
    lines: LineProcess,
    pub(crate) replicas: Vec<String>,
}

fn program() -> String {
    variable("ONCEGATE_TESTBED").unwrap_or_default()
}

/// Says what is missing.
pub(crate) fn check() -> Result<(), String> {
    if Path::new(&program()).is_file() {
        return Ok(());
    }
    Err("ONCEGATE_TESTBED names no testbed: cargo build --example testbed".to_owned())
}

impl Testbed {
    pub(crate) async fn start(
        store: &str,
        replicas: usize,
        server: &[String],
    ) -> Result<Self, String> {
        let mut command = Command::new(program());
        command.args(["--store", store, "--replicas", &replicas.to_string(), "--"]).args(server);
        if let Some(url) = DATABASE_URL.get() {
            command.env(DATABASE, url);
        }
        let lines = LineProcess::start(command).await?;
        let addresses = lines.greeting["ready"]["replicas"].as_array().into_iter().flatten();
        let replicas = addresses.map(crate::mapping::text).collect();
        Ok(Self { lines, replicas })
    }

    pub(crate) async fn ask(&self, what: &str, arguments: &Value) -> Result<Value, String> {
        self.lines.ask(what, arguments).await
    }

    pub(crate) fn log(&self) -> String {
        self.lines.log()
    }

    pub(crate) async fn close(&self) {
        self.lines.close().await;
    }
}

/// One database server for all scenarios, unless there is one already.
pub(crate) struct Database(Option<Child>);

impl Database {
    #[expect(clippy::unused_async, reason = "it is started before the scenarios")]
    pub(crate) async fn start() -> Self {
        if let Some(url) = variable(DATABASE) {
            DATABASE_URL.get_or_init(|| url);
            return Self(None);
        }
        let mut process = std::process::Command::new(program())
            .arg("postgres")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a database server");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("its address");
        let ready: Value = serde_json::from_str(&line).expect("JSON");
        let url = ready["ready"]["url"].as_str().expect("a URL").to_owned();
        DATABASE_URL.get_or_init(|| url);
        Self(Some(process))
    }

    /// It ends with its standard input.
    pub(crate) fn stop(self) {
        if let Some(mut process) = self.0 {
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }
}

/// For another program that runs scenarios.
pub(crate) fn share_database(command: &mut Command) {
    if let Some(url) = DATABASE_URL.get() {
        command.env(DATABASE, url);
    }
}
