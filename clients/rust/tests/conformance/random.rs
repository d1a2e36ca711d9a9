//! Random runs: handlers of the same events in the same sessions, by several gates, while the server has
//! random faults. The seed repeats a failure: `ONCEGATE_TEST_SEED=7 conformance random/sqlite`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use oncegate_client::{Delivery, Gate, Turn};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};
use tokio::{process::Command, sync::oneshot, task::JoinSet, time::sleep};

use crate::{
    Verdict,
    faults::{Chosen, KINDS, TEAM, with_faults},
    history::{Answer, Body, History, Write},
    mapping::{Fault, number, text},
    rules,
    testbed::{Testbed, share_database},
    variable,
};

const RUN_COUNT: usize = 500;
const DELIVERIES_OF_EVENT: usize = 3;
/// So many events may be delivered until each kind of fault has happened.
const MOST_EVENTS: usize = 1000;
const AT_ONCE: usize = 48;
const GATES: usize = 6;
const SESSIONS: usize = 12;
const SLICE: Duration = Duration::from_millis(50);
/// On a busy machine.
const SETTLE_LIMIT: Duration = Duration::from_secs(240);
const MAX_ATTEMPTS: u32 = 4;
/// Of so many events, one fails always.
const HOPELESS: usize = 50;

/// One delivery, and what its handler does.
#[derive(Debug, Clone)]
struct Plan {
    run: usize,
    event: usize,
    gate: usize,
    wait: Duration,
    slices: usize,
    checks: bool,
    fails: bool,
}

impl Plan {
    fn new(run: usize, event: usize, chance: &mut StdRng) -> Self {
        Self {
            run,
            event,
            gate: chance.random_range(0..GATES),
            wait: Duration::from_secs(*[0, 2, 5].choose(chance).expect("one")),
            slices: *[0, 1, 5, 50].choose(chance).expect("one"),
            checks: chance.random(),
            fails: chance.random_range(0..10) == 0 || event.is_multiple_of(HOPELESS),
        }
    }

    fn event(&self) -> String {
        format!("event-{}", self.event)
    }

    fn session(&self) -> String {
        session_name(self.event % SESSIONS)
    }

    /// What the handler does.
    async fn handle(&self, turn: Turn, history: &History) -> Result<String, Fault> {
        let entered = Instant::now();
        let trusted_at_entry = trusted_end(&turn);
        let mut noted = Noted {
            body: Body {
                run: self.run,
                event: self.event(),
                session: self.session(),
                attempt: turn.attempt(),
                fence: turn.fence().unwrap_or_default(),
                entered,
                trusted_at_entry,
                checks: self.checks,
                writes: Vec::new(),
                left: entered,
                trusted: entered,
            },
            turn: turn.clone(),
            history,
        };
        for _ in 0..self.slices {
            sleep(SLICE).await;
            if self.checks {
                let checked = Instant::now();
                turn.check()?;
                noted.body.writes.push(Write { checked, trusted: trusted_end(&turn) });
            }
        }
        if self.fails {
            return Err(Fault::Own("it fails".to_owned()));
        }
        Ok(format!("run {}", self.run))
    }
}

/// Notes a body when it is left, or dropped.
struct Noted<'a> {
    body: Body,
    turn: Turn,
    history: &'a History,
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.body.left = Instant::now();
        self.body.trusted = trusted_end(&self.turn);
        self.history.events().bodies.push(self.body.clone());
    }
}

fn session_name(index: usize) -> String {
    format!("session-{index}")
}

/// Is read anew if time passed between its two readings.
fn trusted_end(turn: &Turn) -> Instant {
    loop {
        let before = Instant::now();
        let (left, overdue) = (turn.left().unwrap_or_default(), turn.overdue());
        let now = Instant::now();
        if now - before < Duration::from_millis(5) {
            return (now + left).checked_sub(overdue).expect("it was lately");
        }
    }
}

/// Deliveries in a random order that keeps those of an event near each other.
fn plans(runs: usize, chance: &mut StdRng) -> Vec<Plan> {
    let mut places: Vec<(u64, usize)> = (0..runs)
        .map(|run| {
            let event = run / DELIVERIES_OF_EVENT;
            (1000 * event as u64 + chance.random_range(0..30_000), event)
        })
        .collect();
    places.sort_unstable();
    places.iter().enumerate().map(|(run, (_, event))| Plan::new(run, *event, chance)).collect()
}

