//! Checks a database file as a server would use it. Opening it recovers what a crash left behind;
//! nothing else is changed, and a file that is missing is not made.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::statvfs::statvfs,
    unistd::{AccessFlags, access},
};

use super::{Sqlite, classify, file, lock, migrate};
use crate::store::{
    Clock, FenceStore as _, Store as _, StoreError, StoreInfo, Upkeep as _, Work,
    doctor::{Check, Finding, Findings, Planned, Unanswered, fence, schema},
    durability::Durability,
};

pub(super) const JOURNAL: &str =
    "SELECT (SELECT journal_mode FROM pragma_journal_mode) AS journal_mode,
    (SELECT synchronous FROM pragma_synchronous) AS synchronous, sqlite_version() AS version";

/// The limit of one check.
const LIMIT: Duration = Duration::from_secs(10);
/// Below this, a file that grows by a day's marks may fill its disk soon; and it is full.
const SCARCE: u64 = 1 << 30;
const FULL: u64 = 16 << 20;

impl Sqlite {
    /// Checks the file at `url` as a server that is `planned` would use it.
    pub async fn examine(url: &str, planned: Planned) -> Vec<Check> {
        let mut findings = Findings::new(LIMIT);
        // Without a file there is nothing more to find.
        let _ = examine(url, planned, &mut findings).await;
        findings.checks
    }

    /// What it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn info(&self) -> Result<StoreInfo, StoreError> {
        let (_, _, version) = self.read_journal().await?;
        // Its connections sync each commit, however the file was made.
        Ok(StoreInfo { kind: "SQLite", version, durability: Durability::Durable })
    }

    /// The mode of its journal, the number of `synchronous`, and the version of `SQLite`.
    async fn read_journal(&self) -> Result<(String, i64, String), StoreError> {
        let mut writer = self.writer.lock().await;
        sqlx::query_as(JOURNAL).fetch_one(&mut *writer).await.map_err(classify)
    }
}

async fn examine(url: &str, planned: Planned, findings: &mut Findings) -> Result<(), Unanswered> {
    let mut place = None;
    let find = async {
        let (path, may_create) = file::read_url(url)?;
        place = Some(path.clone());
        found(&path, may_create)
    };
    findings.add("file", find).await?;
    let Some(path) = place else { return Err(Unanswered) };
    let folder = folder(&path).map_err(|_| Unanswered)?;
    findings.add("file system", async { file_system(&folder) }).await?;
    findings.add("space", async { space(&folder) }).await?;
    if !path.exists() || lock::is_taken(&path) {
        return Ok(());
    }

    let mut opened = None;
    let open = async {
        let store = Sqlite::open(url, Clock::Store).await?;
        let journal = journal(&store).await;
        opened = Some(store);
        journal
    };
    findings.add("journal", open).await?;
    let Some(store) = opened else { return Err(Unanswered) };
    let mut is_behind = true;
    let read = async {
        let state = migrate::state(&mut *store.writer.lock().await).await;
        is_behind = state.as_ref().map_or(true, |state| !state.pending.is_empty());
        Ok(schema(state, planned))
    };
    let mut ended = findings.add("schema", read).await;
    if ended.is_ok() {
        ended = findings.add("writable", is_writable(&store, is_behind)).await;
    }
    if ended.is_ok() && !is_behind {
        ended = findings.add("fence", async { Ok(fence(store.fence().await?)) }).await;
    }
    let closed = store.closed();
    drop(store);
    closed.await;
    ended
}

/// The folder of a file that may not exist.
fn folder(path: &Path) -> io::Result<PathBuf> {
    let path = fs::canonicalize(path).or_else(|_| std::path::absolute(path))?;
    Ok(path.parent().map_or_else(|| path.clone(), Path::to_owned))
}

fn found(path: &Path, may_create: bool) -> Result<Finding, StoreError> {
    let shown = path.display();
    let folder = folder(path).map_err(|error| StoreError::internal(format!("{shown}: {error}")))?;
    if !folder.is_dir() {
        let found = format!("{shown}: the directory {} does not exist", folder.display());
        return Ok(Finding::failed(found).advise("create it, or correct --database-url"));
    }
    // SQLite makes files beside the database.
    if access(&folder, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let found = format!("{shown}: the directory {} is not writable", folder.display());
        return Ok(Finding::failed(found).advise("SQLite also writes FILE-wal and FILE-shm there"));
    }
    let Ok(file) = fs::metadata(path) else {
        return Ok(if may_create {
            Finding::warning(format!("{shown} does not exist"))
                .advise("`oncegate serve` creates it when it starts")
        } else {
            Finding::failed(format!("{shown} does not exist, and mode=rw does not create it"))
        });
    };
    if !file.is_file() {
        return Ok(Finding::failed(format!("{shown} is not a regular file")));
    }
    if access(path, AccessFlags::R_OK | AccessFlags::W_OK).is_err() {
        return Ok(Finding::failed(format!("{shown} is not writable")));
    }
    if lock::is_taken(path) {
        return Ok(Finding::warning(format!("{shown} is in use by another process")).advise(
            "SQLite allows one process per file: a second server is refused, and doctor checks \
             the contents only while no server runs",
        ));
    }
    Ok(Finding::ok(format!("{shown}, {} bytes", file.len())))
}

