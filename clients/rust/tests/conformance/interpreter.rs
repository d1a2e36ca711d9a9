//! Executes the steps of a scenario.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout_at},
};

use crate::{
    client::Client,
    mapping::millis,
    matching::{Expectations, shown},
    scenario::{Object, Scenario},
    testbed::Testbed,
};

const DEFAULT_WITHIN: Duration = Duration::from_secs(15);
const POLL_EVERY: Duration = Duration::from_millis(30);

/// What is wrong with a step.
enum Wrong {
    /// Its result differs from what it expects.
    Mismatch(String),
    /// A process cannot do what it was asked.
    Unanswered(String),
    Other(String),
}

impl Wrong {
    fn text(&self) -> String {
        match self {
            Self::Mismatch(text) => format!("Mismatch: {text}"),
            Self::Unanswered(text) | Self::Other(text) => text.clone(),
        }
    }
}

/// A step that has been started.
struct Running {
    step: Object,
    started: Instant,
    task: JoinHandle<(Result<Value, String>, Duration)>,
}

struct Interpreter {
    scenario: Scenario,
    testbed: Arc<Testbed>,
    clients: HashMap<String, Arc<Client>>,
    background: HashMap<String, Running>,
    /// Of the turns that were detached.
    turn_ids: HashMap<String, Value>,
    expectations: Expectations,
}

/// The error of a step begins with `step N: `.
pub(crate) async fn run_scenario(scenario: &Scenario, store: &str) -> Result<(), String> {
    let testbed = Testbed::start(store, scenario.replicas(), &scenario.server()).await?;
    let testbed = Arc::new(testbed);
    let mut interpreter = Interpreter {
        scenario: scenario.clone(),
        testbed: testbed.clone(),
        clients: HashMap::new(),
        background: HashMap::new(),
        turn_ids: HashMap::new(),
        expectations: Expectations::default(),
    };
    let mut ran = interpreter.run().await;
    for running in interpreter.background.into_values() {
        running.task.abort();
        let _ = running.task.await;
    }
    for client in interpreter.clients.into_values() {
        // A step that is late may still use it.
        if let Some(client) = Arc::into_inner(client) {
            ran = ran.and(client.close().await);
        }
    }
    testbed.close().await;
    ran.map_err(|problem| format!("{problem}\nlog of the server:\n{}", testbed.log()))
}

impl Interpreter {
    async fn run(&mut self) -> Result<(), String> {
        for (index, step) in self.scenario.steps().into_iter().enumerate() {
            let done = self.step(&step).await;
            done.map_err(|wrong| {
                let step = shown(&Value::Object(step));
                format!("step {}: {step}\n{}", index + 1, wrong.text())
            })?;
        }
        match self.background.keys().next() {
            Some(name) => Err(format!("no step awaits {name}")),
            None => Ok(()),
        }
    }

    async fn step(&mut self, step: &Object) -> Result<(), Wrong> {
        if let Some(time) = step.get("sleep_ms") {
            sleep(millis(time)).await;
            return Ok(());
        }
        if let Some(name) = step.get("await").and_then(Value::as_str) {
            let running = self.background.remove(name);
            let running = running.ok_or_else(|| Wrong::Other(format!("nothing runs as {name}")))?;
            return self.finish(running, step).await;
        }
        if step.get("background").is_some() {
            let name = step["as"].as_str().expect("a name").to_owned();
            let running = self.start(step).await?;
            self.background.insert(name, running);
            return Ok(());
        }
        if step.contains_key("expect") && step.contains_key("within_ms") && is_look(step) {
            return self.poll(step).await;
        }
        self.execute(step).await
    }

    /// Repeats a look until it matches. A server that is down may not answer.
    async fn poll(&mut self, step: &Object) -> Result<(), Wrong> {
        let deadline = Instant::now() + millis(&step["within_ms"]);
        loop {
            let done = self.execute(step).await;
            let may_match = matches!(done, Err(Wrong::Mismatch(_) | Wrong::Unanswered(_)));
            if !may_match || Instant::now() > deadline {
                return done;
            }
            sleep(POLL_EVERY).await;
        }
    }

    async fn execute(&mut self, step: &Object) -> Result<(), Wrong> {
        let running = self.start(step).await?;
        self.finish(running, step).await
    }

