//! Turns and leases that steps open, and end.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use oncegate_client::{KeptBy, Lease, LossReason, Turn};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    client::unexpected,
    mapping::{Fault, body_of, cancelled, in_millis},
};

/// What a body has got.
#[derive(Clone)]
pub(crate) enum Held {
    Turn(Turn),
    Lease(Rc<Lease>),
}

/// What turns and leases tell of themselves.
macro_rules! look {
    ($held:expr, $name:ident => $value:expr) => {
        match $held {
            Held::Turn($name) => $value,
            Held::Lease($name) => $value,
        }
    };
}

pub(crate) use look;

/// One open turn or lease. Its body waits for the step that ends it.
pub(crate) struct Scope {
    pub(crate) ending: RefCell<Option<oneshot::Sender<Value>>>,
    pub(crate) task: RefCell<Option<JoinHandle<Value>>>,
    pub(crate) left: RefCell<Option<Value>>,
    pub(crate) held: RefCell<Option<Held>>,
    /// The body has been dropped.
    pub(crate) interrupted: Cell<bool>,
    /// It is not dropped, and has to look itself.
    pub(crate) goes_on: bool,
}

/// Notes that a body is dropped before its end.
struct Interruption<'a>(&'a Scope, bool);

impl Drop for Interruption<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.interrupted.set(true);
        }
    }
}

impl Scope {
    /// Waits for the step that ends it.
    pub(crate) async fn body(
        &self,
        held: Held,
        entered: oneshot::Sender<Value>,
        ending: oneshot::Receiver<Value>,
    ) -> Result<Value, Fault> {
        let turn = match &held {
            Held::Turn(turn) => Some(turn.clone()),
            Held::Lease(_) => None,
        };
        let _ = entered.send(granted(&held));
        *self.held.borrow_mut() = Some(held);
        let mut interruption = Interruption(self, false);
        let step = ending.await.unwrap_or_default();
        interruption.1 = true;
        body_of(&step, turn.as_ref())
    }

    /// Makes the body return, and waits for what comes of it.
    pub(crate) async fn end(&self, step: Value) -> Value {
        if let Some(left) = self.left.borrow().clone() {
            return left;
        }
        let Some(task) = self.task.borrow_mut().take() else { return unexpected("it is ending") };
        if step["cancel"] == true {
            task.abort();
        } else if let Some(ending) = self.ending.borrow_mut().take() {
            let _ = ending.send(step);
        }
        let left = match task.await {
            Ok(left) => left,
            Err(error) if error.is_panic() => unexpected(&error.to_string()),
            Err(_) => {
                self.has_ended().await;
                cancelled()
            }
        };
        *self.left.borrow_mut() = Some(left.clone());
        left
    }

    /// What is dropped ends in the background.
    pub(crate) async fn has_ended(&self) {
        let held = self.held.borrow().clone();
        if let Some(held) = held {
            look!(&held, it => it.ended().await);
        }
    }

    pub(crate) fn held(&self) -> Held {
        self.held.borrow().clone().expect("it was granted")
    }
}

fn granted(held: &Held) -> Value {
    let attempt = match held {
        Held::Turn(turn) => Some(turn.attempt()),
        Held::Lease(_) => None,
    };
    let (fence, held) = look!(held, it => (it.fence(), it.held()));
    json!({"granted": {"attempt": attempt, "fence": fence, "held": held}})
}

pub(crate) fn state(scope: &Scope) -> Value {
    let held = scope.held();
    let attempt = match &held {
        Held::Turn(turn) => Some(turn.attempt()),
        Held::Lease(_) => None,
    };
    look!(&held, it => {
        let lost = it.lost_reason();
        json!({
            "held": it.held(),
            "lost": lost.map(LossReason::as_str),
            "kept_by": if it.kept_by() == KeptBy::Renew { "renew" } else { "stream" },
            "attempt": attempt,
            "fence": it.fence(),
            "waiters": it.waiters(),
            "left_ms": it.left().map(in_millis),
            "interrupted": if scope.goes_on { lost.is_some() } else { scope.interrupted.get() },
        })
    })
}
