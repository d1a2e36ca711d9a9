//! Runs the scenarios that every client library passes, random runs under faults, and planted bugs.
//!
//! `conformance [FILTER]` runs all, or those whose name contains a text. It needs the testbed
//! (`ONCEGATE_TESTBED`). Its last line is `N passed, N failed`.

mod bugs;
mod client;
mod faults;
mod history;
mod interpreter;
mod lines;
mod mapping;
mod matching;
mod opened;
mod planted;
mod random;
mod recorder;
mod rules;
mod scenario;
mod scope;
mod testbed;
mod verbs;

use std::{env, pin::Pin, process::ExitCode, sync::Arc, time::Instant};

use tokio::{sync::Semaphore, task::JoinSet};

use crate::scenario::{STORES, Scenario};

/// What a test says: a note, or what is wrong.
type Verdict = Result<String, String>;

/// A test that is to run, and its name.
type Test = (String, Pin<Box<dyn Future<Output = Verdict> + Send>>);

/// How many tests run at once. Most of their time they wait; but those that write much are to be answered within
/// their patience on two busy processors.
const AT_ONCE: usize = 5;

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
    let mut tests = all_tests();
    tests.retain(|(name, _)| name.contains(filter) && is_in_part(name));
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for (name, test) in tests {
        // In their order: those that take longest begin first.
        let place = room.clone().acquire_owned().await.expect("it is open");
        running.spawn(async move {
            let began = Instant::now();
            let verdict = test.await;
            let took = began.elapsed().as_secs_f32();
            match &verdict {
                Ok(note) => println!("ok {name} ({took:.1} s) {note}"),
                Err(problem) => println!("FAILED {name} ({took:.1} s): {problem}"),
            }
            drop(place);
            verdict.is_ok()
        });
    }
    let verdicts = running.join_all().await;
    database.stop();
    let passed = verdicts.iter().filter(|is_ok| **is_ok).count();
    println!("{} s", began.elapsed().as_secs());
    println!("{passed} passed, {} failed", verdicts.len() - passed);
    if passed == verdicts.len() && passed != 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether a test is in the part that ../../../check selects.
fn is_in_part(name: &str) -> bool {
    let is_of_faults = ["random", "planted"].iter().any(|kind| name.starts_with(kind));
    match variable("ONCEGATE_CHECK").as_deref() {
        Some("faults") => is_of_faults,
        Some("usual") => !is_of_faults,
        _ => true,
    }
}

fn all_tests() -> Vec<Test> {
    let mut tests: Vec<Test> = vec![
        ("matching".to_owned(), Box::pin(async { matching::matches_as_it_should() })),
        ("rules".to_owned(), Box::pin(async { rules::find_what_breaks_them() })),
    ];
    for store in STORES {
        let runs = random::random_runs_keep_the_rules(store);
        tests.push((format!("random/{store}"), Box::pin(runs)));
    }
    let mut planted = planted::tests();
    let bugs = planted.split_off(1);
    tests.extend(planted); // it takes long to build
    tests.extend(scenarios(STORES[0]));
    tests.extend(bugs);
    tests.extend(scenarios(STORES[1]));
    tests
}

fn scenarios(store: &'static str) -> impl Iterator<Item = Test> {
    // Others are for another store, or for what no client of this language can do.
    let fitting = Scenario::all().into_iter().filter(move |scenario| scenario.runs_on(store));
    fitting.map(move |scenario| {
        let name = format!("{store}/{}", scenario.file);
        (name, Box::pin(passes(scenario, store)) as _)
    })
}

async fn passes(scenario: Scenario, store: &str) -> Verdict {
    interpreter::run_scenario(&scenario, store).await?;
    scenario.note_pass(store)?;
    Ok(String::new())
}
