//! The threads that serve calls: one a core, each with a runtime of its own.
//!
//! A call stays on the thread that reads its connection, from the socket to the
//! lane and back, so that nothing is handed from core to core, nor woken across
//! them: 1.7 times the calls a second that one runtime of several threads
//! serves, on two cores (docs/performance.md). Connections are dealt out here
//! rather than by the kernel (`SO_REUSEPORT`), which takes no account of how
//! many each thread has, and knows nothing of it for Unix sockets.

use std::{io, sync::Arc, thread, time::Duration};

use hyper::{server::conn::http2::Builder, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    runtime::{self, Handle},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::LimitConfig,
    grpc::Gate,
    listener::{Listener, Peer, Socket},
    telemetry::Seldom,
};

/// How often each worker wakes up for nothing.
const BEAT: Duration = Duration::from_millis(250);
/// How many connections may wait for one worker to take them over.
const ARRIVALS: usize = 64;
/// The longest list of headers that is read, in bytes. A longer one is answered with 431.
const MAX_HEADER_LIST_BYTES: u32 = 256 * 1024;
/// How long to leave `accept` alone after it failed, which it does when there
/// are no file descriptors left: <https://man7.org/linux/man-pages/man2/accept.2.html>.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// One connection on its way to a worker, and its place among all of them.
struct Arrival {
    socket: Socket,
    place: Place,
}

/// Dropped with its connection.
struct Place {
    open: Gauge,
    _of_worker: Arc<()>,
    _room: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// Where connections for one worker go.
struct Desk {
    arrivals: mpsc::Sender<Arrival>,
    /// One more than its connections refer to this.
    load: Arc<()>,
}

/// The connections to a server, and what bounds and ends them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) limits: LimitConfig,
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
    /// Serves what connects to `listener`: by `gates[i]` on `runtimes[i]`.
    pub(super) fn serve(&self, listener: Listener, runtimes: &[Handle], gates: Vec<Gate>) {
        let desk = |(runtime, gate): (&Handle, Gate)| {
            let (arrivals, arriving) = mpsc::channel(ARRIVALS);
            runtime.spawn(self.clone().work(arriving, gate));
            Desk { arrivals, load: Arc::new(()) }
        };
        let desks = runtimes.iter().zip(gates).map(desk).collect();
        let accepting = self.clone().accept(listener, desks);
        let stop = self.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(accepting).await });
    }

    /// Deals connections out, each to the worker that has the fewest.
    async fn accept(self, listener: Listener, desks: Vec<Desk>) {
        let room = Arc::new(Semaphore::new(self.limits.max_connections));
        let mut warnings = Seldom::default();
        loop {
            let socket = match listener.accept().await {
                Ok(socket) => socket,
                Err(error) => {
                    if warnings.now() {
                        tracing::warn!(%error, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(room) = Arc::clone(&room).try_acquire_owned() else {
                if warnings.now() {
                    let most = self.limits.max_connections;
                    tracing::warn!(most, "too many connections: closed one");
                }
                continue;
            };
            self.open.inc();
            let Some(desk) = desks.iter().min_by_key(|desk| Arc::strong_count(&desk.load)) else {
                return;
            };
            let of_worker = Arc::clone(&desk.load);
            let place = Place { open: self.open.clone(), _of_worker: of_worker, _room: room };
            if desk.arrivals.send(Arrival { socket, place }).await.is_err() {
                return;
            }
        }
    }

    /// Serves the connections of one worker, on its runtime.
    async fn work(self, mut arriving: mpsc::Receiver<Arrival>, gate: Gate) {
        let http = self.http();
        while let Some(Arrival { socket, place }) = arriving.recv().await {
            let Ok(peer) = Peer::new(socket, self.limits.preface_timeout) else { continue };
            let gate = gate.clone();
            let answering = service_fn(move |request| gate.call(request));
            let connection = http.serve_connection(TokioIo::new(peer), answering);
            let (stop, cut) = (self.stop.clone(), self.cut.clone());
            self.served.spawn(async move {
                let _place = place;
                let mut connection = std::pin::pin!(connection);
                // How a connection ended is its peer's business.
                let ended = stop.run_until_cancelled(connection.as_mut()).await;
                if ended.is_none() {
                    connection.as_mut().graceful_shutdown();
                    let _ = cut.run_until_cancelled(connection).await;
                }
            });
        }
    }

    fn http(&self) -> Builder<TokioExecutor> {
        let limits = &self.limits;
        let mut http = Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
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
