//! A lock that belongs to a file, by whatever path a process comes to it.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

/// Keeps other processes from a database. It ends when this is dropped, whatever else has
/// the file: a child has it from its fork until its exec.
#[derive(Debug)]
pub(super) enum FileLock {
    /// The database itself is locked: links, hard or not, and mounts lead to the same lock.
    ///
    /// SAFETY: it must stay open until `SQLite` has closed. Closing any descriptor of the
    /// file drops the locks that `SQLite` holds on it:
    /// <https://www.sqlite.org/howtocorrupt.html>, 2.2.
    Own(File),
    /// A file beside it, if the system has no lock that `SQLite`'s own would not meet.
    Beside(File),
}

impl FileLock {
    /// Locks `database`, which was opened at `path`.
    ///
    /// # Errors
    /// [`TryLockError::WouldBlock`] if another process has the lock.
    pub(super) fn take(database: File, path: &Path) -> Result<Self, TryLockError> {
        match description::set(&database, true) {
            Ok(()) => Ok(Self::Own(database)),
            Err(TryLockError::Error(_)) => {
                let mut path = path.to_owned().into_os_string();
                path.push(".lock");
                let mut options = File::options();
                let options = options.create(true).truncate(false).write(true);
                let file = options.open(path).map_err(TryLockError::Error)?;
                file.try_lock()?;
                Ok(Self::Beside(file))
            }
            Err(taken) => Err(taken),
        }
    }

    /// Gives the lock back.
    pub(super) fn release(&self) {
        let _ = match self {
            Self::Own(file) => description::set(file, false),
            Self::Beside(file) => file.unlock().map_err(TryLockError::Error),
        };
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether another process uses the database at `path`.
pub(super) fn is_taken(path: &Path) -> bool {
    let opened = File::options().read(true).write(true).open(path);
    opened.is_ok_and(|file| matches!(FileLock::take(file, path), Err(TryLockError::WouldBlock)))
}

/// Locks of Linux that belong to an open file description, which has its own even among
/// those of one process: <https://man7.org/linux/man-pages/man2/F_GETLK.2const.html>.
#[cfg(target_os = "linux")]
mod description {
    use nix::{
        errno::Errno,
        fcntl::{FcntlArg, fcntl},
        libc,
    };

    use super::{File, TryLockError};

    /// The byte that is locked: the first after those that `SQLite` locks, `PENDING_BYTE` and
    /// the 511 that follow: <https://www.sqlite.org/fileformat2.html>, 1.4. What the file
    /// holds there does not matter to a lock.
    const BYTE: libc::off_t = 0x4000_0000 + 512;

    pub(super) fn set(file: &File, locked: bool) -> Result<(), TryLockError> {
        let kind = if locked { libc::F_WRLCK } else { libc::F_UNLCK };
        let lock = libc::flock {
            l_type: i16::try_from(kind).unwrap_or_default(),
            l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
            l_start: BYTE,
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(TryLockError::WouldBlock),
            Err(error) => Err(TryLockError::Error(error.into())),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod description {
    use std::io;

    use super::{File, TryLockError};

    pub(super) fn set(_file: &File, _locked: bool) -> Result<(), TryLockError> {
        Err(TryLockError::Error(io::ErrorKind::Unsupported.into()))
    }
}
