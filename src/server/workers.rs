//! The threads that serve calls: one a core, each with a runtime of its own.
//!
//! A call stays on the thread that reads its connection, from the socket to the
//! lane and back, so that nothing is handed from core to core, nor woken across
//! them: 1.7 times the calls a second that one runtime of several threads
//! serves, on two cores (docs/performance.md). Connections are dealt out here
//! rather than by the kernel (`SO_REUSEPORT`), which takes no account of how
//! many each thread has, and knows nothing of it for Unix sockets.

use std::{io, ops::RangeInclusive, pin::pin, sync::Arc, thread, time::Duration};

use futures_util::future::select_all;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    runtime::{self, Handle},
    sync::{Semaphore, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    certificates::ListenerTls,
    drain::CLOSE_TIMEOUT,
    latest::EvictingConnections,
    strangers::{Place, Strangers},
};
use crate::{
    config::LimitConfig,
    grpc::{Connection, GrpcService, Known},
    sockets::{ClientTrust, Listener, Peer, Socket},
    telemetry::LogThrottle,
};

/// How often each worker wakes up for nothing.
const BEAT: Duration = Duration::from_millis(250);
/// How many connections may wait for one worker to take them over.
const ARRIVALS: usize = 64;
/// A connection's time, as a part of what it may be: those that began together do
/// not end together.
const AGE_JITTER: RangeInclusive<f64> = 0.9..=1.1;
/// The longest head of a request over HTTP/1.1, in bytes. A longer one is answered with 431.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// The longest list of headers that is read, in bytes. A longer one is answered with 431.
const MAX_HEADER_LIST_BYTES: u32 = 256 * 1024;
/// How long to leave `accept` alone after it failed, which it does when there
/// are no file descriptors left: <https://man7.org/linux/man-pages/man2/accept.2.html>.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The threads. They end when this is dropped.
pub(super) struct Workers {
    runtimes: Vec<Handle>,
    end: CancellationToken,
}

impl Workers {
    /// Starts `count` threads.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let mut workers = Self { runtimes: Vec::new(), end: CancellationToken::new() };
        for number in 0..count {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            workers.runtimes.push(runtime.handle().clone());
            let end = workers.end.clone();
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || runtime.block_on(end.run_until_cancelled(beat())))?;
        }
        Ok(workers)
    }

    /// Where each runs what is spawned on it.
    pub(super) fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }
}