/// Which kind of file system holds the file.
#[cfg(target_os = "linux")]
fn file_system(folder: &Path) -> Result<Finding, StoreError> {
    use nix::sys::statfs::statfs;

    let kind = statfs(folder).map_err(StoreError::internal)?.filesystem_type().0;
    // The same bits, whichever sign the platform gives them.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "magic numbers have 32 bits"
    )]
    Ok(judged(kind as u32))
}

#[cfg(not(target_os = "linux"))]
fn file_system(_folder: &Path) -> Result<Finding, StoreError> {
    Ok(Finding::ok("not checked on this system"))
}

/// Judges a file system by its number:
/// <https://man7.org/linux/man-pages/man2/statfs.2.html>.
#[cfg(target_os = "linux")]
fn judged(kind: u32) -> Finding {
    let advice = "put the file on a local disk or a block volume";
    let network = |name: &str| {
        let found = format!("{name} is a network file system, whose locks and syncs may not hold");
        Finding::failed(found).advise(advice)
    };
    match kind {
        0x6969 => network("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => network("SMB"),
        0x00c3_6400 => network("CephFS"),
        0x0102_1997 => network("9P"),
        0x6573_5546 => Finding::warning("FUSE, which may be a network file system").advise(advice),
        0x0102_1994 => {
            Finding::warning("tmpfs: every record is lost when the machine stops").advise(advice)
        }
        0x794c_7630 => {
            Finding::warning("overlay: every record is lost when the container is removed")
                .advise("mount a volume, and put the file there")
        }
        _ => Finding::ok(format!("local (type {kind:#x})")),
    }
}

fn space(folder: &Path) -> Result<Finding, StoreError> {
    let disk = statvfs(folder).map_err(StoreError::internal)?;
    #[allow(clippy::useless_conversion, reason = "some platforms count in 32 bits")]
    let free = u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size()));
    Ok(is_enough(free))
}

fn is_enough(free: u64) -> Finding {
    let found = format!("{} MiB free", free >> 20);
    if free < FULL {
        Finding::failed(found).advise("a server accepts no writes when the disk is full")
    } else if free < SCARCE {
        Finding::warning(found).advise("make room before the disk is full")
    } else {
        Finding::ok(found)
    }
}

async fn journal(store: &Sqlite) -> Result<Finding, StoreError> {
    let (mode, synchronous, version) = store.read_journal().await?;
    let found = format!("SQLite {version}, journal_mode {mode}, synchronous {synchronous}");
    // 2 is FULL: each commit is synced.
    if mode != "wal" || synchronous != 2 {
        return Ok(
            Finding::failed(found).advise("the file system does not support journal_mode wal")
        );
    }
    Ok(Finding::ok(found))
}

async fn is_writable(store: &Sqlite, is_behind: bool) -> Result<Finding, StoreError> {
    if is_behind {
        return Ok(Finding::warning("not checked: the probe needs an up-to-date schema"));
    }
    let mut handle = store.connection(Work::Short);
    handle.ping().await?;
    Ok(Finding::ok("the probe wrote to each table and rolled back"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::doctor::Severity;

    #[test]
    fn a_disk_is_judged_by_what_is_free() {
        for (free, severity) in [
            (0, Severity::Failed),
            (FULL - 1, Severity::Failed),
            (FULL, Severity::Warning),
            (SCARCE - 1, Severity::Warning),
            (SCARCE, Severity::Ok),
        ] {
            assert_eq!(is_enough(free).severity, severity, "{free}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_system_is_judged_by_its_number() {
        // ext4, XFS, Btrfs and ZFS are local.
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x2fc1_2fc1] {
            assert_eq!(judged(local).severity, Severity::Ok, "{local:#x}");
        }
        for network in [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x0102_1997] {
            assert_eq!(judged(network).severity, Severity::Failed, "{network:#x}");
        }
        for doubtful in [0x6573_5546, 0x0102_1994, 0x794c_7630] {
            assert_eq!(judged(doubtful).severity, Severity::Warning, "{doubtful:#x}");
        }
    }
}
