//! What a client does for each verb.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use oncegate_client::{Delivery, Gate, Hooks, LossReason, Turn};
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinSet, spawn_local},
    time::{sleep, timeout},
};

use crate::{
    client::unexpected,
    mapping::{
        Date, DateCodec, Fault, Written, body_of, cancelled, delivery, error_fields, failed,
        labels, many_deliveries, millis, number, outcome, session, text, with_gate_options,
        with_turn_options,
    },
    scope::{Held, Scope, look, state},
};

/// What the hooks of a gate were called with.
#[derive(Default)]
struct Called {
    begun: u32,
    queued: Vec<u32>,
    lost: Vec<&'static str>,
    ended: Vec<String>,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Called>>);

impl Recorder {
    fn called(&self) -> MutexGuard<'_, Called> {
        self.0.lock().expect("it is not poisoned")
    }
}

impl Hooks for Recorder {
    fn on_begin(&self, _: &Delivery) {
        self.called().begun += 1;
    }

    fn on_queued(&self, position: u32) {
        self.called().queued.push(position);
    }

    fn on_lost(&self, reason: LossReason) {
        self.called().lost.push(reason.as_str());
    }

    fn on_end(&self, outcome: &str) {
        self.called().ended.push(outcome.to_owned());
    }
}

pub(crate) struct Local {
    gate: Gate,
    recorder: Recorder,
    scopes: RefCell<HashMap<String, Rc<Scope>>>,
}

/// The caller cancels it after a time.
async fn in_time(step: &Value, work: impl Future<Output = Value>) -> Value {
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

    fn scope(&self, name: &Value) -> Rc<Scope> {
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
            let called = self.recorder.called();
            return json!({
                "begun": called.begun,
                "queued": called.queued,
                "lost": called.lost,
                "ended": called.ended,
            });
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

    async fn open(self: Rc<Self>, step: Value) -> Value {
        let (ending, ended) = oneshot::channel();
        let (entered, has_entered) = oneshot::channel();
        let scope = Rc::new(Scope {
            ending: RefCell::new(Some(ending)),
            task: RefCell::default(),
            left: RefCell::default(),
            held: RefCell::default(),
            interrupted: Cell::new(false),
            goes_on: step["ignores_loss"] == true,
        });
        self.scopes.borrow_mut().insert(text(&step["as"]), scope.clone());
        let local = self.clone();
        let opened = scope.clone();
        let task = spawn_local(async move {
            let work = async {
                if step["open"] == "lease" {
                    local.lease(&step, &opened, entered, ended).await
                } else {
                    local.turn(&step, &opened, entered, ended).await
                }
            };
            let left = in_time(&step, work).await;
            if left == cancelled() {
                opened.has_ended().await;
            }
            left
        });
        *scope.task.borrow_mut() = Some(task);
        match has_entered.await {
            Ok(granted) => granted,
            Err(_) => scope.end(Value::Null).await, // it was not granted
        }
    }

    async fn turn(
        &self,
        step: &Value,
        scope: &Scope,
        entered: oneshot::Sender<Value>,
        ended: oneshot::Receiver<Value>,
    ) -> Value {
        let request = match step["adopt"].as_str() {
            Some(id) => self.gate.adopt(id),
            None => self.gate.turn(delivery(&step["delivery"])),
        };
        let request = with_turn_options(request, step).codec(Written);
        if step["ignores_loss"] == true {
            // Only a scope can go on: `run` drops its handler.
            let turn = match request.begin().await {
                Ok(turn) => turn,
                Err(error) => return failed(&error.into()),
            };
            let held = Held::Turn(turn.turn().clone());
            let result = scope.body(held, entered, ended).await;
            let ended = match result {
                Ok(value) => turn.succeed(&value).await.map(|()| json!({"ran": value})),
                Err(fault) => {
                    turn.fail(fault.to_string()).await;
                    return failed(&fault);
                }
            };
            return ended.unwrap_or_else(|error| failed(&error.into()));
        }
        outcome(request.run(|turn| scope.body(Held::Turn(turn), entered, ended)).await)
    }

    async fn lease(
        &self,
        step: &Value,
        scope: &Scope,
        entered: oneshot::Sender<Value>,
        ended: oneshot::Receiver<Value>,
    ) -> Value {
        let mut request = self.gate.lease(session(&step["session"])).wait(millis(&step["wait_ms"]));
        if let Some(ttl) = step.get("ttl_ms") {
            request = request.ttl(millis(ttl));
        }
        request = request.epic(text(&step["epic"]));
        request = labels(step).fold(request, |request, (name, value)| request.label(name, value));
        let lease = match request.acquire().await {
            Ok(lease) => lease,
            Err(error) => return failed(&error.into()),
        };
        let lease = Rc::new(lease);
        let returned = tokio::select! {
            biased;
            returned = scope.body(Held::Lease(lease.clone()), entered, ended) => Some(returned),
            _ = lease.lost() => None,
        };
        if let Err(error) = lease.release().await {
            return failed(&error.into());
        }
        match returned {
            Some(Ok(value)) => json!({"ran": value}),
            Some(Err(fault)) => failed(&fault),
            None => unexpected("the lease is lost, and its release says nothing of it"),
        }
    }

    async fn detach(&self, step: &Value) -> Value {
        let scope = self.scope(&step["detach"]);
        let Held::Turn(turn) = scope.held() else { return unexpected("a lease") };
        match turn.detach().await {
            Ok(id) => {
                let mut left = scope.end(json!({})).await;
                left["turn_id"] = id.into();
                left
            }
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
                "state": seen.state,
                "event_id": seen.event_id,
                "outcome": seen.outcome,
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
