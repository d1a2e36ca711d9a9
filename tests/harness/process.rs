//! The real binary, as an operator runs it.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    os::unix::{fs::FileExt as _, process::ExitStatusExt as _},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use oncegate::config::Address;

use super::{Client, connect, secrets};

/// How long a process may take to listen, or to refuse to.
const START: Duration = Duration::from_secs(30);

/// One `oncegate serve` that listens. It dies with this value.
pub struct Process {
    child: Child,
    pub address: Address,
    /// Kept open, for what the process prints later.
    _stdout: BufReader<ChildStdout>,
    log: File,
}

impl Process {
    /// Starts a server on the store at `url`, on any free port unless `flags`
    /// say otherwise, and returns once it listens.
    pub async fn start(url: &str, flags: &[&str]) -> Self {
        Self::start_in(&[], url, flags).await
    }

    /// The same, with these variables in its environment, and no others.
    pub async fn start_in(environment: &[(&str, &str)], url: &str, flags: &[&str]) -> Self {
        let log = tempfile::tempfile().unwrap();
        let mut child = serve(environment, url, flags, &log);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (told, first_line) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.read_line(&mut line);
            let _ = told.send((line, stdout));
        });
        let heard = tokio::task::spawn_blocking(move || first_line.recv_timeout(START));
        if let Ok((line, stdout)) = heard.await.unwrap()
            && let Some((_, address)) = line.trim_end().split_once(" listens on ")
        {
            let address = address.parse().unwrap();
            return Self { child, address, _stdout: stdout, log };
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("it does not listen: {}", read(&log));
    }

    /// Starts a server that is to refuse to start, and answers how it ended and
    /// what it said.
    pub async fn refused(url: &str, flags: &[&str]) -> (ExitStatus, String) {
        let log = tempfile::tempfile().unwrap();
        let mut child = serve(&[], url, flags, &log);
        let status = ended(&mut child, START).await;
        let _ = child.kill();
        let _ = child.wait();
        let log = read(&log);
        secrets::check(&log);
        (status.expect("it started"), log)
    }

    /// A client with a connection of its own.
    pub async fn client(&self) -> Client {
        Client::new(connect(&self.address).await)
    }

    /// Asks it to end in good order.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Stops it: it does nothing until it is [resumed](Self::resume).
    pub fn stall(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Sends it a signal, by name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Ends it at once, as a crash would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "it had ended before: {}", self.log());
    }

    /// How it ended, which it must do in time.
    pub async fn exit(self, within: Duration) -> ExitStatus {
        self.end(within).await.0
    }

    /// The same, and what it has logged.
    pub async fn end(mut self, within: Duration) -> (ExitStatus, String) {
        match ended(&mut self.child, within).await {
            Some(status) => (status, self.log()),
            None => panic!("it still runs after {within:?}: {}", self.log()),
        }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        read(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        secrets::check(&self.log());
    }
}

fn serve(environment: &[(&str, &str)], url: &str, flags: &[&str], log: &File) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncegate"));
    command.env_clear().envs(environment.iter().copied()).args(["serve", "--database-url", url]);
    if !flags.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone().unwrap())
        .spawn()
        .unwrap()
}

/// How a child ended, once it has.
async fn ended(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > until {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn read(log: &File) -> String {
    // Without seeking: the process writes where this handle stands.
    let mut text = vec![0; usize::try_from(log.metadata().unwrap().len()).unwrap()];
    log.read_exact_at(&mut text, 0).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}
