//! Steps that open a turn or a lease, which a later step ends.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use serde_json::{Value, json};
use tokio::{sync::oneshot, task::spawn_local};

use crate::{
    client::unexpected,
    mapping::{
        Written, cancelled, delivery, failed, labels, millis, outcome, session, text,
        with_turn_options,
    },
    scope::{Held, Scope},
    verbs::{Local, in_time},
};

impl Local {
    pub(crate) async fn open(self: Rc<Self>, step: Value) -> Value {
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

    pub(crate) async fn detach(&self, step: &Value) -> Value {
        let scope = self.scope(&step["detach"]);
        let Held::Turn(turn) = scope.held() else { return unexpected("a lease") };
        match turn.detach().await {
            Ok(Some(id)) => {
                let mut left = scope.end(json!({})).await;
                left["turn_id"] = id.into();
                left
            }
            Ok(None) => unexpected("there is no turn"),
            Err(error) => failed(&error.into()),
        }
    }
}