    async fn start(&mut self, step: &Object) -> Result<Running, Wrong> {
        let verb = self.prepared(step);
        let started = Instant::now();
        let task = if let Some(command) = step.get("testbed") {
            let (testbed, command) = (self.testbed.clone(), command.clone());
            tokio::spawn(async move {
                let command = command.as_str().expect("a command");
                let result = testbed.ask(command, &Value::Object(verb)).await;
                (result, started.elapsed())
            })
        } else {
            let name = step["client"].as_str().expect("a client");
            let client = self.client(name).await.map_err(Wrong::Other)?;
            tokio::spawn(async move {
                let result = client.perform(verb).await;
                (Ok(result), started.elapsed())
            })
        };
        Ok(Running { step: step.clone(), started, task })
    }

    async fn finish(&mut self, running: Running, step: &Object) -> Result<(), Wrong> {
        let Running { step: begun, started, mut task } = running;
        // A time that the scenario gives is a part of what it expects.
        let given = step.get("within_ms").map(millis);
        let within = given.unwrap_or(DEFAULT_WITHIN);
        let late = |text| if given.is_some() { Wrong::Mismatch(text) } else { Wrong::Other(text) };
        let deadline = tokio::time::Instant::from_std(started + within);
        let Ok(done) = timeout_at(deadline, &mut task).await else {
            task.abort();
            return Err(late(format!("not finished after {within:?}")));
        };
        let (result, took) = done.map_err(|error| Wrong::Other(error.to_string()))?;
        let result = result.map_err(Wrong::Unanswered)?;
        if let Some(name) = begun.get("detach").and_then(Value::as_str) {
            self.turn_ids.insert(name.to_owned(), result["turn_id"].clone());
        }
        let at_least = step.get("at_least_ms").map(millis).unwrap_or_default();
        let shown = shown(&result);
        if took > within {
            let text = format!("finished after {took:?} with {shown}, expected within {within:?}");
            return Err(late(text));
        }
        if took < at_least {
            let text = format!("finished after {took:?} with {shown}, expected {at_least:?}");
            return Err(Wrong::Mismatch(text));
        }
        if let Some(expected) = step.get("expect") {
            let matched = self.expectations.matches(expected, &result);
            return matched.map_err(|text| Wrong::Mismatch(format!("{text}\nof {shown}")));
        }
        if is_success(&begun, &result) {
            return Ok(());
        }
        Err(Wrong::Mismatch(format!("the result is {shown}")))
    }

    /// A step without what is the interpreter's.
    fn prepared(&self, step: &Object) -> Object {
        let mut verb = step.clone();
        for key in ["expect", "within_ms", "at_least_ms", "background", "client", "testbed"] {
            verb.remove(key);
        }
        for key in ["delivery", "run", "once", "mark", "seen"] {
            if let Some(Value::String(name)) = verb.get(key) {
                let delivery = self.scenario.delivery(name);
                verb.insert(key.to_owned(), delivery);
            }
        }
        if let Some(Value::String(name)) = verb.get("adopt") {
            let id = self.turn_ids[name].clone();
            verb.insert("adopt".to_owned(), id);
        }
        verb
    }

    /// The client of a step. It is made at its first one.
    async fn client(&mut self, name: &str) -> Result<Arc<Client>, String> {
        if let Some(client) = self.clients.get(name) {
            return Ok(client.clone());
        }
        let mut options = self.scenario.client(name);
        if options.is_null() {
            options = json!({});
        }
        let replica = options["replica"].as_u64().unwrap_or_default();
        let server = &self.testbed.replicas[usize::try_from(replica).expect("few")];
        let client = Arc::new(Client::start(name, server, &options).await?);
        self.clients.insert(name.to_owned(), client.clone());
        Ok(client)
    }
}

fn is_look(step: &Object) -> bool {
    ["state", "hooks", "seen"].iter().any(|verb| step.contains_key(*verb))
        || step.get("testbed").is_some_and(|command| command == "look" || command == "calls")
}

/// A step without expect went well. What a look reports is data.
fn is_success(step: &Object, result: &Value) -> bool {
    let bad = ["error", "duplicate", "gave_up", "in_progress", "busy", "dropped"];
    is_look(step) || bad.iter().all(|key| result.get(key).is_none())
}