/// How long turns last, and how long without their stream.
#[derive(Clone, Copy)]
struct Times {
    ttl: Duration,
    grace: Duration,
}

impl Times {
    fn of(options: &Value) -> Self {
        let time = |name: &str, usual| options[name].as_u64().map_or(usual, Duration::from_millis);
        let ttl = time("ttl_ms", Duration::from_secs(2));
        Self { ttl, grace: time("grace_ms", ttl / 2) }
    }
}

/// Runs the plans, so many at once.
async fn deliver(plans: Vec<Plan>, servers: &[String], times: Times, history: &Arc<History>) {
    let gates: Vec<Gate> = (0..GATES)
        .map(|index| {
            let builder = Gate::builder()
                .server(&servers[index % servers.len()])
                .holder(format!("gate-{index}"))
                .ttl(times.ttl)
                .grace(times.grace)
                .patience(Duration::from_millis(2500))
                .max_attempts(MAX_ATTEMPTS);
            builder.build().expect("a gate")
        })
        .collect();
    let (stop, stopped) = oneshot::channel();
    let beating = history.clone();
    let pulse = tokio::spawn(async move { beating.beat(stopped).await });
    let waiting = Arc::new(Mutex::new(plans.into_iter()));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (waiting, gates, history) = (waiting.clone(), gates.clone(), history.clone());
        workers.spawn(async move {
            loop {
                let Some(plan) = waiting.lock().expect("it is not poisoned").next() else { return };
                history.events().planned.push(plan.run);
                let delivery = Delivery::new(TEAM, plan.event()).session(plan.session());
                let request = gates[plan.gate].turn(delivery).wait(plan.wait);
                let came = request.run(|turn| plan.handle(turn, &history)).await;
                let answer =
                    Answer { run: plan.run, event: plan.event(), came, at: Instant::now() };
                history.events().answers.push(answer);
            }
        });
    }
    workers.join_all().await;
    for gate in gates {
        gate.close().await;
    }
    let _ = stop.send(());
    let _ = pulse.await;
}

/// Delivers events again.
fn again(events: Vec<usize>, history: &History, chance: &mut StdRng) -> Vec<Plan> {
    let runs = history.events().planned.len();
    let plan = |(index, event)| Plan::new(runs + index, event, chance);
    events.into_iter().enumerate().map(plan).collect()
}

/// Delivers what is not settled again and again, as senders do; and everything once more.
async fn settle(servers: &[String], times: Times, history: &Arc<History>) {
    let mut chance = StdRng::seed_from_u64(history.events().planned.len() as u64);
    let deadline = Instant::now() + SETTLE_LIMIT;
    while Instant::now() < deadline {
        let unsettled: Vec<usize> = {
            let events = history.events();
            let last = events.last_answers().into_iter();
            last.filter(|last| !last.is_settled()).map(|last| number_of(&last.event)).collect()
        };
        if unsettled.is_empty() {
            break;
        }
        deliver(again(unsettled, history, &mut chance), servers, times, history).await;
    }
    let all: Vec<_> =
        history.events().last_answers().iter().map(|last| number_of(&last.event)).collect();
    deliver(again(all, history, &mut chance), servers, times, history).await;
}

fn number_of(event: &str) -> usize {
    event.trim_start_matches("event-").parse().expect("a number")
}

