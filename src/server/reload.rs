//! Files that are read again while the server runs, such as certificates.
//!
//! They are polled: a hash every few seconds costs nothing, while change notifications miss the
//! symbolic links by which Kubernetes replaces a volume's files. What was compared is what is
//! applied, so a file that changes in between cannot be used unseen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail, ensure};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{oneshot, watch},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{FileMetrics, ReloadMetrics};

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The most files of one set.
const MAX_FILES: usize = 64;
/// How long to wait for the file system, which may be mounted from elsewhere: for all files
/// together that are read at once.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const TIMED_OUT: &str = "timed out waiting for the file system";
/// How often a set is read at most until it is the same twice in a row.
const MAX_PASSES: usize = 3;
/// How often to look whether files that were changing have stopped to.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// What a set of files holds; of those that cannot be read, why.
#[derive(Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<PathBuf, Result<Vec<u8>, String>>);

impl Contents {
    /// The bytes of the file at `path`.
    ///
    /// # Errors
    /// When it is none of the set, or could not be read.
    pub fn get(&self, path: &Path) -> anyhow::Result<&[u8]> {
        match self.0.get(path) {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(why)) => bail!("{why}"),
            None => bail!("{} has not been read", path.display()),
        }
    }

    /// Why one of the files could not be read, if so.
    fn failure(&self) -> Option<&str> {
        self.0.values().find_map(|read| read.as_ref().err()).map(String::as_str)
    }

    fn digest(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        for (path, read) in &self.0 {
            let bytes = read.as_ref().map_or_else(String::as_bytes, Vec::as_slice);
            for part in [path.as_os_str().as_encoded_bytes(), bytes] {
                hash.update(part.len().to_be_bytes());
                hash.update(part);
            }
        }
        hash.finalize().into()
    }
}

/// How much of a content is in use.
pub enum Applied {
    /// All of it.
    Whole,
    /// All but this, which is as it was before, or is not in use if it is new.
    AllBut(String),
}

/// Identifies a content, or an error.
type Fingerprint = [u8; 32];

/// What reading a set came to; none where it changed meanwhile.
type ReadSet = anyhow::Result<Option<Contents>>;

/// Reads sets of files again: regularly, and at once on request. Cheap to clone.
#[derive(Clone)]
pub struct Reloader {
    interval: Duration,
    /// Sent to when all sets are to be read at once.
    requests: Arc<watch::Sender<()>>,
    metrics: ReloadMetrics,
    /// Ends the reading.
    stop: CancellationToken,
}

impl Reloader {
    /// Reads every `interval`, until `stop`.
    #[must_use]
    pub fn new(interval: Duration, metrics: ReloadMetrics, stop: CancellationToken) -> Self {
        Self { interval, requests: Arc::default(), metrics, stop }
    }

    /// Reads all sets at once.
    pub fn reload(&self) {
        self.requests.send_replace(());
    }

    /// Reads a set of files, named `what` in logs and metrics, and lets `apply` use it; from then
    /// on again whenever it has changed. `files` names them, given those that were read so far: a
    /// file may name others. What `apply` fails to use changes nothing. It may use a part of what
    /// has changed, and return why not all. What it returns is logged, so it must not quote the
    /// files.
    ///
    /// # Errors
    /// When the files cannot be read or used now.
    pub async fn watch(
        &self,
        what: &'static str,
        files: impl Fn(&Contents) -> Vec<PathBuf> + Send + 'static,
        apply: impl FnMut(&Contents) -> anyhow::Result<Applied> + Send + 'static,
    ) -> anyhow::Result<()> {
        let mut reader = Reader::new(files);
        let contents = reader.read().await?;
        if let Some(why) = contents.failure() {
            bail!("{why}");
        }
        let metrics = self.metrics.of(what);
        let mut set = FileSet::start(what, apply, metrics, &contents)?;
        let (mut requests, stop) = (self.requests.subscribe(), self.stop.clone());
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let following = async move {
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    // It lasts as long as this: `self` may be gone.
                    Ok(()) = requests.changed() => set.forget_failure(),
                }
                set.follow(reader.read().await);
            }
        };
        tokio::spawn(async move { stop.run_until_cancelled(following).await });
        Ok(())
    }
}

