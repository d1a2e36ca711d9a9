//! Each planted bug turns its scenarios red, and some turn random runs red. So a green one means something.
//!
//! A copy of the library has all bugs, each behind a switch: it is built once.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::{process::Command, sync::OnceCell};

use crate::{
    Test, Verdict,
    bugs::{IS_PLANTED, changes},
    mapping::text,
    scenario::{Scenario, folder},
    testbed,
};

/// A random run in which the bug has no effect is repeated with the next seed.
const SEEDS: u64 = 10;
const RUN_SIZE: u32 = 120;

/// Names the bug of a process.
const SWITCH: &str = "ONCEGATE_TEST_PLANTED";

/// What this program says as one with a bug.
pub(crate) fn report(ran: Result<(), String>) -> ExitCode {
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("Error: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The manifest of the copy, which is a workspace of its own: the folder may lie anywhere.
///
/// With a feature more, cargo gives it another name than this program's; and with the profiles of the
/// workspace, the same dependencies.
fn manifest(original: &str, workspace: &str) -> Result<String, String> {
    let lints = "[lints]\nworkspace = true\n";
    if !original.contains(lints) || !original.contains("[features]\n") {
        return Err("the manifest has other sections, plant anew".to_owned());
    }
    let own = original.replacen("[features]\n", "[features]\nplanted = []\n", 1).replace(lints, "");
    let sections = workspace.split("\n[").filter(|section| section.starts_with("profile."));
    let profiles: Vec<_> = sections.map(|section| format!("[{section}\n")).collect();
    Ok(format!("{own}\n[workspace]\n\n{}", profiles.concat()))
}

/// Makes a copy of this package with the bugs.
fn plant(copied: &Path) -> Result<(), String> {
    let original = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = original.join("../..");
    let read = |path: PathBuf| {
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let write = |path: PathBuf, content: &str| {
        fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))
    };
    let _ = fs::remove_dir_all(copied); // of an earlier run
    copy(original, copied).map_err(|error| error.to_string())?;
    let mut sources = BTreeMap::new();
    for (_, file, was, now) in changes() {
        let path = copied.join("src").join(file);
        let source = match sources.remove(&path) {
            Some(source) => source,
            None => read(path.clone())?,
        };
        let count = source.matches(was).count();
        if count != 1 {
            return Err(format!("this stands {count} times in {file}, plant anew: {was}"));
        }
        sources.insert(path, source.replace(was, &now));
    }
    sources.insert(
        copied.join("Cargo.toml"),
        manifest(&read(original.join("Cargo.toml"))?, &read(root.join("Cargo.toml"))?)?,
    );
    fs::copy(root.join("Cargo.lock"), copied.join("Cargo.lock"))
        .map_err(|error| error.to_string())?;
    let library = copied.join("src/lib.rs");
    sources.insert(library.clone(), read(library)? + IS_PLANTED);
    for (path, source) in sources {
        write(path, &source)?;
    }
    Ok(())
}

/// Builds the copy, and returns its program.
async fn build(copied: &Path) -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(copied);
    let mut command = Command::new(env!("CARGO"));
    // What cargo has set for this test would be news to ring's build script, and all that is built upon it
    // would be compiled anew, here and by the next cargo.
    for (name, _) in std::env::vars_os() {
        let is_of_test = ["CARGO_MANIFEST", "CARGO_PKG_", "CARGO_PRIMARY_", "CARGO_CRATE_"];
        if is_of_test.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    let output = command
        .current_dir(copied)
        // Not --locked: the lock has the whole workspace.
        .args(["test", "--offline", "--no-run", "--test", "conformance"])
        .arg("--all-features")
        .args(["--message-format", "json-render-diagnostics"])
        .env("CARGO_TARGET_DIR", target)
        .output()
        .await
        .map_err(|error| error.to_string())?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut programs = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    let program = programs.next_back().filter(|_| output.status.success());
    program.ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn execute(
    program: &Path,
    bug: &str,
    arguments: [&str; 2],
) -> Result<(bool, String, String), String> {
    let mut command = Command::new(program);
    command.args(arguments).env(SWITCH, bug).env("ONCEGATE_TEST_FOLDER", folder());
    command.kill_on_drop(true);
    testbed::share_database(&mut command);
    let output = command.output().await.map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
}

/// By a result that differs at the step.
async fn turns_red(program: &Path, bug: &str, file: &str, step: u64) -> Result<(), String> {
    let path = folder().join("scenarios").join(format!("{file}.json"));
    let path = path.to_string_lossy();
    let (is_green, _, said) = execute(program, bug, ["one-scenario", &path]).await?;
    let starts = said.starts_with(&format!("Error: step {step}: "));
    let differs = said.lines().nth(1).is_some_and(|line| line.starts_with("Mismatch: "));
    if is_green || !starts || !differs || said.contains("\"unexpected\"") {
        return Err(format!("{file} is not red at step {step}, but says {said:?}"));
    }
    Ok(())
}

async fn breaks(program: &Path, bug: &str, rule: &str, faults: &Value) -> Result<(), String> {
    let mut last = String::new();
    for seed in 0..SEEDS {
        // The replica without faults grants what the holders of the other one may have lost.
        let mut options = json!({
            "store": "postgres", "runs": RUN_SIZE, "seed": seed, "kinds": faults, "faulty": 1,
        });
        if bug == "ignores-grace" {
            // Its effect is between the grace, with the time until the next grant, and the TTL, unless the holder
            // connects before. With a TTL of 2 s, and refusals that end before the grace does, it takes luck.
            options["ttl_ms"] = 6000.into();
            options["grace_ms"] = 1000.into();
            options["refusal_ms"] = json!([1500, 2500]);
        }
        let (is_done, report, said) =
            execute(program, bug, ["random-runs", &options.to_string()]).await?;
        if !is_done {
            return Err(said);
        }
        let read: Value = serde_json::from_str(&report).map_err(|error| error.to_string())?;
        let mut broken = read["broken"].as_array().into_iter().flatten().map(text);
        if broken.any(|broken| broken.starts_with(&format!("{rule}: "))) {
            return Ok(());
        }
        last = report;
    }
    Err(format!("{SEEDS} random runs have not broken {rule}; the last one: {last}"))
}

async fn is_found(program: &Path, bug: &Value) -> Verdict {
    let name = text(&bug["name"]);
    let mut shown = Vec::new();
    for (file, step) in bug["red"].as_object().into_iter().flatten() {
        let path = folder().join("scenarios").join(format!("{file}.json"));
        if Scenario::read(&path).is_possible() {
            turns_red(program, &name, file, step.as_u64().unwrap_or_default()).await?;
            shown.push(file.clone());
        }
    }
    if let Some(random) = bug.get("random") {
        let rule = text(&random["rule"]);
        breaks(program, &name, &rule, &random["faults"]).await?;
        shown.push(rule);
    }
    if shown.is_empty() {
        return Err("nothing shows it".to_owned());
    }
    Ok(format!("by {}", shown.join(", ")))
}

/// A test that builds the program with the bugs, and one for each bug of `planted.json`.
pub(crate) fn tests() -> Vec<Test> {
    let bugs = fs::read_to_string(folder().join("planted.json")).expect("the list of bugs");
    let mut bugs: Vec<Value> = serde_json::from_str(&bugs).expect("a list in JSON");
    let program = Arc::new(OnceCell::new());
    let mut planted: Vec<_> = changes().iter().flat_map(|(names, ..)| *names).copied().collect();
    let mut listed: Vec<_> = bugs.iter().map(|bug| text(&bug["name"])).collect();
    planted.sort_unstable();
    listed.sort_unstable();
    let differ = format!("planted are {planted:?}, listed {listed:?}");
    let are_all = planted == listed;
    let built = program.clone();
    let making = async move {
        built.get_or_init(made).await.as_ref().map_err(Clone::clone)?;
        if are_all { Ok(String::new()) } else { Err(differ) }
    };
    let mut tests: Vec<Test> = vec![("planted".to_owned(), Box::pin(making))];
    // First those that take longest: many turns, and random runs.
    bugs.sort_by_key(|bug| (bug["name"] != "single-channel", bug.get("random").is_none()));
    for bug in bugs {
        let program = program.clone();
        let name = format!("planted/{}", text(&bug["name"]));
        let test = async move {
            match program.get_or_init(made).await {
                Ok(program) => is_found(program, &bug).await,
                Err(_) => Err("the program with the bugs is not built".to_owned()),
            }
        };
        tests.push((name, Box::pin(test)));
    }
    tests
}

async fn made() -> Result<PathBuf, String> {
    let copied = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oncegate-client-planted");
    plant(&copied)?;
    build(&copied).await
}
