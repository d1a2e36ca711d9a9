//! The client.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, OnceCell},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Delivery, Error, Hooks, LeaseRequest, OnUnavailable, OnceRequest, Session, TurnRequest,
    access::{Access, AccessOptions, environment},
    hold::Hold,
    link::Link,
    locked,
    options::{Caught, Config, holder_name},
};

/// How long ends may go on before the connections are closed.
const ENDING_TIME: Duration = Duration::from_secs(2);

/// The client: one a process. It connects on first use, in the runtime that uses it. A clone is the
/// same gate.
#[derive(Clone)]
pub struct Gate {
    pub(crate) inner: Arc<GateInner>,
}

pub(crate) struct GateInner {
    pub(crate) config: Config,
    pub(crate) link: Arc<Link>,
    /// What `close` waits for: keepers, and ends without one.
    pub(crate) tasks: TaskTracker,
    /// Calls, and beginnings, in the futures of their callers.
    pub(crate) calls: TaskTracker,
    state: Mutex<State>,
    /// One of the following has changed: the holds.
    is_changed: Notify,
    closing: CancellationToken,
    closed: OnceCell<()>,
}

#[derive(Default)]
struct State {
    /// Those that begin, and those that are held, by their address.
    holds: HashMap<usize, Arc<Hold>>,
    is_refusing: bool,
    warned: HashSet<&'static str>,
}

/// The options of a gate. What is not set here comes from the environment.
#[derive(Clone, Default)]
#[must_use = "a builder makes no gate until `build`"]
pub struct GateBuilder {
    config: Config,
    access: AccessOptions,
}

impl GateBuilder {
    /// `HOST:PORT`, `https://HOST:PORT`, `dns:///NAME:PORT` or `unix:/path`. Default: the
    /// environment's `ONCEGATE_SERVER`, else `127.0.0.1:7411`.
    pub fn server(mut self, address: impl Into<String>) -> Self {
        self.access.server = Some(address.into());
        self
    }

    /// A PEM file: the CAs that the server's certificate may come from. Default:
    /// `ONCEGATE_TLS_CA`, else the CAs of the system.
    pub fn tls_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.access.tls_ca = Some(file.into());
        self
    }

    /// PEM files: the client's certificate, with its intermediates, and its private key, not
    /// encrypted. Default: `ONCEGATE_CLIENT_CERT` and `ONCEGATE_CLIENT_KEY`.
    pub fn tls_cert(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.access.tls_cert = Some(cert.into());
        self.access.tls_key = Some(key.into());
        self
    }

    /// The name that the server's certificate must be valid for, instead of that of the address.
    /// Default: `ONCEGATE_TLS_SERVER_NAME`. For tests.
    pub fn tls_server_name(mut self, name: impl Into<String>) -> Self {
        self.access.tls_server_name = Some(name.into());
        self
    }

    /// A token, which is sent with each call.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.access.token = Some(token.into());
        self
    }

    /// A file with the token, which is read for each call. Default: `ONCEGATE_TOKEN_FILE`.
    pub fn token_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.access.token_file = Some(file.into());
        self
    }

    /// Allows a token in plaintext to a host that is not this one.
    pub fn insecure(mut self) -> Self {
        self.access.insecure = true;
        self
    }

    /// The application that handles the events, such as a bot's name. Each consumer handles an event
    /// once. Default: one that all share.
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.config.consumer = name.into();
        self
    }

    /// Lets all consumers take turns in a conversation. Default: each has its own.
    pub fn share_sessions(mut self, share: bool) -> Self {
        self.config.share_sessions = share;
        self
    }

    /// The name that others see while this process holds something.
    pub fn holder(mut self, name: impl Into<String>) -> Self {
        self.config.holder = name.into();
        self
    }

    /// How long a turn or lease runs unless it is renewed: how long a conversation stays with a
    /// process that vanished. 1 s to 15 min; default 45 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.config.ttl = ttl;
        self
    }

    /// How long a turn stays with a process whose stream broke. Default: half the TTL, at least 5 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.config.asked_grace = Some(grace);
        self
    }

    /// How long to try while the server is unavailable or overloaded. Default 10 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.config.patience = patience;
        self
    }

    /// What happens to a turn after the patience. Default: [`OnUnavailable::Raise`].
    pub fn on_unavailable(mut self, then: OnUnavailable) -> Self {
        self.config.on_unavailable = then;
        self
    }

    /// After how many failed attempts an event is given up. 1 to 100; default 5.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.config.max_attempts = attempts;
        self
    }

    /// What to observe. A panic of a hook is logged, and has no other effect.
    pub fn hooks(mut self, hooks: impl Hooks + 'static) -> Self {
        self.config.hooks = Arc::new(Caught(hooks));
        self
    }

    /// Makes the gate.
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`] or [`Error::Invalid`] if an option cannot be used.
    pub fn build(mut self) -> Result<Gate, Error> {
        if self.config.holder.is_empty() {
            self.config.holder = holder_name(&self.config.consumer);
        }
        self.config.check()?;
        let access = Access::new(self.access, &environment)?;
        Ok(Gate {
            inner: Arc::new(GateInner {
                config: self.config,
                link: Arc::new(Link::new(access)),
                tasks: TaskTracker::new(),
                calls: TaskTracker::new(),
                state: Mutex::default(),
                is_changed: Notify::new(),
                closing: CancellationToken::new(),
                closed: OnceCell::new(),
            }),
        })
    }
}

impl Gate {
    /// A gate by the environment alone: see [`Gate::builder`].
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`] if a setting cannot be used.
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// The options of a gate.
    pub fn builder() -> GateBuilder {
        GateBuilder::default()
    }

    /// Claims an event and its conversation: [`TurnRequest::run`] runs a handler in the turn, and
    /// [`TurnRequest::begin`] returns it as a scope.
    pub fn turn(&self, delivery: Delivery) -> TurnRequest {
        TurnRequest::new(self.clone(), delivery, None)
    }

    /// Claims the event alone, whatever its conversation. Its result is stored, and returned to
    /// duplicates.
    pub fn once(&self, delivery: Delivery) -> OnceRequest {
        OnceRequest { turn: self.turn(delivery.without_session()) }
    }

    /// Carries on a turn that another process began, and left by
    /// [`Turn::detach`](crate::Turn::detach). It ends as any turn. Its wait, epic, labels and attempts are those
    /// that it began with.
    pub fn adopt(&self, turn_id: impl Into<String>) -> TurnRequest {
        TurnRequest::new(self.clone(), Delivery::default(), Some(turn_id.into()))
    }

    /// Holds a conversation: [`LeaseRequest::acquire`].
    pub fn lease(&self, session: impl Into<Session>) -> LeaseRequest {
        LeaseRequest {
            gate: self.clone(),
            session: session.into(),
            config: self.inner.config.clone(),
        }
    }

    /// Fails the turns that run, so that the next delivery gets their events at once. Their handlers
    /// are dropped, or told. It takes a few seconds if the server does not answer.
    pub async fn close(&self) {
        let inner = self.inner.clone();
        let closing = async move {
            for hold in inner.refuse() {
                hold.close();
            }
            inner.tasks.close();
            inner.calls.close();
            // A beginning that is refused may give back what it was granted.
            let ends = async {
                inner.calls.wait().await;
                inner.tasks.wait().await;
            };
            let _ = timeout(ENDING_TIME, ends).await;
            inner.link.close();
            inner.tasks.wait().await;
        };
        // A task of its own: a handler that closes its gate is dropped, and this with it. The task fails with
        // its runtime, which ends the rest, too.
        let closed = self.inner.closed.get_or_init(|| async {
            let _ = tokio::spawn(closing).await;
        });
        closed.await;
    }

    /// Grants no new turns and leases, waits for those that run, and closes the gate. False if some
    /// still ran after this time: they have failed, as with [`Gate::close`].
    pub async fn drain(&self, time: Duration) -> bool {
        self.inner.refuse();
        let is_empty = timeout(time, self.inner.is_empty()).await.is_ok();
        self.close().await;
        is_empty
    }

    /// Waits until the gate grants nothing any more, because it drains or is closed.
    pub async fn done(&self) {
        self.inner.closing.cancelled().await;
    }
}

