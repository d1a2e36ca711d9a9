//! `oncegate exec`: real commands, real signals.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use oncegate::grpc::pb::{
    CheckSessionLeaseRequest, LeaseHeld, SessionLease, acquire_session_lease_response::Outcome,
};
use tempfile::tempdir;

use super::{Lines, Ran, asking, run};
use crate::{
    harness::{Fixture, acquire, granted, held, release, renew, seconds, session},
    on_both_stores,
};

on_both_stores!(
    a_command_has_its_lease_and_its_exit_status_is_ours,
    a_session_that_is_held_is_not_waited_for_or_not_for_long,
    a_command_runs_once_the_session_is_free,
    a_lease_is_renewed_while_the_command_runs,
    a_command_whose_lease_is_lost_is_ended,
    a_command_that_will_not_end_is_killed,
    what_a_command_has_started_ends_with_it,
    one_that_was_stopped_for_too_long_finds_its_lease_lost,
    signals_go_to_all_of_the_command,
    a_signal_that_was_ignored_before_stays_so,
    a_signal_ends_the_wait,
    a_wait_outlasts_a_restart_of_the_server,
);

const SESSION: &str = "T1:C1:17.1";

/// An exec of `command`.
fn exec(fixture: &Fixture, flags: &[&str], command: &[&str]) -> Command {
    let arguments = [&["exec", "--session", SESSION], flags].concat();
    let mut exec = asking(fixture, &arguments);
    exec.arg("--").args(command).env("PATH", "/usr/bin:/bin");
    exec
}

/// An exec of a script, to its end.
fn exec_script(fixture: &Fixture, flags: &[&str], script: &str) -> Ran {
    run(&mut exec(fixture, flags, &["sh", "-c", script]), "")
}

/// An exec that runs on, its command's lines read as they come.
struct Running {
    child: Child,
    lines: Lines,
    errors: Lines,
}