/// Reads one set of files, on a thread: a file system may keep it waiting.
struct Reader<F>(Arc<Mutex<SetReader<F>>>);

impl<F: Fn(&Contents) -> Vec<PathBuf> + Send + 'static> Reader<F> {
    fn new(files: F) -> Self {
        let pending = HashMap::new();
        Self(Arc::new(Mutex::new(SetReader { files, read: Arc::new(read_file), pending })))
    }

    /// Reads the set once it has stopped changing.
    ///
    /// # Errors
    /// When it cannot be read, or does not stop for a second.
    async fn read(&mut self) -> anyhow::Result<Contents> {
        for attempt in 0..TRIES {
            if attempt > 0 {
                sleep(PAUSE).await;
            }
            if let Some(contents) = self.try_read().await? {
                return Ok(contents);
            }
        }
        bail!("the files keep changing while they are read")
    }

    async fn try_read(&mut self) -> ReadSet {
        let (answer, reading) = oneshot::channel();
        let set = Arc::clone(&self.0);
        // Not as a blocking task of the runtime, whose end would wait for it.
        thread::Builder::new().name("reload".into()).spawn(move || {
            let _ = answer.send(set.lock().unwrap_or_else(PoisonError::into_inner).read());
        })?;
        reading.await.map_err(|_| anyhow!("reading failed"))?
    }
}

/// How one file is read.
type ReadFile = Arc<dyn Fn(&Path) -> anyhow::Result<Vec<u8>> + Send + Sync>;
type FileRead = anyhow::Result<Vec<u8>>;

/// Reads each file of a set on a thread of its own: one that hangs, as on a mount whose server
/// does not answer, keeps no other from being read.
struct SetReader<F> {
    files: F,
    read: ReadFile,
    /// Files whose threads have taken too long so far. A file has one thread at most.
    pending: HashMap<PathBuf, mpsc::Receiver<FileRead>>,
}

impl<F: Fn(&Contents) -> Vec<PathBuf>> SetReader<F> {
    /// Reads the set until it is the same twice in a row; none if it keeps changing. A file may
    /// vanish between two steps of a swap, or be of another version than the file before it.
    fn read(&mut self) -> ReadSet {
        let mut last = self.pass()?;
        for _ in 1..MAX_PASSES {
            let next = self.pass()?;
            if next == last {
                return Ok(Some(next));
            }
            last = next;
        }
        Ok(None)
    }

    fn pass(&mut self) -> anyhow::Result<Contents> {
        // What comes late may have changed since, so it is read again.
        self.pending.retain(|_, reading| matches!(reading.try_recv(), Err(TryRecvError::Empty)));
        let mut contents = Contents::default();
        loop {
            let mut named = BTreeSet::from_iter((self.files)(&contents));
            named.retain(|path| !contents.0.contains_key(path));
            if named.is_empty() {
                return Ok(contents);
            }
            ensure!(contents.0.len() + named.len() <= MAX_FILES, "more than {MAX_FILES} files");
            let begun: Vec<_> = named.into_iter().map(|path| (self.begin(&path), path)).collect();
            let until = Instant::now() + READ_TIMEOUT;
            for (reading, path) in begun {
                let read = reading.and_then(|reading| self.finish(&path, reading, until));
                let why = |error| format!("cannot read {}: {error:#}", path.display());
                let read = read.map_err(why);
                contents.0.insert(path, read);
            }
        }
    }

