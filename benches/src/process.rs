//! Programs that run beside the benchmark, and what `/proc` tells of them:
//! <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

/// A process's number.
pub type Pid = u32;

/// How long a program may take until it serves.
const START: Duration = Duration::from_secs(30);

/// `/proc` counts CPU in hundredths of a second on every Linux.
const TICKS: f64 = 100.0;

struct Stat {
    parent: Pid,
    /// What the process has used, in seconds of CPU.
    own: f64,
    /// What its children used that have ended.
    reaped: f64,
}

fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let seconds = |index: usize| Some(fields.get(index)?.parse::<f64>().ok()? / TICKS);
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: seconds(11)? + seconds(12)?,
        reaped: seconds(13)? + seconds(14)?,
    })
}

/// What a process has used so far, in seconds of CPU; its children not counted.
pub fn cpu(pid: Pid) -> anyhow::Result<f64> {
    Ok(stat(pid).context("the process has ended")?.own)
}

/// What a process and its children, living or reaped, have used so far, in
/// seconds of CPU.
pub fn family_cpu(pid: Pid) -> anyhow::Result<f64> {
    let parent = stat(pid).context("the process has ended")?;
    let mut sum = parent.own + parent.reaped;
    for entry in fs::read_dir("/proc")?.flatten() {
        let child = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(child) = child.and_then(stat).filter(|child| child.parent == pid) {
            sum += child.own + child.reaped;
        }
    }
    Ok(sum)
}

/// Who started a process.
pub fn parent(pid: Pid) -> anyhow::Result<Pid> {
    Ok(stat(pid).context("the process has ended")?.parent)
}

/// The memory that a process has, in bytes.
pub fn resident(pid: Pid) -> anyhow::Result<f64> {
    memory(pid, "VmRSS:")
}

/// The most memory that a process has had, in bytes.
pub fn most_resident(pid: Pid) -> anyhow::Result<f64> {
    memory(pid, "VmHWM:")
}

fn memory(pid: Pid, field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0)
}

/// Where a program is, if it is on the path.
pub fn find(program: &str) -> Result<PathBuf, String> {
    let found = Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]).output();
    match found {
        Ok(found) if found.status.success() => {
            Ok(String::from_utf8_lossy(&found.stdout).trim().into())
        }
        _ => Err(format!("{program} is not on the path")),
    }
}

/// The first line that a program says when it is asked with `arguments`.
pub fn says(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let said = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    said.status.success().then(|| text.lines().next().unwrap_or_default().trim().to_owned())
}

/// A program's version, out of whatever it says around it.
pub fn version(program: impl AsRef<OsStr>) -> String {
    let said = says(program, &["--version"]).unwrap_or_default();
    let version = said.split_whitespace().map(|word| word.trim_start_matches("v="));
    version
        .into_iter()
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or("of an unknown version")
        .to_owned()
}

/// A server program with a directory of its own. It dies with this value, and
/// with this process, however that ends.
pub struct Guarded {
    /// The program's own number.
    pub pid: Pid,
    guard: Child,
    directory: TempDir,
}

impl Guarded {
    /// Starts `program` with the `arguments` that are made of its directory.
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        arguments: impl FnOnce(&Path) -> Vec<A>,
    ) -> anyhow::Result<Self> {
        // The guard's standard input closes when this process ends.
        const GUARD: &str = r#"
            directory=$1
            shift
            "$@" <&- >"$directory/log" 2>&1 &
            echo $!
            while read -r _; do :; done
            kill -KILL $! 2>/dev/null
            wait $!
            rm -rf "$directory"
        "#;
        let directory = tempfile::Builder::new().prefix("oncegate-bench-").tempdir()?;
        let mut command = Command::new("sh");
        for (name, _) in env::vars_os() {
            // Nothing but its arguments tells a server what to do.
            if name.to_string_lossy().starts_with("ONCEGATE_") {
                command.env_remove(name);
            }
        }
        let mut guard = command
            .args(["-c", GUARD, "guard"])
            .arg(directory.path())
            .arg(program)
            .args(arguments(directory.path()))
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Where the shell would tell that it has killed the program.
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(guard.stdout.take().context("no output")?).read_line(&mut line)?;
        let pid = line.trim().parse().context("the guard started nothing")?;
        Ok(Self { pid, guard, directory })
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Waits until `ready` finds what it looks for.
    pub fn wait_for<T>(&self, mut ready: impl FnMut(&Self) -> Option<T>) -> anyhow::Result<T> {
        let until = Instant::now() + START;
        while Instant::now() < until && stat(self.pid).is_some() {
            if let Some(found) = ready(self) {
                return Ok(found);
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("it does not start: {}", self.log())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
