//! The command that runs under the lease, and the signals that are passed on to it.

use std::{
    ffi::OsString,
    future::poll_fn,
    io::{self, IsTerminal as _},
    process::ExitStatus,
    task::Poll,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    process::{Child, Command},
    signal::unix::{self, SignalKind},
};

use super::moment::BootInstant;
use crate::grpc::pb::SessionLease;

/// What is passed on to the command.
const FORWARDED: [SignalKind; 6] = [
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
    SignalKind::terminate(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

/// The command, as it runs.
pub(super) struct Run {
    child: Child,
    pid: Pid,
    /// Whether it has a process group of its own. At a terminal it has ours: or
    /// it could not read from there, and would not see its keys.
    is_group: bool,
}

impl Run {
    pub(super) fn start(words: &[OsString], lease: &SessionLease) -> io::Result<Self> {
        let is_group = !io::stdin().is_terminal();
        let mut words = words.iter();
        let mut command = Command::new(words.next().ok_or(io::ErrorKind::InvalidInput)?);
        command
            .args(words)
            .env("ONCEGATE_SESSION", &lease.session_id)
            .env("ONCEGATE_CONSUMER", &lease.consumer)
            .env("ONCEGATE_LEASE_ID", &lease.lease_id)
            .env("ONCEGATE_FENCING_TOKEN", lease.fencing_token.to_string());
        if is_group {
            command.process_group(0);
        }
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the command has no process id"))?;
        Ok(Self { child, pid, is_group })
    }

    /// Waits until the command ends, and passes signals on to it.
    pub(super) async fn end(&mut self, signals: &mut Signals) -> io::Result<ExitStatus> {
        loop {
            tokio::select! {
                ended = self.child.wait() => return ended,
                signal = signals.next() => {
                    // The terminal has sent it to the whole group already.
                    let is_keyed = matches!(signal, Signal::INT | Signal::QUIT | Signal::HUP);
                    if self.is_group || !is_keyed {
                        self.send(signal);
                    }
                }
            }
        }
    }

    /// Asks the command to end, and ends it by force if it has not done so `by` then.
    pub(super) async fn stop(&mut self, by: BootInstant, signals: &mut Signals) -> io::Result<()> {
        self.send(Signal::TERM);
        let has_ended = tokio::select! {
            ended = self.end(signals) => ended.is_ok(),
            () = by.reached() => false,
        };
        if self.is_group || !has_ended {
            // What it has started goes with it.
            self.send(Signal::KILL);
        }
        self.child.wait().await.map(drop)
    }

    /// It may have ended by now.
    fn send(&self, signal: Signal) {
        let send = if self.is_group { kill_process_group } else { kill_process };
        let _ = send(self.pid, signal);
    }
}

/// The signals that are passed on.
pub(super) struct Signals(Vec<(SignalKind, unix::Signal)>);

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        // One that was ignored before us, as `nohup` does, stays ignored: by the
        // command as well, which would not know of it otherwise.
        let ignored = ignored();
        let heeded = |kind: &SignalKind| ignored >> (kind.as_raw_value() - 1) & 1 == 0;
        let listen = |kind| Ok((kind, unix::signal(kind)?));
        FORWARDED.into_iter().filter(heeded).map(listen).collect::<io::Result<_>>().map(Self)
    }

    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (kind, signals) in &mut self.0 {
                if let Poll::Ready(Some(())) = signals.poll_recv(context)
                    && let Some(signal) = Signal::from_named_raw(kind.as_raw_value())
                {
                    return Poll::Ready(signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// The signals that this process was started to ignore, as a mask; none if the
/// system does not report them.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
