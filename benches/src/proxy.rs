//! A network between PostgreSQL and what is measured: every byte arrives later by the same time.
//!
//! One thread forwards all connections, so that the proxy takes little of the machine. It waits
//! in `ppoll`, which is exact to microseconds; a timer of tokio's is exact to a millisecond.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    thread::set_current_timer_slack,
};

/// The most that is read at once.
const CHUNK: usize = 64 * 1024;
/// The most that is on its way in one direction; what exceeds it stays in the kernel's buffers.
const ON_THE_WAY: usize = 4 * 1024 * 1024;
/// How long the thread waits before it looks whether the proxy is still needed.
const REST: Duration = Duration::from_millis(100);

/// A running proxy; it ends with this value.
pub struct Proxy {
    upstream: SocketAddr,
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Forwards connections to `upstream`, what is sent by either side later by `delay`.
    pub fn start(upstream: SocketAddr, delay: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("start the proxy")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let needed = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            if let Err(error) = forward(&listener, upstream, delay, &needed) {
                eprintln!("  the proxy to {upstream} ended: {error:#}");
            }
        });
        Ok(Self { upstream, address, ended, thread: Some(thread) })
    }

    /// Where `url`, which is at the upstream, is reached through this proxy.
    pub fn url(&self, url: &str) -> String {
        url.replacen(&self.upstream.to_string(), &self.address.to_string(), 1)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What one side has sent and the other has not received yet.
#[derive(Default)]
struct OnTheWay {
    /// When each piece is due, and what is left of it.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// The sender has closed its end.
    closed: bool,
    /// The receiver accepts no more at present.
    blocked: bool,
}

impl OnTheWay {
    /// Reads what `sender` has sent.
    fn receive(&mut self, mut sender: &TcpStream, delay: Duration, buffer: &mut [u8]) {
        match sender.read(buffer) {
            Ok(0) => self.closed = true,
            Ok(count) => {
                self.pieces.push_back((Instant::now() + delay, buffer[..count].to_vec()));
                self.bytes += count;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
    }

    /// Writes to `receiver` what is due.
    fn deliver(&mut self, mut receiver: &TcpStream, now: Instant) {
        self.blocked = false;
        while let Some((_, piece)) = self.pieces.front_mut().filter(|(due, _)| *due <= now) {
            match receiver.write(piece) {
                Ok(count) => {
                    self.bytes -= count;
                    piece.drain(..count);
                    if piece.is_empty() {
                        self.pieces.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return;
                }
                Err(_) => {
                    self.pieces.clear();
                    self.closed = true;
                }
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        self.pieces.front().map(|(due, _)| *due).filter(|_| !self.blocked)
    }

    /// Whether the connection is over, by this direction.
    fn over(&self) -> bool {
        self.closed && self.pieces.is_empty()
    }
}

/// A connection: the two ends, and what each has sent.
struct Connection {
    ends: [TcpStream; 2],
    sent: [OnTheWay; 2],
}

impl Connection {
    fn open(client: TcpStream, upstream: SocketAddr) -> anyhow::Result<Self> {
        let ends = [client, TcpStream::connect(upstream).context("connect to PostgreSQL")?];
        for end in &ends {
            end.set_nodelay(true)?;
            end.set_nonblocking(true)?;
        }
        Ok(Self { ends, sent: Default::default() })
    }

    /// What is waited for at one of the ends.
    fn wanted(&self, end: usize) -> PollFlags {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, !self.sent[end].closed && self.sent[end].bytes < ON_THE_WAY);
        wanted.set(PollFlags::OUT, self.sent[1 - end].blocked);
        wanted
    }
}

fn forward(
    listener: &TcpListener,
    upstream: SocketAddr,
    delay: Duration,
    ended: &AtomicBool,
) -> anyhow::Result<()> {
    // By default the kernel may wake this thread 50 µs late.
    set_current_timer_slack(NonZeroU64::new(1))?;
    let mut buffer = vec![0; CHUNK];
    let mut connections: Vec<Connection> = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let due = connections.iter().flat_map(|c| &c.sent).filter_map(OnTheWay::due).min();
        let ready = wait(listener, &connections, due)?;
        for (connection, ready) in connections.iter_mut().zip(ready.chunks(2)) {
            let Connection { ends, sent } = connection;
            for end in 0..2 {
                if ready[end] && !sent[end].closed {
                    sent[end].receive(&ends[end], delay, &mut buffer);
                }
            }
        }
        let now = Instant::now();
        for Connection { ends, sent } in &mut connections {
            for end in 0..2 {
                sent[end].deliver(&ends[1 - end], now);
            }
        }
        connections.retain(|connection| !connection.sent.iter().any(OnTheWay::over));
        while let Ok((client, _)) = listener.accept() {
            connections.push(Connection::open(client, upstream)?);
        }
    }
    Ok(())
}

/// Waits until something is sent, can be delivered, or is due. Returns for the two ends of each
/// connection whether there is something to read.
fn wait(
    listener: &TcpListener,
    connections: &[Connection],
    due: Option<Instant>,
) -> anyhow::Result<Vec<bool>> {
    let ends = connections
        .iter()
        .flat_map(|connection| [0, 1].map(|end| (&connection.ends[end], connection.wanted(end))));
    let mut watched: Vec<PollFd<'_>> = ends.map(|(end, wanted)| PollFd::new(end, wanted)).collect();
    watched.push(PollFd::new(listener, PollFlags::IN));
    let rest = due.map_or(REST, |due| due.saturating_duration_since(Instant::now())).min(REST);
    match poll(&mut watched, Some(&Timespec::try_from(rest)?)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
    Ok(watched.iter().map(|watched| watched.revents().intersects(readable)).collect())
}