    fn begin(&self, path: &Path) -> anyhow::Result<mpsc::Receiver<FileRead>> {
        ensure!(!self.pending.contains_key(path), TIMED_OUT);
        ensure!(self.pending.len() < MAX_FILES, "too many other files do not answer");
        let (answer, reading) = mpsc::channel();
        let (read, path) = (Arc::clone(&self.read), path.to_owned());
        thread::Builder::new().name("reload-file".into()).spawn(move || {
            let _ = answer.send(read(&path));
        })?;
        Ok(reading)
    }

    fn finish(
        &mut self,
        path: &Path,
        reading: mpsc::Receiver<FileRead>,
        until: Instant,
    ) -> FileRead {
        let left = until.saturating_duration_since(Instant::now());
        match reading.recv_timeout(left) {
            Ok(read) => read,
            Err(RecvTimeoutError::Disconnected) => bail!("reading failed"),
            Err(RecvTimeoutError::Timeout) => {
                self.pending.insert(path.to_owned(), reading);
                bail!(TIMED_OUT)
            }
        }
    }
}

fn read_file(path: &Path) -> FileRead {
    // A pipe without a writer would keep this waiting.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    ensure!(found.is_file(), "not a regular file");
    ensure!(found.len() <= MAX_FILE_BYTES, "larger than {} KiB", MAX_FILE_BYTES / 1024);
    let mut bytes = Vec::new();
    let mut limited = file.take(MAX_FILE_BYTES + 1);
    limited.read_to_end(&mut bytes)?;
    ensure!(limited.limit() > 0, "larger than {} KiB", MAX_FILE_BYTES / 1024);
    Ok(bytes)
}

/// What is in use of one set of files, and what could not be used.
struct FileSet<A> {
    what: &'static str,
    apply: A,
    metrics: FileMetrics,
    applied: Fingerprint,
    /// Whether a part of that is not in use.
    is_partial: bool,
    /// What was logged last.
    failed: Option<Fingerprint>,
}

impl<A: FnMut(&Contents) -> anyhow::Result<Applied>> FileSet<A> {
    fn start(
        what: &'static str,
        mut apply: A,
        metrics: FileMetrics,
        contents: &Contents,
    ) -> anyhow::Result<Self> {
        if let Applied::AllBut(problem) = apply(contents)? {
            bail!(problem);
        }
        let (applied, is_partial) = (contents.digest(), false);
        Ok(Self { what, apply, metrics, applied, is_partial, failed: None })
    }

    /// Logs the next failure even if it is an old one.
    fn forget_failure(&mut self) {
        self.failed = None;
    }

    /// Uses what was read, if it has changed.
    fn follow(&mut self, read: anyhow::Result<Contents>) {
        let (fingerprint, applied) = match read {
            Ok(contents) => {
                let digest = contents.digest();
                if digest == self.applied {
                    if self.is_partial {
                        return;
                    }
                    if self.metrics.stale.set(0) == 1 {
                        tracing::info!(what = self.what, "files hold the content in use again");
                    }
                    self.failed = None;
                    return;
                }
                // Even if it failed before: what is not valid yet may be by now.
                (digest, (self.apply)(&contents))
            }
            Err(error) => (Sha256::digest(format!("{error:#}")).into(), Err(error)),
        };
        match applied {
            Ok(Applied::AllBut(problem)) => {
                (self.applied, self.is_partial) = (fingerprint, true);
                self.failed = None;
                self.metrics.failed.inc();
                self.metrics.stale.set(1);
                tracing::error!(
                    what = self.what,
                    error = problem,
                    "files have changed; a part of their content cannot be used"
                );
            }
            Ok(Applied::Whole) => {
                (self.applied, self.is_partial) = (fingerprint, false);
                self.failed = None;
                self.metrics.applied.inc();
                self.metrics.stale.set(0);
                tracing::info!(what = self.what, "files have changed; their content is in use");
            }
            Err(error) => {
                self.metrics.stale.set(1);
                if self.failed.replace(fingerprint) != Some(fingerprint) {
                    self.metrics.failed.inc();
                    tracing::error!(
                        what = self.what,
                        error = format!("{error:#}"),
                        "cannot use the changed files; the previous content stays in use"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
