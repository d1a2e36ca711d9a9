//! What the hooks of a gate were called with.

use std::sync::{Arc, Mutex, MutexGuard};

use oncegate_client::{Delivery, EndOutcome, Hooks, LossReason};
use serde_json::{Value, json};

#[derive(Default)]
struct Called {
    begun: u32,
    queued: Vec<u32>,
    lost: Vec<&'static str>,
    ended: Vec<&'static str>,
}

#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Called>>);

impl Recorder {
    fn called(&self) -> MutexGuard<'_, Called> {
        self.0.lock().expect("it is not poisoned")
    }

    pub(crate) fn shown(&self) -> Value {
        let called = self.called();
        json!({
            "begun": called.begun,
            "queued": called.queued,
            "lost": called.lost,
            "ended": called.ended,
        })
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

    fn on_end(&self, outcome: EndOutcome) {
        self.called().ended.push(outcome.as_str());
    }
}
