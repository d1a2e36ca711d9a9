//! Runs the scenarios that every client library passes, random runs under faults, and planted bugs.
//!
//! `conformance [FILTER]` runs all, or those whose name contains a text. It needs the testbed
//! (`ONCEGATE_TESTBED`). Its last line is `N passed, N failed`.

mod client;
mod faults;
mod history;
mod interpreter;
mod lines;
mod mapping;
mod matching;
mod planted;
mod random;
mod rules;
mod scenario;
mod testbed;

use std::{env, process::ExitCode, sync::Arc, time::Instant};

use tokio::{sync::Semaphore, task::JoinSet};

use crate::scenario::{STORES, Scenario};

/// What a test says.
type Verdict = Result<String, String>;

/// How many tests run at once: most of their time they wait.
const AT_ONCE: usize = 8;

fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "the settings of a test program")]
    env::var(name).ok()
}

fn main() -> ExitCode {
    if let Some(arguments) = variable(client::CHILD) {
        return client::run_child(&arguments);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut arguments = env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    match (arguments.next().as_deref(), arguments.next()) {
        // What this program does with a bug in the library, as `planted` asks.
        (Some("one-scenario"), Some(path)) => {
            let scenario = Scenario::read(path.as_ref());
            planted::report(runtime.block_on(interpreter::run_scenario(&scenario, "sqlite")))
        }
        (Some("random-runs"), Some(options)) => {
            planted::report(runtime.block_on(random::runs_of(&options)))
        }
        (filter, _) => runtime.block_on(run_all(filter.unwrap_or_default())),
    }
}

async fn run_all(filter: &str) -> ExitCode {
    if let Err(problem) = testbed::check() {
        println!("{problem}");
        return ExitCode::FAILURE;
    }
    let began = Instant::now();
    let database = testbed::Database::start().await;
    let wants = |name: &str| name.contains(filter);
    let mut verdicts: Vec<(String, Verdict)> = Vec::new();
    if wants("matching") {
        verdicts.push(("matching".to_owned(), matching::matches_as_it_should()));
    }
    if wants("rules") {
        verdicts.push(("rules".to_owned(), rules::find_what_breaks_them()));
    }
    let mut tests = JoinSet::new();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    for store in STORES {
        for scenario in Scenario::all() {
            let name = format!("{store}/{}", scenario.file);
            // Others are for another store, or for what no client of this language can do.
            if scenario.runs_on(store) && wants(&name) {
                let room = room.clone();
                tests.spawn(async move {
                    let _room = room.acquire().await;
                    let ran = interpreter::run_scenario(&scenario, store).await;
                    (name, ran.map(|()| String::new()))
                });
            }
        }
    }
    verdicts.extend(tests.join_all().await);
    for store in STORES {
        let name = format!("random/{store}");
        if wants(&name) {
            verdicts.push((name, random::random_runs_keep_the_rules(store).await));
        }
    }
    verdicts.extend(planted::bugs_are_found(filter).await);
    database.stop();

    let failed = verdicts.iter().filter(|(_, verdict)| verdict.is_err()).count();
    for (name, verdict) in &verdicts {
        match verdict {
            Ok(note) => println!("ok {name} {note}"),
            Err(problem) => println!("FAILED {name}: {problem}"),
        }
    }
    println!("{} s", began.elapsed().as_secs());
    println!("{} passed, {failed} failed", verdicts.len() - failed);
    if failed == 0 && !verdicts.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
