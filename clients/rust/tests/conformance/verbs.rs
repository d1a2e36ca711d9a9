//! What a client does for each verb.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    rc::Rc,
    thread,
    time::Duration,
};

use oncegate_client::{Delivery, EventOutcome, Gate, Turn};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    client::unexpected,
    mapping::{
        Date, DateCodec, Fault, Written, body_of, cancelled, delivery, error_fields, failed,
        many_deliveries, millis, number, outcome, text, with_gate_options, with_turn_options,
    },
    recorder::Recorder,
    scope::{Held, Scope, look, state},
};

pub(crate) struct Local {
    pub(crate) gate: Gate,
    recorder: Recorder,
    pub(crate) scopes: RefCell<HashMap<String, Rc<Scope>>>,
}

/// The caller cancels it after a time.
pub(crate) async fn in_time(step: &Value, work: impl Future<Output = Value>) -> Value {
    match step["timeout_ms"].as_u64() {
        Some(time) => {
            timeout(Duration::from_millis(time), work).await.unwrap_or_else(|_| cancelled())
        }
        None => work.await,
    }
}

impl Local {
    pub(crate) fn new(name: &str, server: &str, options: &Value) -> Self {
        let recorder = Recorder::default();
        let builder = Gate::builder().server(server).holder(name).hooks(recorder.clone());
        let gate = with_gate_options(builder, options).build().expect("a gate");
        Self { gate, recorder, scopes: RefCell::default() }
    }

    pub(crate) async fn close(&self) {
        let scopes: Vec<_> = self.scopes.borrow().values().cloned().collect();
        for scope in scopes {
            scope.end(json!({})).await;
        }
        self.gate.close().await;
    }

    pub(crate) fn scope(&self, name: &Value) -> Rc<Scope> {
        self.scopes.borrow()[&text(name)].clone()
    }

    pub(crate) async fn perform(self: Rc<Self>, step: Value) -> Value {
        let has = |verb: &str| step.get(verb).is_some();
        if has("open") || has("adopt") {
            return self.open(step).await;
        }
        if let Some(blocked) = step["block_ms"].as_u64() {
            thread::sleep(Duration::from_millis(blocked));
            return if has("check") { self.check(&step) } else { Value::Null };
        }
        if has("end") {
            let scope = self.scope(&step["end"]);
            return scope.end(step).await;
        }
        if has("detach") {
            return self.detach(&step).await;
        }
        if has("state") {
            return state(&self.scope(&step["state"]));
        }
        if has("check") {
            return self.check(&step);
        }
        if has("run") {
            return self.run(&step).await;
        }
        if has("once") {
            return self.once(&step).await;
        }
        if has("mark") {
            return match self.gate.mark(delivery(&step["mark"])).await {
                Ok(mark) => json!({"first": mark.first, "event_id": mark.event_id}),
                Err(error) => failed(&error.into()),
            };
        }
        if has("seen") {
            return self.seen(&step).await;
        }
        if has("mark_all") {
            return self.mark_all(&step).await;
        }
        if has("many") {
            return self.many(&step).await;
        }
        if has("hooks") {
            return self.recorder.shown();
        }
        if has("close") {
            self.gate.close().await;
            return Value::Null;
        }
        if let Some(time) = step["drain_ms"].as_u64() {
            self.gate.drain(Duration::from_millis(time)).await;
            return Value::Null;
        }
        unexpected(&format!("no verb in {step}"))
    }

    fn check(&self, step: &Value) -> Value {
        let held = self.scope(&step["check"]).held();
        match look!(&held, it => it.check()) {
            Ok(()) => json!({"ok": true}),
            Err(error) => failed(&error.into()),
        }
    }