/// Shows no setting.
impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("holder", &self.inner.config.holder).finish_non_exhaustive()
    }
}

/// Shows no setting.
impl std::fmt::Debug for GateBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GateBuilder").finish_non_exhaustive()
    }
}

/// What has been entered, unless it is dropped.
pub(crate) struct Entry<'a> {
    hold: Option<&'a Arc<Hold>>,
}

impl Entry<'_> {
    pub(crate) fn keep(mut self) {
        self.hold = None;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(hold) = self.hold {
            hold.gate.forget(hold);
        }
    }
}

fn address_of(hold: &Hold) -> usize {
    std::ptr::from_ref(hold).addr()
}

impl GateInner {
    /// From now on it is held, or begins.
    pub(crate) fn enter<'a>(&self, hold: &'a Arc<Hold>) -> Result<Entry<'a>, Error> {
        let mut state = locked(&self.state);
        if state.is_refusing {
            return Err(Error::Closed);
        }
        state.holds.insert(address_of(hold), hold.clone());
        Ok(Entry { hold: Some(hold) })
    }

    /// It is not held any more.
    pub(crate) fn forget(&self, hold: &Hold) {
        let forgotten = locked(&self.state).holds.remove(&address_of(hold));
        drop(forgotten);
        hold.forgotten.cancel();
        self.is_changed.notify_waiters();
    }

    /// Grants no new turns and leases: their beginnings return [`Error::Closed`]. Returns the turns and
    /// leases that there are.
    fn refuse(&self) -> Vec<Arc<Hold>> {
        let holds: Vec<_> = {
            let mut state = locked(&self.state);
            state.is_refusing = true;
            state.holds.values().cloned().collect()
        };
        self.closing.cancel();
        for hold in &holds {
            hold.refuse();
        }
        holds
    }

    async fn is_empty(&self) {
        loop {
            let is_changed = self.is_changed.notified();
            if locked(&self.state).holds.is_empty() {
                return;
            }
            is_changed.await;
        }
    }

    /// Runs a task that `close` waits for; not without a runtime, which has ended its connections, too.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            self.tasks.spawn_on(work, &runtime);
        }
    }

    /// Warns once for each kind of delivery.
    pub(crate) fn warn_unguarded(&self, kind: &'static str) {
        if locked(&self.state).warned.insert(kind) {
            tracing::warn!(
                kind,
                "a payload names no event; its handler runs without a turn (reported once)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_close_that_is_dropped_ends_all_the_same() {
        let gate = Gate::builder().server("127.0.0.1:1").build().expect("a gate");
        let (end, ended) = oneshot::channel::<()>();
        gate.inner.spawn(async {
            let _ = ended.await;
        });
        tokio::select! {
            biased;
            () = pin!(gate.close()) => panic!("a task still runs"),
            () = gate.done() => {}
        }
        drop(end);
        let closed = gate.inner.link.closed.cancelled();
        timeout(Duration::from_secs(10), closed).await.expect("the connections are closed");
    }
}