/// Keeps a timer running that ends soon. A runtime that sets one that ends sooner
/// than all others wakes itself for it, by two system calls; that of a call, of
/// some seconds, hardly ever does so then.
async fn beat() {
    let mut beat = tokio::time::interval(BEAT);
    loop {
        beat.tick().await;
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// One connection on its way to a worker.
struct Accepted {
    socket: Socket,
    slot: ConnectionSlot,
    place: Arc<Place>,
}

/// What a connection counts towards, until it is dropped with the connection.
struct ConnectionSlot {
    open: Gauge,
    /// Its worker's, if it has one.
    _load: Option<Arc<()>>,
}

impl ConnectionSlot {
    fn new(open: &Gauge, load: Option<Arc<()>>) -> Self {
        open.inc();
        Self { open: open.clone(), _load: load }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// Where connections for one worker go.
struct WorkerQueue {
    arrivals: mpsc::Sender<Accepted>,
    /// One more than its connections refer to this.
    load: Arc<()>,
}

/// Serves connections over the limit: health is answered there, so that a full
/// server is not taken for a dead one.
struct OverLimit {
    runtime: Handle,
    gate: GrpcService,
    connections: EvictingConnections,
}

/// Returns after `span`, or never.
async fn after(span: Option<Duration>) {
    match span {
        Some(span) => tokio::time::sleep(span).await,
        None => std::future::pending().await,
    }
}

/// Returns once a client's certificate is no longer accepted.
async fn lost(trust: Option<ClientTrust>) {
    match trust {
        Some(trust) => trust.lost().await,
        None => std::future::pending().await,
    }
}

/// The connections to a server, and what bounds and ends them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) limits: LimitConfig,
    /// What TCP connections begin with.
    pub(super) tls: Option<ListenerTls>,
    /// What the calls of a connection that is too old may still take.
    pub(super) grace: Duration,
    /// How many there are.
    pub(super) open: Gauge,
    /// Ends each once its calls are answered.
    pub(super) stop: CancellationToken,
    /// Ends each at once, whatever its peer does.
    pub(super) cut: CancellationToken,
    /// Done when there are none any more.
    pub(super) served: TaskTracker,
}

impl Connections {
    /// Serves what connects to `listeners`: by `gates[i]` on `runtimes[i]`.
    pub(super) fn serve(
        &self,
        listeners: Vec<Listener>,
        runtimes: &[Handle],
        gates: Vec<GrpcService>,
    ) {
        let (Some(runtime), Some(gate)) = (runtimes.first(), gates.first()) else { return };
        let over_limit = OverLimit {
            runtime: runtime.clone(),
            gate: gate.health_only(),
            connections: EvictingConnections::default(),
        };
        let desk = |(runtime, gate): (&Handle, GrpcService)| {
            let (arrivals, arriving) = mpsc::channel(ARRIVALS);
            runtime.spawn(self.clone().work(arriving, gate));
            WorkerQueue { arrivals, load: Arc::new(()) }
        };
        let desks = runtimes.iter().zip(gates).map(desk).collect();
        let accepting = self.clone().accept(listeners, desks, over_limit);
        let stop = self.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(accepting).await });
    }

    /// Deals connections out, each to the worker that has the fewest.
    async fn accept(
        self,
        mut listeners: Vec<Listener>,
        desks: Vec<WorkerQueue>,
        mut over_limit: OverLimit,
    ) {
        let room = Arc::new(Semaphore::new(self.limits.max_connections));
        let mut strangers = Strangers::new(self.limits.preface_timeout);
        let mut warnings = LogThrottle::default();
        loop {
            let accepting = select_all(listeners.iter().map(|from| Box::pin(from.accept())));
            let (accepted, from, _) = accepting.await;
            // The next turn is another's, however many connect to this one.
            listeners.rotate_left(from + 1);
            let socket = match accepted {
                Ok(socket) => socket,
                Err(error) => {
                    if warnings.now() {
                        tracing::warn!(%error, "cannot accept a connection; retrying");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let free = Arc::clone(&room).try_acquire_owned().ok();
            if free.is_none() && warnings.now() {
                let most = self.limits.max_connections;
                tracing::warn!(
                    most,
                    "connection limit reached; a further connection replaces the oldest one without \
                     an accepted call, or is served health checks only"
                );
            }
            let Some(permit) = free.or_else(|| strangers.evict()) else {
                let slot = ConnectionSlot::new(&self.open, None);
                let arrival = Accepted { socket, slot, place: Arc::default() };
                let connection = self.clone().answer(arrival, self.http(), over_limit.gate.clone());
                let serving = over_limit.runtime.spawn(self.served.track_future(connection));
                over_limit.connections.add(serving.abort_handle());
                continue;
            };
            let Some(desk) = desks.iter().min_by_key(|desk| Arc::strong_count(&desk.load)) else {
                return;
            };
            let slot = ConnectionSlot::new(&self.open, Some(Arc::clone(&desk.load)));
            let place = strangers.place(permit);
            if desk.arrivals.send(Accepted { socket, slot, place }).await.is_err() {
                return;
            }
        }
    }

    /// Serves the connections of one worker, on its runtime.
    async fn work(self, mut arriving: mpsc::Receiver<Accepted>, gate: GrpcService) {
        let http = self.http();
        while let Some(arrival) = arriving.recv().await {
            self.served.spawn(self.clone().answer(arrival, http.clone(), gate.clone()));
        }
    }

    /// Serves one connection, unless its place is given to another.
    async fn answer(self, arrival: Accepted, http: Builder<TokioExecutor>, gate: GrpcService) {
        let Accepted { socket, slot: _slot, place } = arrival;
        let serving = self.serve_one(socket, Arc::clone(&place.known), http, gate);
        place.evicted.run_until_cancelled(Box::pin(serving)).await;
    }

    /// Serves one connection: to its end, or the server's, or that of its time; or
    /// until a call was refused on it only because it is over the limit, so that its
    /// caller connects again. A connection that outlives its grace is cut, after its
    /// streams were ended as in a drain: what they keep stays its holder's. One whose client is
    /// no longer trusted has no grace.
    async fn serve_one(
        self,
        socket: Socket,
        known: Arc<Known>,
        http: Builder<TokioExecutor>,
        gate: GrpcService,
    ) {
        let Some(mut peer) = self.peer(socket).await else { return };
        let trust = peer.take_trust();
        let connection = Arc::new(Connection::of(peer.identity().clone(), known));
        let gate = gate.on(Arc::clone(&connection));
        let answering = service_fn(move |request| gate.answer(request));
        let mut serving = pin!(http.serve_connection(TokioIo::new(peer), answering));
        let age = self.limits.max_connection_age;
        let age = (!age.is_zero()).then(|| age.mul_f64(rand::random_range(AGE_JITTER)));
        let mut distrusted = pin!(lost(trust));
        let grace = tokio::select! {
            biased;
            // How a connection ended is its peer's business.
            _ = serving.as_mut() => return,
            () = self.stop.cancelled() => None,
            () = connection.refused.cancelled() => Some(self.grace),
            () = after(age) => Some(self.grace),
            () = distrusted.as_mut() => Some(Duration::ZERO),
        };
        serving.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            _ = serving.as_mut() => return,
            () = self.cut.cancelled() => return,
            () = after(grace) => {}
            // Once it has come it is not waited for again.
            () = distrusted, if grace != Some(Duration::ZERO) => {}
        }
        connection.leaving.cancel();
        tokio::select! {
            biased;
            _ = serving => {}
            () = self.cut.cancelled() => {}
            () = tokio::time::sleep(CLOSE_TIMEOUT) => {}
        }
    }

    /// The other end of a connection, after its handshake; none where that failed, or the server
    /// ends meanwhile.
    async fn peer(&self, socket: Socket) -> Option<Peer> {
        // Unix sockets have no handshake.
        let tls = self.tls.as_ref().filter(|_| matches!(socket, Socket::Tcp(_)));
        let accepting = Peer::accept(socket, &self.limits, tls.map(|it| &it.tls));
        let accepted = self.stop.run_until_cancelled(accepting).await?;
        if let Some(tls) = tls {
            tls.ended(&accepted);
        }
        accepted.ok()
    }

    fn http(&self) -> Builder<TokioExecutor> {
        let limits = &self.limits;
        let mut http = Builder::new(TokioExecutor::new());
        // gRPC-Web. Its callers open a connection again that was idle.
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.preface_timeout)
            .max_buf_size(MAX_HEADER_BYTES);
        http.http2()
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(limits.max_streams)
            // Or many callers of one connection that give up at once, as they do under
            // load, would cost the others the connection: 20 may, by default.
            .max_pending_accept_reset_streams(usize::try_from(limits.max_streams).ok())
            // Far more than a call's metadata may be: what is longer than this ends the
            // connection when it is four times as long, with the other calls on it.
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .keep_alive_interval(limits.keepalive_interval)
            .keep_alive_timeout(limits.keepalive_timeout);
        http
    }
}