    async fn run(&self, step: &Value) -> Value {
        let request = with_turn_options(self.gate.turn(delivery(&step["run"])), step);
        let entered = RefCell::new(None);
        let handler = |turn: Turn| {
            *entered.borrow_mut() = Some(turn.clone());
            async move {
                sleep(millis(&step["body_ms"])).await;
                body_of(step, Some(&turn))
            }
        };
        let run = request.codec(Written).run(handler);
        let left = in_time(step, async { outcome(run.await) }).await;
        let turn = entered.take();
        if let Some(turn) = turn.filter(|_| left == cancelled()) {
            turn.ended().await;
        }
        left
    }

    async fn once(&self, step: &Value) -> Value {
        let ran = Cell::new(false);
        let request = self.gate.once(delivery(&step["once"]));
        if step["typed"] == true {
            let handler = |_| async {
                ran.set(true);
                Date::parse(&text(&step["result"])).ok_or_else(|| Fault::Own("no date".to_owned()))
            };
            return match request.codec(DateCodec).run(handler).await {
                Ok(date) => json!({
                    "returned": date.to_string(), "body_ran": ran.get(), "type_ok": date.year > 0,
                }),
                Err(fault) => failed(&fault),
            };
        }
        let handler = |turn: Turn| {
            ran.set(true);
            async move { body_of(step, Some(&turn)) }
        };
        match request.codec(Written).run(handler).await {
            Ok(value) => json!({"returned": value, "body_ran": ran.get(), "type_ok": true}),
            Err(fault) => failed(&fault),
        }
    }

    async fn seen(&self, step: &Value) -> Value {
        let seen = match self.gate.seen(&delivery(&step["seen"])).await {
            Ok(seen) => seen,
            Err(error) => return failed(&error.into()),
        };
        match seen.result.decode_with(&Written) {
            Ok(result) => json!({
                "state": seen.state.as_str(),
                "event_id": seen.event_id,
                "outcome": seen.outcome.map(EventOutcome::as_str),
                "result": result,
            }),
            Err(error) => failed(&error.into()),
        }
    }

    async fn mark_all(&self, step: &Value) -> Value {
        let given = many_deliveries(step);
        let (mut count, mut first, mut in_order) = (0, 0, true);
        let mut problems = Vec::new();
        let mut items = self.gate.mark_all(given.clone());
        while let Some(item) = items.next().await {
            let item = match item {
                Ok(item) => item,
                Err(error) => return failed(&error.into()),
            };
            in_order &= given.get(count) == Some(&item.delivery);
            match item.mark {
                Ok(mark) => first += usize::from(mark.first),
                Err(error) => {
                    let mut problem = error_fields(&error.into());
                    problem["index"] = count.into();
                    problems.push(problem);
                }
            }
            count += 1;
        }
        json!({
            "count": count,
            "first": first,
            "duplicates": count - first - problems.len(),
            "errors": problems,
            "in_order": in_order,
        })
    }

    /// Makes so many turns; each is ended when all have begun, or have been refused.
    async fn many(&self, step: &Value) -> Value {
        let count = number(&step["count"]);
        let (settled, _) = watch::channel(0);
        let mut turns = JoinSet::new();
        for index in 0..count {
            let name = format!("many-{index}");
            let delivery = Delivery::new(text(&step["team"]), &name).session(name);
            let (gate, settled) = (self.gate.clone(), settled.clone());
            turns.spawn_local(async move {
                let begun = Cell::new(false);
                let handler = |_| async {
                    begun.set(true);
                    settled.send_modify(|settled| *settled += 1);
                    let all =
                        settled.subscribe().wait_for(|settled| *settled == count).await.is_ok();
                    assert!(all, "its sender is open");
                    Ok::<_, Fault>(Value::Null)
                };
                let left = outcome(gate.turn(delivery).codec(Written).run(handler).await);
                if !begun.get() {
                    settled.send_modify(|settled| *settled += 1);
                }
                left
            });
        }
        let left = turns.join_all().await;
        let ran = left.iter().filter(|left| left.get("ran").is_some()).count();
        json!({"ran": ran})
    }
}
