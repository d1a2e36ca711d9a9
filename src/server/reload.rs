//! Files that are read again while the server runs, such as certificates.
//!
//! They are polled: a hash every few seconds costs nothing, while change notifications miss the
//! symbolic links by which Kubernetes replaces a volume's files. What was compared is what is
//! applied, so a file that changes in between cannot be used unseen.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{anyhow, bail, ensure};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{oneshot, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{FileMetrics, ReloadMetrics};

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The most files of one set.
const MAX_FILES: usize = 64;
/// How long to wait for the file system, which may be mounted from elsewhere.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to look, at startup, whether files that were changing have stopped to.
const START_TRIES: usize = 20;
const START_PAUSE: Duration = Duration::from_millis(50);

/// What a set of files holds; of those that cannot be read, why.
#[derive(Default)]
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
    /// All but this, which is as it was before.
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
        files: impl Fn(&Contents) -> Vec<PathBuf> + Send + Sync + 'static,
        apply: impl FnMut(&Contents) -> anyhow::Result<Applied> + Send + 'static,
    ) -> anyhow::Result<()> {
        let mut reader = Reader { files: Arc::new(files), reading: None };
        let mut tries = 0;
        let contents = loop {
            if let Some(contents) = reader.read().await? {
                break contents;
            }
            tries += 1;
            ensure!(tries < START_TRIES, "the files keep changing while they are read");
            sleep(START_PAUSE).await;
        };
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

/// Reads one set of files, on a thread that nobody waits for without end.
struct Reader<F> {
    files: Arc<F>,
    /// A reading that has taken too long so far.
    reading: Option<oneshot::Receiver<ReadSet>>,
}

impl<F: Fn(&Contents) -> Vec<PathBuf> + Send + Sync + 'static> Reader<F> {
    async fn read(&mut self) -> ReadSet {
        let reading = match &mut self.reading {
            Some(reading) => reading,
            none => none.insert(Self::begin(Arc::clone(&self.files))?),
        };
        let Ok(read) = timeout(READ_TIMEOUT, reading).await else {
            bail!("timed out waiting for the file system");
        };
        self.reading = None;
        read.map_err(|_| anyhow!("reading failed"))?
    }

    /// Not as a blocking task of the runtime, whose end would wait for it.
    fn begin(files: Arc<F>) -> anyhow::Result<oneshot::Receiver<ReadSet>> {
        let (answer, reading) = oneshot::channel();
        thread::Builder::new().name("reload".into()).spawn(move || {
            // A file may vanish between two steps of a swap: the second time it is missing.
            let mut read = read_set(&*files);
            if matches!(&read, Ok(Some(contents)) if contents.failure().is_some()) {
                read = read_set(&*files);
            }
            let _ = answer.send(read);
        })?;
        Ok(reading)
    }
}

/// Which version of a file it is, as far as the file system shows it.
type Version = (u64, u64, u64, i64, i64);

fn version(file: &fs::Metadata) -> Version {
    (file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec())
}

fn read_set(files: &impl Fn(&Contents) -> Vec<PathBuf>) -> ReadSet {
    let mut contents = Contents::default();
    let mut versions = BTreeMap::new();
    loop {
        let mut named = files(&contents);
        named.retain(|path| !contents.0.contains_key(path));
        if named.is_empty() {
            break;
        }
        for path in named {
            ensure!(contents.0.len() < MAX_FILES, "more than {MAX_FILES} files");
            let read = read_file(&path).map(|(bytes, version)| {
                versions.insert(path.clone(), version);
                bytes
            });
            let why = |error| format!("cannot read {}: {error:#}", path.display());
            contents.0.insert(path.clone(), read.map_err(why));
        }
    }
    let unchanged = |(path, read): (&PathBuf, &Version)| {
        fs::metadata(path).is_ok_and(|found| version(&found) == *read)
    };
    Ok(versions.iter().all(unchanged).then_some(contents))
}

fn read_file(path: &Path) -> anyhow::Result<(Vec<u8>, Version)> {
    // A pipe without a writer would keep this waiting.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let before = file.metadata()?;
    ensure!(before.is_file(), "not a regular file");
    ensure!(before.len() <= MAX_FILE_BYTES, "larger than {} KiB", MAX_FILE_BYTES / 1024);
    let mut bytes = Vec::new();
    let mut limited = file.take(MAX_FILE_BYTES + 1);
    limited.read_to_end(&mut bytes)?;
    ensure!(limited.limit() > 0, "larger than {} KiB", MAX_FILE_BYTES / 1024);
    Ok((bytes, version(&before)))
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
    fn follow(&mut self, read: ReadSet) {
        let (fingerprint, applied) = match read {
            // It is read again.
            Ok(None) => return,
            Ok(Some(contents)) => {
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