/// Options: `store`, `runs`, `seed`, `kinds` (all, if empty), `faulty` (how many replicas have faults; all,
/// if 0), `settles` (each kind of fault happens, and what is not settled after the faults is delivered again),
/// `ttl_ms`, `grace_ms` and `refusal_ms`. Returns what happened.
async fn run(options: &Value) -> Result<Value, String> {
    let store = text(&options["store"]);
    let replicas = if store == "postgres" { 2 } else { 1 };
    let testbed = Arc::new(Testbed::start(&store, replicas, &[]).await?);
    let kinds: Vec<String> = match options["kinds"].as_array() {
        Some(kinds) => kinds.iter().map(text).collect(),
        None => KINDS.iter().map(|kind| (*kind).to_owned()).collect(),
    };
    let faulty =
        options["faulty"].as_u64().map_or(replicas, |count| usize::try_from(count).expect("few"));
    let seed = options["seed"].as_u64().unwrap_or_default();
    let refusal = &options["refusal_ms"];
    let refusal = refusal[0].as_u64().unwrap_or(100)..refusal[1].as_u64().unwrap_or(2500);
    let chosen = Chosen { seed, kinds, faulty, refusal };
    let began = Instant::now();
    let times = Times::of(options);
    let history = Arc::new(History::new(times.ttl / 10, MAX_ATTEMPTS as usize));
    let sessions: Vec<_> = (0..SESSIONS).map(session_name).collect();
    let runs = usize::try_from(number(&options["runs"])).expect("few");
    let mut chance = StdRng::seed_from_u64(seed);
    let planned = plans(runs, &mut chance);
    let work = async {
        deliver(planned, &testbed.replicas, times, &history).await;
        // On a slow machine a fault takes longer than the deliveries.
        let mut next = runs / DELIVERIES_OF_EVENT + 1;
        while options["settles"] == true && next < MOST_EVENTS {
            let happened = history.events().faults.clone();
            if chosen.kinds.iter().all(|kind| happened.contains(kind)) {
                break;
            }
            let more = again((next..next + AT_ONCE).collect(), &history, &mut chance);
            deliver(more, &testbed.replicas, times, &history).await;
            next += AT_ONCE;
        }
    };
    with_faults(&testbed, &history, &chosen, &sessions, work).await?;
    if options["settles"] == true {
        settle(&testbed.replicas, times, &history).await;
    }
    let events: Vec<_> =
        history.events().last_answers().iter().map(|last| last.event.clone()).collect();
    for event in events {
        let record = testbed.ask("look", &json!({"team": TEAM, "event": event})).await;
        let record = record.map_err(|problem| format!("{problem}\n{}", testbed.log()))?;
        history.events().records.push((event, record));
    }
    testbed.close().await;
    let broken = rules::broken(&history, options["settles"] == true);
    let events = history.events();
    let mut answers = BTreeMap::<String, u32>::new();
    for answer in &events.answers {
        *answers.entry(answer.kind()).or_default() += 1;
    }
    let mut counts = BTreeMap::<String, u32>::new();
    for kind in &events.faults {
        *counts.entry(kind.clone()).or_default() += 1;
    }
    Ok(json!({
        "title": format!("{store}, seed {seed}, {} s", began.elapsed().as_secs()),
        "bodies": events.bodies.len(),
        "answers": answers,
        "faults": counts,
        "forced": events.forced.len(),
        "broken": broken,
    }))
}

/// The options are JSON, and so is what it prints.
pub(crate) async fn runs_of(options: &str) -> Result<(), String> {
    let options = serde_json::from_str(options).map_err(|error| error.to_string())?;
    println!("{}", run(&options).await?);
    Ok(())
}

/// In a process of its own: it stands still at times, and other tests are not to.
async fn run_apart(options: &Value) -> Result<Value, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["random-runs", &options.to_string()]).kill_on_drop(true);
    share_database(&mut command);
    let output = command.output().await.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

pub(crate) async fn random_runs_keep_the_rules(store: &str) -> Verdict {
    #[expect(clippy::disallowed_methods, reason = "a seed")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = match variable("ONCEGATE_TEST_SEED") {
        Some(seed) => seed.parse().map_err(|_| format!("{seed} is no seed"))?,
        None => u64::from(now.subsec_nanos()),
    };
    let options = json!({"store": store, "runs": RUN_COUNT, "seed": seed, "settles": true});
    let report = run_apart(&options).await?;
    let mut problems: Vec<String> =
        report["broken"].as_array().into_iter().flatten().map(text).collect();
    // Less would prove little.
    for kind in KINDS {
        if report["faults"][kind].is_null() {
            problems.push(format!("no fault was {kind}"));
        }
    }
    let events = u32::try_from(RUN_COUNT / DELIVERIES_OF_EVENT).expect("few");
    for (kind, least) in
        [("ran", events / 2), ("duplicate", events * 9 / 10), ("gave up", 1), ("turn_lost", 1)]
    {
        let count = number(&report["answers"][kind]);
        if count < least {
            problems.push(format!("{count} answers are {kind}, fewer than {least}"));
        }
    }
    if number(&report["bodies"]) < events || number(&report["forced"]) < 1 {
        problems.push("there are too few bodies, or releases by force".to_owned());
    }
    if problems.is_empty() {
        return Ok(report.to_string());
    }
    Err(format!("{}\n{report}", problems.join("\n")))
}
