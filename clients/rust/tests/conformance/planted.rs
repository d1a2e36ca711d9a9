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
use tokio::{process::Command, sync::Semaphore, task::JoinSet};

use crate::{
    Verdict,
    mapping::text,
    scenario::{Scenario, folder},
    testbed,
};

/// A random run in which the bug has no effect is repeated with the next seed.
const SEEDS: u64 = 10;
const RUN_SIZE: u32 = 120;
const AT_ONCE: usize = 8;

/// Names the bug of a process.
const SWITCH: &str = "ONCEGATE_TEST_PLANTED";

const IS_PLANTED: &str = r#"
/// Whether this process has a bug.
pub(crate) fn planted(name: &str) -> bool {
    static BUG: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("ONCEGATE_TEST_PLANTED").ok());
    BUG.as_deref() == Some(name)
}
"#;

/// A grant that the server has not made.
const ENTERED: &str = "{
                let sent = self.hold.state().sent;
                let remaining = duration(Duration::from_secs(60));
                let turn = pb::Turn { attempt: 1, remaining, ..pb::Turn::default() };
                self.read(Some(turn), sent, None);
                return Ok(true);
            }";

/// Changes of one text of a file: the bugs that it plants, the file, the text, and what replaces it.
#[expect(clippy::too_many_lines, reason = "it is a list")]
fn changes() -> Vec<(&'static [&'static str], &'static str, &'static str, String)> {
    let own = str::to_owned;
    vec![
        (
            &["enters-on-busy"],
            "turn.rs",
            "Some(News::Busy(held)) => busy(held),",
            format!(
                r#"Some(News::Busy(_)) if crate::planted("enters-on-busy") => {ENTERED}
            Some(News::Busy(held)) => busy(held),"#
            ),
        ),
        (
            &["enters-on-duplicate"],
            "turn.rs",
            "Some(News::Duplicate(duplicate)) => {",
            format!(
                r#"Some(News::Duplicate(_)) if crate::planted("enters-on-duplicate") => {ENTERED}
            Some(News::Duplicate(duplicate)) => {{"#
            ),
        ),
        (
            &["fails-open"],
            "run.rs",
            "OnUnavailable::Raise => {}",
            own(r#"OnUnavailable::Raise if crate::planted("fails-open") => return Ok(()),
            OnUnavailable::Raise => {}"#),
        ),
        (
            &["impatient"],
            "hold.rs",
            "if !failure.retryable() || left.is_zero() || delay > left {",
            own(r#"if !failure.retryable() || left.is_zero() || delay > left
            || crate::planted("impatient") && !delay.is_zero() {"#),
        ),
        (
            &["no-wait"],
            "turn.rs",
            "request.wait = duration(wait);",
            own(
                r#"request.wait = duration(if crate::planted("no-wait") { Duration::ZERO } else { wait });"#,
            ),
        ),
        (
            &["new-request-id-per-retry"],
            "turn.rs",
            "            request.clone()\n        };\n        let (requests, sent)",
            own(r#"            if crate::planted("new-request-id-per-retry") {
                request.request_id = new_request_id();
            }
            request.clone()
        };
        let (requests, sent)"#),
        ),
        (
            &["no-consumer"],
            "delivery.rs",
            "consumer: self.consumer_or(consumer).to_owned(),",
            own(r#"consumer: if crate::planted("no-consumer") {
                String::new()
            } else {
                self.consumer_or(consumer).to_owned()
            },"#),
        ),
        (
            &["counts-from-receipt", "ignores-elapsed"],
            "hold.rs",
            "state.trusted_end = sent + elapsed + lasts",
            own(r#"let from = if crate::planted("counts-from-receipt") { now() } else { sent };
        let elapsed = if crate::planted("ignores-elapsed") { Duration::ZERO } else { elapsed };
        state.trusted_end = from + elapsed + lasts"#),
        ),
        (
            &["ignores-grace"],
            "hold.rs",
            "let lasts = grace.map_or(",
            own(r#"let lasts = grace.filter(|_| !crate::planted("ignores-grace")).map_or("#),
        ),
        (
            &["silence-is-not-probed"],
            "hold.rs",
            "state.probe_at = now() + (ttl * 2 / 5).min(latest);",
            own(r#"state.probe_at = now() + (ttl * 2 / 5).min(latest);
        if crate::planted("silence-is-not-probed") {
            state.probe_at = now() + Duration::from_secs(3600);
        }"#),
        ),
        (
            &["no-renewal-after-a-break"],
            "keep.rs",
            "hold.state().renewing = true;",
            own(r#"if crate::planted("no-renewal-after-a-break") {
                    return lost(flow, LossReason::Expired, commands).await;
                }
                hold.state().renewing = true;"#),
        ),
        (
            &["renewal-dies"],
            "keep.rs",
            "() = sleep((hold.config.ttl / 3).min(left / 2)) => {}",
            own(r#"() = sleep(if crate::planted("renewal-dies") {
                std::time::Duration::from_secs(3600)
            } else {
                (hold.config.ttl / 3).min(left / 2)
            }) => {}"#),
        ),
        (
            &["loss-does-not-interrupt"],
            "hold.rs",
            "let is_lost = self.finish(Some(reason));",
            own(
                r#"let is_lost = !crate::planted("loss-does-not-interrupt") && self.finish(Some(reason));"#,
            ),
        ),
        (
            &["check-ignores-the-clock"],
            "hold.rs",
            "if state.held && state.trusted_end.is_over() {",
            own(
                r#"if state.held && state.trusted_end.is_over() && !crate::planted("check-ignores-the-clock") {"#,
            ),
        ),
        (
            &["end-after-loss"],
            "turn.rs",
            "return Err(hold.over_by().with_value(result));",
            own(r#"if crate::planted("end-after-loss") {
                return match self.flow.end(None, end, now() + FINISH_EFFORT).await {
                    Ok(()) => Ok(()),
                    Err(problem) => self.unsettled(problem, result).1,
                };
            }
            return Err(hold.over_by().with_value(result));"#),
        ),
        (
            &[],
            "turn.rs",
            "        if let Some(stream) = stream\n            && self.end_stream(",
            own("        let had_stream = stream.is_some();
        if let Some(stream) = stream\n            && self.end_stream("),
        ),
        (
            &["end-is-not-repeated"],
            "turn.rs",
            "let request = FinishTurnRequest {",
            own(r#"if had_stream && crate::planted("end-is-not-repeated") {
            return Err(Failure::unavailable("no answer").into());
        }
        let request = FinishTurnRequest {"#),
        ),
        (
            &["unknown-is-success"],
            "turn.rs",
            r#"("UNKNOWN".to_owned(), Err(unknown))"#,
            own(r#"if crate::planted("unknown-is-success") {
            return ("SUCCEEDED".to_owned(), Ok(()));
        }
        ("UNKNOWN".to_owned(), Err(unknown))"#),
        ),
        (
            &["success-is-failure"],
            "run.rs",
            "        self.turn.settle(end, &stored).await",
            own(r#"        let mut end = end;
        if crate::planted("success-is-failure") {
            end = TurnEnd { outcome: TurnOutcome::Failed.into(), ..TurnEnd::default() };
        }
        self.turn.settle(end, &stored).await"#),
        ),
        (
            &["error-is-success"],
            "turn.rs",
            "        if let Err(problem) = self.end(stream, end, now() + FAIL_EFFORT).await {",
            own(r#"        let mut end = end;
        if crate::planted("error-is-success") {
            end = TurnEnd { outcome: TurnOutcome::Succeeded.into(), ..TurnEnd::default() };
        }
        if let Err(problem) = self.end(stream, end, now() + FAIL_EFFORT).await {"#),
        ),
        (
            &["reject-is-failure"],
            "run.rs",
            "outcome: TurnOutcome::Rejected.into(),",
            own(r#"outcome: if crate::planted("reject-is-failure") {
                TurnOutcome::Failed.into()
            } else {
                TurnOutcome::Rejected.into()
            },"#),
        ),
        (
            &["own-error-is-masked"],
            "run.rs",
            r#"scope.fail(format!("{error:#}")).await;"#,
            own(r#"if crate::planted("own-error-is-masked") {
                    let outcome = TurnOutcome::Failed.into();
                    let end = TurnEnd { outcome, ..TurnEnd::default() };
                    scope.turn.settle(end, &Stored::default()).await?;
                }
                scope.fail(format!("{error:#}")).await;"#),
        ),
        (
            &["single-channel"],
            "link.rs",
            "connection.live.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION",
            own(r#"crate::planted("single-channel")
                || connection.live.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION"#),
        ),
        (
            &["lease-is-not-released"],
            "lease.rs",
            "let until = now() + RELEASE_EFFORT;",
            own(r#"if crate::planted("lease-is-not-released") {
            return;
        }
        let until = now() + RELEASE_EFFORT;"#),
        ),
    ]
}

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

/// Makes a copy of this package with the bugs.
fn plant(copied: &Path) -> Result<(), String> {
    let original = Path::new(env!("CARGO_MANIFEST_DIR"));
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
    let output = Command::new(env!("CARGO"))
        .current_dir(copied)
        .args(["test", "--offline", "--no-run", "--test", "conformance", "--features", "testing"])
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
        let options = json!({
            "store": "postgres", "runs": RUN_SIZE, "seed": seed, "kinds": faults, "faulty": 1,
        });
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

/// Each bug of `planted.json` whose name contains the filter.
pub(crate) async fn bugs_are_found(filter: &str) -> Vec<(String, Verdict)> {
    let bugs = fs::read_to_string(folder().join("planted.json")).unwrap_or_default();
    let bugs: Vec<Value> = serde_json::from_str(&bugs).unwrap_or_default();
    let named = |bug: &Value| format!("planted/{}", text(&bug["name"]));
    let mut wanted: Vec<_> =
        bugs.iter().filter(|bug| named(bug).contains(filter)).cloned().collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut planted: Vec<_> = changes().iter().flat_map(|(names, ..)| *names).copied().collect();
    let mut listed: Vec<_> = bugs.iter().map(|bug| text(&bug["name"])).collect();
    planted.sort_unstable();
    listed.sort_unstable();
    if planted != listed {
        let problem = format!("planted are {planted:?}, listed {listed:?}");
        return vec![("planted".to_owned(), Err(problem))];
    }
    let copied = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oncegate-client-planted");
    let program = match plant(&copied) {
        Ok(()) => build(&copied).await,
        Err(problem) => Err(problem),
    };
    let program = match program {
        Ok(program) => Arc::new(program),
        Err(problem) => return vec![("planted".to_owned(), Err(problem))],
    };
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tests = JoinSet::new();
    // First those that take longest: many turns, and random runs.
    wanted.sort_by_key(|bug| (bug["name"] != "single-channel", bug.get("random").is_none()));
    for bug in wanted {
        let (program, room, name) = (program.clone(), room.clone(), named(&bug));
        tests.spawn(async move {
            let _room = room.acquire().await;
            (name, is_found(&program, &bug).await)
        });
    }
    tests.join_all().await
}