impl Running {
    fn start(fixture: &Fixture, flags: &[&str], script: &str) -> Self {
        let mut child = exec(fixture, flags, &["sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        let errors = Lines::of(child.stderr.take().unwrap());
        Self { child, lines, errors }
    }

    #[track_caller]
    fn says(&self, line: &str) {
        assert_eq!(self.lines.next().as_deref(), Some(line));
    }

    fn send(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// How it ended: its exit code, and never by a signal.
    #[track_caller]
    fn ends(mut self) -> i32 {
        assert_eq!(self.lines.next(), None);
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), None);
        status.code().unwrap()
    }
}

/// It does not outlive a test that failed.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A lease of the session, for somebody else.
async fn hold(fixture: &mut Fixture) -> SessionLease {
    let asked = acquire("T1", SESSION, "pod-1");
    granted(fixture.client.acquire_session_lease(asked).await.unwrap().into_inner())
}

async fn give_back(fixture: &mut Fixture, lease: &SessionLease) {
    let answer = fixture.client.release_session_lease(release(lease)).await.unwrap();
    assert!(answer.into_inner().released);
}

/// Whether nobody holds the session.
async fn is_free(fixture: &mut Fixture) -> bool {
    let asked = acquire("T1", SESSION, "test");
    let answer = fixture.client.acquire_session_lease(asked).await.unwrap().into_inner();
    match answer.outcome.unwrap() {
        Outcome::Lease(lease) => {
            give_back(fixture, &lease).await;
            true
        }
        Outcome::Held(_) => false,
    }
}

/// Waits until the one who holds the session, and those who wait for it, are as
/// they should be.
async fn until(fixture: &mut Fixture, is_right: impl Fn(&LeaseHeld) -> bool) {
    loop {
        let asked = acquire("T1", SESSION, "test");
        let answer = fixture.client.acquire_session_lease(asked).await.unwrap();
        if is_right(&held(answer.into_inner())) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_command_has_its_lease_and_its_exit_status_is_ours(mut fixture: Fixture) {
    const TELL: &str = "echo $ONCEGATE_SESSION $ONCEGATE_FENCING_TOKEN; \
        test ${#ONCEGATE_LEASE_ID} = 36 && exit 7";
    let before = hold(&mut fixture).await;
    give_back(&mut fixture, &before).await;
    let told = exec_script(&fixture, &[], TELL);
    let (session, token) = told.out.trim_end().split_once(' ').unwrap();
    assert_eq!((told.code, session), (Some(7), SESSION), "{}", told.err);
    assert!(token.parse::<i64>().unwrap() > before.fencing_token);
    assert!(is_free(&mut fixture).await, "the lease is given back");

    exec_script(&fixture, &[], "exit 0").told(0, "");
    exec_script(&fixture, &[], "kill -9 $$").told(128 + 9, "");
    run(&mut exec(&fixture, &[], &["cat"]), "in and out").told(0, "in and out");

    let cannot = |program| run(&mut exec(&fixture, &[], &[program]), "");
    cannot("/none/such").complained(127, "cannot run /none/such");
    cannot("/etc/passwd").complained(126, "cannot run /etc/passwd");
    assert_eq!(run(&mut asking(&fixture, &["exec", "--session", "T1"]), "").code, Some(2));
    assert!(is_free(&mut fixture).await);
}

async fn a_session_that_is_held_is_not_waited_for_or_not_for_long(mut fixture: Fixture) {
    let lease = hold(&mut fixture).await;
    for (flags, code) in
        [(&["-n"][..], 1), (&["--wait", "50ms"], 1), (&["-n", "-E", "42"], 42), (&["-w", "0s"], 1)]
    {
        let ran = exec_script(&fixture, flags, "echo ran");
        ran.told(code, "");
        assert_eq!(ran.err.trim_end(), format!("{SESSION} is held by pod-1"));
    }
    give_back(&mut fixture, &lease).await;
    exec_script(&fixture, &["-n"], "echo ran").told(0, "ran");
}

async fn a_command_runs_once_the_session_is_free(mut fixture: Fixture) {
    let lease = hold(&mut fixture).await;
    let next = Running::start(&fixture, &[], "echo runs");
    until(&mut fixture, |held| held.queue_length == 1).await;
    give_back(&mut fixture, &lease).await;
    next.says("runs");
    assert_eq!(next.ends(), 0);
}

async fn a_lease_is_renewed_while_the_command_runs(mut fixture: Fixture) {
    let running = Running::start(&fixture, &["--ttl", "3s"], "echo runs; exec sleep 600");
    running.says("runs");
    // The second time, it would have ended, had it not been renewed.
    for _ in 0..2 {
        fixture.clock.advance(Duration::from_secs(2));
        until(&mut fixture, |held| held.remaining == seconds(3)).await;
    }
    running.send("-TERM");
    assert_eq!(running.ends(), 128 + 15);
    assert!(is_free(&mut fixture).await);
}

async fn a_command_whose_lease_is_lost_is_ended(fixture: Fixture) {
    const TIDY: &str = "trap 'echo tidies; exit 3' TERM; echo runs; \
        while :; do sleep 0.01; done";
    let running = Running::start(&fixture, &["--ttl", "1s"], TIDY);
    running.says("runs");
    fixture.clock.advance(Duration::from_secs(2));
    running.says("tidies");
    let told = running.errors.next().unwrap();
    assert!(told.starts_with(&format!("the lease of {SESSION} is lost: ")), "{told}");
    assert_eq!(running.ends(), 12);
}

async fn a_command_that_will_not_end_is_killed(fixture: Fixture) {
    const STAY: &str = "trap '' TERM; echo runs; while :; do sleep 0.01; done";
    let flags = ["--ttl", "1s", "--kill-after", "100ms"];
    let running = Running::start(&fixture, &flags, STAY);
    running.says("runs");
    fixture.clock.advance(Duration::from_secs(2));
    assert_eq!(running.ends(), 12);
}

async fn what_a_command_has_started_ends_with_it(fixture: Fixture) {
    // The one that stays keeps the output open for as long as it runs.
    const TWO: &str = "(trap '' TERM; echo runs; exec sleep 600) & wait";
    let flags = ["--ttl", "1s", "--kill-after", "100ms"];
    let running = Running::start(&fixture, &flags, TWO);
    running.says("runs");
    fixture.clock.advance(Duration::from_secs(2));
    assert_eq!(running.ends(), 12);
}

async fn one_that_was_stopped_for_too_long_finds_its_lease_lost(mut fixture: Fixture) {
    const TELL: &str = "echo $ONCEGATE_FENCING_TOKEN; exec sleep 600";
    let running = Running::start(&fixture, &["--ttl", "1s"], TELL);
    let stale: i64 = running.lines.next().unwrap().parse().unwrap();
    running.send("-STOP");
    fixture.clock.advance(Duration::from_secs(2));
    let next = hold(&mut fixture).await;
    assert!(next.fencing_token > stale);
    let check = CheckSessionLeaseRequest { session: session("T1", SESSION), fencing_token: stale };
    let checked = fixture.client.check_session_lease(check).await.unwrap().into_inner();
    assert!(!checked.current);
    running.send("-CONT");
    assert_eq!(running.ends(), 12);
    // Whoever came after it is not disturbed.
    let renewed = fixture.client.renew_session_lease(renew(&next)).await.unwrap().into_inner();
    assert_eq!(renewed.lease.unwrap().fencing_token, next.fencing_token);
}

async fn signals_go_to_all_of_the_command(mut fixture: Fixture) {
    // The one in the background ends before the other says anything.
    const TWO: &str = "trap 'wait; echo parent; exit 5' USR1; \
        sh -c 'trap \"echo child; exit 0\" USR1; echo runs; while :; do sleep 0.01; done' & \
        while :; do sleep 0.01; done";
    let running = Running::start(&fixture, &[], TWO);
    running.says("runs");
    running.send("-USR1");
    running.says("child");
    running.says("parent");
    assert_eq!(running.ends(), 5);
    assert!(is_free(&mut fixture).await);
}

async fn a_signal_that_was_ignored_before_stays_so(mut fixture: Fixture) {
    // As with nohup: the shell ignores it, and exec and its command with it.
    let script = "trap '' HUP; exec \"$@\"";
    let inner = exec(&fixture, &[], &["sh", "-c", "kill -HUP $PPID $$; echo stays"]);
    let mut outer = Command::new("sh");
    outer.env_clear().env("PATH", "/usr/bin:/bin").args(["-c", script, "sh"]);
    outer.arg(inner.get_program()).args(inner.get_args());
    run(&mut outer, "").told(0, "stays");
    assert!(is_free(&mut fixture).await);
}

async fn a_signal_ends_the_wait(mut fixture: Fixture) {
    let lease = hold(&mut fixture).await;
    let waiting = Running::start(&fixture, &[], "echo ran");
    until(&mut fixture, |held| held.queue_length == 1).await;
    // Not INT, which whatever runs the tests in the background has us ignore.
    waiting.send("-TERM");
    assert_eq!(waiting.ends(), 128 + 15);
    until(&mut fixture, |held| held.queue_length == 0).await;
    give_back(&mut fixture, &lease).await;
    assert!(is_free(&mut fixture).await);
}

async fn a_wait_outlasts_a_restart_of_the_server(fixture: Fixture) {
    let directory = tempdir().unwrap();
    let listen = format!("unix:{}", directory.path().join("oncegate.sock").display());
    let mut fixture = fixture.restarted(&["--listen", &listen]).await;
    let lease = hold(&mut fixture).await;
    let waiting = Running::start(&fixture, &["--wait", "5m"], "echo runs");
    until(&mut fixture, |held| held.queue_length == 1).await;
    let mut fixture = fixture.restarted(&["--listen", &listen]).await;
    until(&mut fixture, |held| held.queue_length == 1).await;
    give_back(&mut fixture, &lease).await;
    waiting.says("runs");
    assert_eq!(waiting.ends(), 0);
}
