//! The commands, run as the real binary against servers of this process.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::harness::{Fixture, secrets};

mod admin;
mod commands;
mod consumers;
mod errors;
mod exec;
mod fence;
mod leases;
mod live;
mod memory;
mod serve;
mod slack;
mod tls;
mod token;
mod turns;
mod urls;

/// How long a line may take to be printed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The binary with these arguments, and with nothing of this process's
/// environment.
fn oncegate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncegate"));
    command.env_clear().args(arguments);
    command
}

/// The same, to ask the server of a test.
fn asking(fixture: &Fixture, arguments: &[&str]) -> Command {
    let mut command = oncegate(arguments);
    command.args(["--server", &fixture.replica.server.address().to_string()]);
    command
}

/// Runs a command that asks the server of a test, to its end.
fn ask(fixture: &Fixture, arguments: &[&str]) -> Ran {
    run(&mut asking(fixture, arguments), "")
}

/// Runs a command on `input`, to its end.
fn run(command: &mut Command, input: impl Into<Vec<u8>>) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.into());
    // A command need not read all of its input, nor any.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let ended = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let ran = Ran {
        code: ended.status.code(),
        out: String::from_utf8(ended.stdout).unwrap(),
        err: String::from_utf8(ended.stderr).unwrap(),
    };
    secrets::check(&ran.out);
    secrets::check(&ran.err);
    ran
}

/// What a command said, and how it ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// Holds the command to its exit code and to all that it printed.
    #[track_caller]
    fn told(&self, code: i32, out: &str) {
        assert_eq!((self.code, self.out.trim_end()), (Some(code), out), "{}", self.err);
    }

    /// Holds it to its exit code and to what it complained of.
    #[track_caller]
    fn complained(&self, code: i32, err: &str) {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{}", self.err);
        assert!(self.err.contains(err), "{err:?} is not in {:?}", self.err);
        assert!(self.err.starts_with("error: "), "{:?}", self.err);
    }

    /// The one object that it printed, and its exit code.
    #[track_caller]
    fn json(&self, code: i32) -> Value {
        assert_eq!(self.code, Some(code), "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }
}

/// The lines of a process that still runs, as they come.
struct Lines(mpsc::Receiver<String>);

impl Lines {
    fn of(output: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if sender.send(line.unwrap()).is_err() {
                    break;
                }
            }
        });
        Self(lines)
    }

    /// The next line; none after the last.
    #[track_caller]
    fn next(&self) -> Option<String> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("no line within {PATIENCE:?}"),
        }
    }
}

/// A file of `tests/data`.
pub fn data(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}
