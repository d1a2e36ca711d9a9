//! `oncegate doctor`, run as an operator does: what it finds of stores that are as they should be, and of
//! stores that are not.

use std::process::Command;

use oncegate::server;
use serde_json::Value;

use crate::harness::config;

mod connections;
mod file;
mod postgres;
mod tables;

/// How it ended, and what it found: each check's result, and the finding with its advice.
struct Diagnosis {
    code: Option<i32>,
    checks: Vec<(String, String, String)>,
    printed: String,
}

impl Diagnosis {
    /// Holds one check to its result and to parts of what it says.
    #[track_caller]
    fn has(&self, check: &str, result: &str, parts: &[&str]) {
        let found = self.checks.iter().find(|(name, ..)| name == check);
        let Some((_, is, text)) = found else { panic!("no {check}: {}", self.printed) };
        assert_eq!(is, result, "{check}: {text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }

    /// Holds it to these checks, all as they should be.
    #[track_caller]
    fn is_all_well(&self, checks: &[&str]) {
        let names = self.checks.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>();
        assert_eq!(names, checks, "{}", self.printed);
        let bad = self.checks.iter().find(|(_, result, _)| result != "ok");
        assert!(bad.is_none(), "{bad:?}");
        assert_eq!(self.code, Some(0));
    }
}

/// The command with these arguments, and with nothing of this process's environment.
fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncegate"));
    command.env_clear().args(["doctor", "--database-url", url]).args(arguments);
    command
}

async fn doctor(url: &str, arguments: &[&str]) -> Diagnosis {
    let mut command = command(url, &[&["--output", "json"], arguments].concat());
    // Away from the runtime, which may run the proxy that it goes through.
    let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let printed = String::from_utf8(ran.stdout).unwrap();
    let errors = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(errors, "");
    let check = |line: &str| {
        let check: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
        (text("check"), text("result"), format!("{}; {}", text("found"), text("advice")))
    };
    let checks = printed.lines().map(check).collect::<Vec<_>>();
    let failed = checks.iter().any(|(_, result, _)| result == "failed");
    assert_eq!(ran.status.code(), Some(i32::from(failed)), "{printed}");
    Diagnosis { code: ran.status.code(), checks, printed }
}

async fn migrate(url: &str) {
    server::migrate(&config(url, &[]).store).await.unwrap();
}
