//! A replica: the server's process, through all its lives, and the proxy before it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex as AsyncMutex,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    proxy::Proxy,
    server::{FirstLine, MODE, MOVED},
};

pub struct Replica {
    arguments: Vec<String>,
    socket: PathBuf,
    /// How far its clock is ahead, in milliseconds; none if it cannot be moved.
    ahead: Option<AtomicU64>,
    process: Mutex<Arc<Process>>,
    /// One restart at a time.
    restarting: AsyncMutex<()>,
    pub proxy: Proxy,
}

impl Replica {
    /// Starts a server that listens on `socket`, with further `flags`, and a proxy before it.
    pub async fn start(
        url: &str,
        socket: PathBuf,
        flags: &[String],
        has_clock: bool,
    ) -> anyhow::Result<Self> {
        let listen = format!("unix:{}", socket.display());
        let own = [MODE, "--database-url", url, "--listen", &listen];
        let own = own.into_iter().chain(["--ops-listen", "127.0.0.1:0"]);
        let arguments: Vec<_> = own.map(str::to_owned).chain(flags.iter().cloned()).collect();
        let proxy = Proxy::start(&socket).await?;
        let ahead = has_clock.then(AtomicU64::default);
        let process = Process::start(&arguments, ahead.as_ref()).await?;
        let process = Mutex::new(Arc::new(process));
        Ok(Self { arguments, socket, ahead, process, restarting: AsyncMutex::default(), proxy })
    }

    /// Where clients reach it: its proxy.
    pub fn address(&self) -> SocketAddr {
        self.proxy.address
    }

    /// Where the server listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The latest process.
    fn latest(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The process, which must run.
    pub fn process(&self) -> anyhow::Result<Arc<Process>> {
        let process = self.latest();
        ensure!(!process.ended.is_cancelled(), "the server does not run; restart it first");
        Ok(process)
    }

    /// Asks the server to shut down.
    pub fn drain(&self) -> anyhow::Result<()> {
        let process = self.process()?;
        process.is_ending.store(true, Ordering::SeqCst);
        process.signal(Signal::TERM)
    }

    /// Kills the server, and waits until its process has ended. It may have ended before.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.latest().kill().await
    }

    pub fn mute(&self) -> anyhow::Result<()> {
        self.process()?.signal(Signal::STOP)
    }

    pub fn unmute(&self) -> anyhow::Result<()> {
        self.process()?.signal(Signal::CONT)
    }

    /// Waits until the server has ended, and for `pause`; then starts it again.
    pub async fn restart(&self, pause: Duration) -> anyhow::Result<()> {
        let _restarting = self.restarting.lock().await;
        let process = self.latest();
        ensure!(
            process.ended.is_cancelled() || process.is_ending.load(Ordering::SeqCst),
            "the server runs; drain or kill it first"
        );
        process.ended.cancelled().await;
        sleep(pause).await;
        let process = Process::start(&self.arguments, self.ahead.as_ref()).await?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(process);
        Ok(())
    }

    /// Moves the store's clock forward.
    pub async fn advance(&self, millis: u64) -> anyhow::Result<()> {
        let ahead = self.ahead.as_ref().context("only the clock of SQLite can be moved")?;
        self.process()?.advance(millis).await?;
        ahead.fetch_add(millis, Ordering::SeqCst);
        Ok(())
    }

    /// Ends the server for good.
    pub async fn end(&self) {
        // It fails only if the process has ended.
        let _ = self.kill().await;
    }
}

/// One life of the server.
pub struct Process {
    pid: Pid,
    pub metrics: SocketAddr,
    /// How many of the finished calls were the testbed's own `IsProcessed`.
    pub own_looks: AtomicU64,
    is_ending: AtomicBool,
    ended: CancellationToken,
    clock: AsyncMutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

impl Process {
    /// Returns once it listens.
    async fn start(arguments: &[String], ahead: Option<&AtomicU64>) -> anyhow::Result<Self> {
        // The replica runs this program as well, in another mode.
        let mut child = Command::new(std::env::current_exe()?)
            .env_clear()
            // Flags override these. A sweep would delete idle sessions under a scenario that looks at them.
            .env("ONCEGATE_LOG", "warn")
            .env("ONCEGATE_SWEEP_INTERVAL", "1h")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().context("the server has no standard input")?;
        let stdout = child.stdout.take().context("the server has no standard output")?;
        let first =
            ahead.map_or(FirstLine::Store, |ahead| FirstLine::Ahead(ahead.load(Ordering::SeqCst)));
        stdin.write_all(format!("{}\n", serde_json::to_string(&first)?).as_bytes()).await?;
        let mut lines = BufReader::new(stdout).lines();
        let Some(metrics) = ready(&mut lines).await? else {
            let status = child.wait().await?;
            bail!("the server did not start, {status}; its log is on standard error");
        };
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let ended = CancellationToken::new();
        tokio::spawn(reap(child, ended.clone()));
        Ok(Self {
            pid: pid.context("the server ended at once")?,
            metrics,
            own_looks: AtomicU64::default(),
            is_ending: AtomicBool::default(),
            ended,
            clock: AsyncMutex::new((stdin, lines)),
        })
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    async fn kill(&self) -> anyhow::Result<()> {
        self.is_ending.store(true, Ordering::SeqCst);
        if !self.ended.is_cancelled() {
            self.signal(Signal::KILL)?;
        }
        self.ended.cancelled().await;
        Ok(())
    }

    async fn advance(&self, millis: u64) -> anyhow::Result<()> {
        let mut clock = self.clock.lock().await;
        let (stdin, lines) = &mut *clock;
        stdin.write_all(format!("{millis}\n").as_bytes()).await?;
        let answer = lines.next_line().await?;
        ensure!(answer.as_deref() == Some(MOVED), "the server ended before its clock was moved");
        Ok(())
    }
}

async fn reap(mut child: Child, ended: CancellationToken) {
    let _ = child.wait().await;
    ended.cancel();
}

/// Reads what a server prints once it listens, and returns where its metrics are; none if it
/// ended instead.
async fn ready(lines: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<Option<SocketAddr>> {
    let mut metrics = None;
    while let Some(line) = lines.next_line().await? {
        if let Some(page) = line.strip_prefix("metrics: http://") {
            let address = page.strip_suffix("/metrics").unwrap_or(page);
            metrics = Some(address.parse().map_err(|_| anyhow!("no address: {line}"))?);
        }
        if line.starts_with("try: ") {
            return Ok(metrics);
        }
    }
    Ok(None)
}
