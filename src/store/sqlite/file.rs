//! The database file: where its URL leads, its lock, and whether it is still in place.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use sqlx::sqlite::SqliteConnectOptions;

use super::lock::FileLock;
use crate::store::StoreError;

/// Reads the URL of a database file: its path, and whether it may be created.
///
/// # Errors
/// [`StoreError::Internal`] on a URL that names no file, or that asks for what is not supported.
pub(super) fn read_url(url: &str) -> Result<(PathBuf, bool), StoreError> {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let place = place.strip_prefix("sqlite:").unwrap_or(place);
    let place = place.strip_prefix("//").unwrap_or(place);
    if place.is_empty() || place.contains(":memory:") || query.contains("mode=memory") {
        return Err(StoreError::internal(
            "an in-memory database loses every mark at exit: name a file",
        ));
    }
    let mut may_create = true;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter {
            "mode=rwc" => {}
            "mode=rw" => may_create = false,
            _ => {
                let name = parameter.split('=').next().unwrap_or_default();
                return Err(StoreError::internal(format!(
                    "--database-url: the parameter {name:?} or its value is not supported: a \
                     sqlite URL takes only mode=rwc, the default, or mode=rw, which does not \
                     create the file"
                )));
            }
        }
    }
    let options = SqliteConnectOptions::from_str(&format!("sqlite://{place}"))
        .map_err(|error| StoreError::internal(format!("cannot read the database URL: {error}")))?;
    let path = options.get_filename().display().to_string();
    if path.starts_with('~') {
        return Err(StoreError::internal(format!(
            "--database-url: {path:?} begins with ~, which only a shell expands: give the whole \
             path, as in sqlite:///home/me/oncegate.db; a file of that name is sqlite://./{path}"
        )));
    }
    if path.chars().any(char::is_control) {
        return Err(StoreError::internal(format!(
            "--database-url: the path {path:?} contains a line break or another control character"
        )));
    }
    Ok((options.get_filename().to_owned(), may_create))
}

/// Which file a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|file| Self { device: file.dev(), number: file.ino() })
    }
}

/// A database file that this process alone uses.
pub(super) struct DatabaseFile {
    /// As the URL names it.
    given: PathBuf,
    /// Without links, as `SQLite` has it: its other files are beside this one.
    path: PathBuf,
    lock: FileLock,
    /// What must still be in place, once `SQLite` has opened it all.
    watched: OnceLock<Vec<(PathBuf, Inode)>>,
    is_lost: AtomicBool,
}

impl DatabaseFile {
    /// Opens the file at `given`, creates it if it `may_create`, and locks it.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when it cannot be opened, or another process uses it.
    pub(super) fn open(given: &Path, may_create: bool) -> Result<Self, StoreError> {
        let refused = |problem: String| StoreError::internal(format!("--database-url: {problem}"));
        let shown = given.display();
        let given = std::path::absolute(given).map_err(|error| refused(error.to_string()))?;
        if let Some(directory) = given.parent().filter(|directory| !directory.is_dir()) {
            let directory = directory.display();
            return Err(refused(format!(
                "cannot open {shown}: the directory {directory} does not exist (a path from the \
                 root has three slashes, as in sqlite:///var/lib/oncegate/oncegate.db)"
            )));
        }
        match fs::metadata(&given) {
            Ok(found) if found.is_dir() => {
                return Err(refused(format!("{shown} is a directory: name a file in it")));
            }
            Ok(found) if !found.is_file() => {
                return Err(refused(format!("{shown} is not a regular file")));
            }
            _ => {}
        }
        // Through a link whose target does not exist yet, this creates the target.
        let mut options = File::options();
        options.read(true).write(true).create(may_create).truncate(false);
        let file = options.open(&given).map_err(|error| {
            let target = fs::read_link(&given).ok();
            let through = target.map(|target| format!(" (a link to {})", target.display()));
            let through = through.unwrap_or_default();
            refused(format!("cannot open {shown}{through} to write to it: {error}"))
        })?;
        let path = fs::canonicalize(&given)
            .map_err(|error| refused(format!("cannot find {shown}: {error}")))?;
        let lock = FileLock::take(file, &path).map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::internal(format!(
                "another process uses {shown}: SQLite allows one process per file; for several \
                 replicas use PostgreSQL (--database-url postgres://…)"
            )),
            TryLockError::Error(error) => refused(format!("cannot lock {shown}: {error}")),
        })?;
        Ok(Self { given, path, lock, watched: OnceLock::new(), is_lost: AtomicBool::new(false) })
    }

    /// Where it is, without links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Why `SQLite` cannot use the file.
    pub(super) fn refused(&self, error: &sqlx::Error) -> StoreError {
        let path = self.path.display();
        let is_foreign = matches!(error, sqlx::Error::Database(error)
            if error.code().as_deref() == Some("26"));
        StoreError::internal(if is_foreign {
            format!("--database-url: {path} is not a SQLite database")
        } else {
            format!(
                "cannot open {path}: {error} (SQLite also writes {path}-wal and {path}-shm, so \
                 the directory must be writable)"
            )
        })
    }

    /// From now on, [`Self::check`] compares with the files that are there now.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when one of them cannot be found.
    pub(super) fn watch(&self) -> Result<(), StoreError> {
        let mut paths = vec![self.path.clone(), self.beside("-wal"), self.beside("-shm")];
        if self.given != self.path {
            paths.push(self.given.clone());
        }
        let watched: io::Result<Vec<_>> =
            paths.into_iter().map(|path| Inode::of(&path).map(|inode| (path, inode))).collect();
        let watched = watched.map_err(|error| {
            StoreError::internal(format!(
                "cannot stat the files of {}: {error}",
                self.path.display()
            ))
        })?;
        let _ = self.watched.set(watched);
        Ok(())
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// Checks that the paths still lead to the files that are open: what is written to others
    /// is lost with this process, and nobody else can read it. If the same files are put
    /// back, all is well again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when one of them was deleted, moved or replaced.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let watched = self.watched.get().map(Vec::as_slice).unwrap_or_default();
        let Some(problem) = watched.iter().find_map(|(path, inode)| moved(path, *inode)) else {
            if self.is_lost.swap(false, Ordering::SeqCst) {
                tracing::info!(file = %self.path.display(), "database file restored; serving calls again");
            }
            return Ok(());
        };
        if !self.is_lost.swap(true, Ordering::SeqCst) {
            tracing::error!(
                problem,
                "database file was moved or replaced; calls are refused until the same file is \
                 restored or oncegate restarts"
            );
        }
        Err(StoreError::unavailable(problem))
    }

    /// Whether the last check found all in place.
    pub(super) fn is_in_place(&self) -> bool {
        !self.is_lost.load(Ordering::SeqCst)
    }

    /// Gives the lock back, once `SQLite` has closed, and says so if the file is not all that
    /// is left.
    pub(super) fn close(&self) {
        if self.is_in_place() && self.beside("-wal").exists() {
            let file = self.path.display();
            tracing::warn!(%file, "another process has the database file open; its -wal file remains");
        }
        self.lock.release();
    }
}

/// What happened to a file that was `inode` when it was opened, if anything did.
fn moved(path: &Path, inode: Inode) -> Option<String> {
    let shown = path.display();
    match Inode::of(path) {
        Ok(found) if found == inode => None,
        Ok(_) => Some(format!("{shown} was replaced by another file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(format!("{shown} was deleted or moved"))
        }
        Err(error) => Some(format!("cannot stat {shown}: {error}")),
    }
}
