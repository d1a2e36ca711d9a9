//! The secrets of tests, none of which may be in a log.
//!
//! The servers of this process log to [`Watch`], which ends the process at the first line with a secret. What a
//! server of its own process has logged is checked when that has ended.

use std::{
    io::{self, Write},
    sync::{Once, PoisonError, RwLock},
};

static PLANTED: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Notes a secret, or a part of one, before a server has it. Returns it.
pub fn plant(secret: impl Into<String>) -> String {
    let secret = secret.into();
    PLANTED.write().unwrap_or_else(PoisonError::into_inner).push(secret.clone());
    secret
}

/// Ends the process if there is a secret in `log`.
pub fn check(log: &str) {
    let planted = PLANTED.read().unwrap_or_else(PoisonError::into_inner);
    if planted.iter().any(|secret| log.contains(secret)) {
        let lines = log.lines().filter(|line| planted.iter().any(|secret| line.contains(secret)));
        // Not captured as what a test prints is.
        let mut stderr = io::stderr().lock();
        for line in lines {
            let _ = writeln!(stderr, "a secret in a log: {line}");
        }
        std::process::abort();
    }
}

/// Starts logging for all servers of this process.
pub fn watch_logs() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let logs = tracing_subscriber::fmt().with_env_filter("info,oncegate=debug").json();
        logs.with_writer(|| Watch).init();
    });
}

/// Where the logs go: nowhere.
struct Watch;

impl Write for Watch {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        check(&String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
