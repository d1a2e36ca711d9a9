//! Options of a gate, and of one turn or lease.

use std::{collections::HashMap, env, fmt, path::Path, process, sync::Arc, time::Duration};

use crate::{
    Delivery, EndOutcome, Error, LossReason, Session,
    errors::{invalid, or_else},
    pb,
};

/// What happens to a turn while the server is unavailable, after the patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnUnavailable {
    /// [`Error::Unavailable`]. The default: where the sender redelivers, a refusal costs only
    /// delay.
    #[default]
    Raise,
    /// The handler runs without a turn: [`Turn::held`](crate::Turn::held) is false.
    Run,
    /// The outcome is `Dropped`: the event is not handled.
    Drop,
}

/// What a program may observe, such as for metrics. The functions must not block.
pub trait Hooks: Send + Sync {
    /// A turn was granted.
    fn on_begin(&self, _delivery: &Delivery) {}
    /// A turn or lease waits in the queue; 1 is next.
    fn on_queued(&self, _position: u32) {}
    /// A turn or lease was lost.
    fn on_lost(&self, _reason: LossReason) {}
    /// A turn ended. It is called once the server has been told, or could not be.
    fn on_end(&self, _outcome: EndOutcome) {}
}

/// Hooks whose panics stay theirs: they are called where a turn or the gate ends.
pub(crate) struct Caught<H>(pub(crate) H);

impl<H: Hooks> Caught<H> {
    fn call(&self, hook: impl FnOnce(&H)) {
        let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hook(&self.0)));
        if called.is_err() {
            tracing::error!("a hook of the gate panicked");
        }
    }
}

impl<H: Hooks> Hooks for Caught<H> {
    fn on_begin(&self, delivery: &Delivery) {
        self.call(|hooks| hooks.on_begin(delivery));
    }

    fn on_queued(&self, position: u32) {
        self.call(|hooks| hooks.on_queued(position));
    }

    fn on_lost(&self, reason: LossReason) {
        self.call(|hooks| hooks.on_lost(reason));
    }

    fn on_end(&self, outcome: EndOutcome) {
        self.call(|hooks| hooks.on_end(outcome));
    }
}

struct NoHooks;

impl Hooks for NoHooks {}

/// The options of a gate, or of one turn or lease: a copy of its gate's, with its own.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) consumer: String,
    pub(crate) share_sessions: bool,
    pub(crate) holder: String,
    pub(crate) hooks: Arc<dyn Hooks>,

    pub(crate) ttl: Duration,
    pub(crate) asked_grace: Option<Duration>,
    pub(crate) patience: Duration,
    pub(crate) on_unavailable: OnUnavailable,
    pub(crate) max_attempts: u32,

    pub(crate) wait: Duration,
    pub(crate) epic: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) event_ttl: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            consumer: String::new(),
            share_sessions: false,
            holder: String::new(),
            hooks: Arc::new(NoHooks),
            ttl: Duration::from_secs(45),
            asked_grace: None,
            patience: Duration::from_secs(10),
            on_unavailable: OnUnavailable::Raise,
            max_attempts: 5,
            wait: Duration::ZERO,
            epic: String::new(),
            labels: HashMap::new(),
            event_ttl: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("holder", &self.holder).finish_non_exhaustive()
    }
}

impl Config {
    /// Refuses a grace of which the margin leaves nothing.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let (grace, margin) = (self.grace(), self.margin());
        if grace <= margin {
            let message = format!("a grace of {grace:?} is too short; use more than {margin:?}");
            return Err(invalid("grace", message));
        }
        Ok(())
    }

    /// Is taken off the end of a turn or lease, for clocks and scheduling.
    pub(crate) fn margin(&self) -> Duration {
        (self.ttl / 10).min(Duration::from_secs(1))
    }

    pub(crate) fn grace(&self) -> Duration {
        let grace = self.asked_grace.unwrap_or_else(|| (self.ttl / 2).max(Duration::from_secs(5)));
        grace.min(self.ttl)
    }

    /// Consumers that share sessions name none.
    fn session_consumer<'a>(&self, consumer: &'a str) -> &'a str {
        if self.share_sessions { "" } else { consumer }
    }

    pub(crate) fn begin_request(&self, delivery: &Delivery) -> pb::BeginTurnRequest {
        let event = delivery.event_key(&self.consumer);
        let consumer = delivery.consumer_or(&self.consumer);
        pb::BeginTurnRequest {
            session: delivery.session_key(self.session_consumer(consumer)),
            event: Some(event),
            holder: self.holder.clone(),
            request_id: new_request_id(),
            claim_ttl: duration(self.ttl),
            lease_ttl: duration(self.ttl),
            wait: None,
            epic_id: self.epic.clone(),
            max_attempts: i32::try_from(self.max_attempts).unwrap_or(i32::MAX),
            labels: self.labels.clone(),
            payload_digest: delivery.digest.to_vec(),
            grace: duration(self.grace()),
        }
    }

    pub(crate) fn hold_request(&self, session: &Session) -> pb::HoldSessionLeaseRequest {
        pb::HoldSessionLeaseRequest {
            session: Some(session.key(self.session_consumer(&self.consumer))),
            holder: self.holder.clone(),
            request_id: new_request_id(),
            ttl: duration(self.ttl),
            wait: None,
            epic_id: self.epic.clone(),
            labels: self.labels.clone(),
        }
    }

    /// Reports a place in the queue.
    pub(crate) fn queued(&self, queued: pb::LeaseQueued) {
        self.hooks.on_queued(u32::try_from(queued.position).unwrap_or_default());
    }

    pub(crate) fn mark_request(&self, delivery: &Delivery) -> pb::MarkProcessedRequest {
        pb::MarkProcessedRequest {
            event: Some(delivery.event_key(&self.consumer)),
            ttl: delivery.ttl.and_then(duration),
            request_id: new_request_id(),
            payload_digest: delivery.digest.to_vec(),
        }
    }
}

/// The name of this process, unless the author sets one.
pub(crate) fn holder_name(consumer: &str) -> String {
    let program = env::args_os().next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    format!("{}:{host}:{}", or_else(consumer, &program), process::id())
}

/// 128 random bits, in hexadecimal.
pub(crate) fn new_request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// As the contract has it; one that is too long for it is refused by the server.
#[expect(clippy::unnecessary_wraps, reason = "a field of a message is optional")]
pub(crate) fn duration(span: Duration) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or_default(),
    })
}

/// A time that the server sends; zero if it sends none.
pub(crate) fn span(duration: Option<&prost_types::Duration>) -> Duration {
    duration.and_then(|duration| Duration::try_from(*duration).ok()).unwrap_or_default()
}
