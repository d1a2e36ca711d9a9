//! `oncegate exec`: real commands, real signals.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use oncegate::{
    grpc::pb::{
        CheckSessionLeaseRequest, LeaseHeld, SessionLease, acquire_session_lease_response::Outcome,
    },
    store::Clock,
};
use tempfile::tempdir;

use super::{Lines, Ran, asking, oncegate, run};
use crate::{
    harness::{
        Fixture, Replica, acquire, granted, held, hole::Hole, release, renew, seconds, session,
        sqlite_url,
    },
    on_both_stores,
};

mod signals;

on_both_stores!(
    a_command_has_its_lease_and_its_exit_status_is_ours,
    a_session_that_is_held_is_not_waited_for_or_not_for_long,
    a_command_runs_once_the_session_is_free,
    a_command_does_not_start_under_a_lease_that_is_over,
    a_lease_is_renewed_while_the_command_runs,
    a_command_whose_lease_is_lost_is_ended,
    a_command_that_will_not_end_is_killed,
    a_command_whose_lease_is_gone_has_a_second_to_end,
    a_command_has_ended_by_the_end_of_a_lease_that_cannot_be_renewed,
    an_exec_does_not_wait_for_a_silent_server_when_its_command_has_ended,
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
        Self::spawn(exec(fixture, flags, &["sh", "-c", script]))
    }

    /// An exec that reaches its server through `hole`.
    fn start_through(hole: &Hole, flags: &[&str], script: &str) -> Self {
        let server = hole.address.to_string();
        let mut exec = oncegate(&["exec", "--session", SESSION, "--server", &server]);
        exec.args(flags).args(["--", "sh", "-c", script]).env("PATH", "/usr/bin:/bin");
        Self::spawn(exec)
    }

    fn spawn(mut exec: Command) -> Self {
        let mut child = exec
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

async fn a_command_does_not_start_under_a_lease_that_is_over(mut fixture: Fixture) {
    // Each answer, also that of a renewal, comes after the lease's end.
    let server = fixture.replica.server.address();
    let late = Hole::start_late(server, Duration::from_millis(1_200)).await;
    let flags = ["-n", "-E", "42", "--ttl", "1s", "--kill-after", "100ms", "--timeout", "30s"];
    let running = Running::start_through(&late, &flags, "echo runs");
    let errors: Vec<String> = std::iter::from_fn(|| running.errors.next()).collect();
    let is_late = |line: &String| line.contains("UNAVAILABLE: the lease was renewed too late");
    assert!(errors.iter().any(is_late), "{errors:?}");
    assert_eq!(running.ends(), 4);
    assert!(is_free(&mut fixture).await, "the lease is released");
}

async fn a_lease_is_renewed_while_the_command_runs(mut fixture: Fixture) {
    let running = Running::start(
        &fixture,
        &["--ttl", "3s", "--kill-after", "1s"],
        "echo runs; exec sleep 600",
    );
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
    let running = Running::start(&fixture, &["--ttl", "6s", "--kill-after", "3s"], TIDY);
    running.says("runs");
    fixture.clock.advance(Duration::from_secs(7));
    running.says("tidies");
    let told = running.errors.next().unwrap();
    assert!(told.starts_with(&format!("lost the lease of {SESSION}: ")), "{told}");
    assert_eq!(running.ends(), 12);
}

async fn a_command_that_will_not_end_is_killed(fixture: Fixture) {
    const STAY: &str = "trap '' TERM; echo runs; while :; do sleep 0.01; done";
    let flags = ["--ttl", "6s", "--kill-after", "500ms"];
    let running = Running::start(&fixture, &flags, STAY);
    running.says("runs");
    fixture.clock.advance(Duration::from_secs(7));
    assert_eq!(running.ends(), 12);
}

async fn a_command_whose_lease_is_gone_has_a_second_to_end(fixture: Fixture) {
    const STAY: &str = "trap '' TERM; echo runs; while :; do sleep 0.01; done";
    let running = Running::start(&fixture, &["--ttl", "20s", "--kill-after", "12s"], STAY);
    running.says("runs");
    fixture.clock.advance(Duration::from_secs(21));
    let told = running.errors.next().unwrap();
    let noticed = Instant::now();
    assert!(told.starts_with(&format!("lost the lease of {SESSION}: ")), "{told}");
    assert_eq!(running.ends(), 12);
    // Another may hold the session by then: --kill-after does not count.
    assert!(noticed.elapsed() < Duration::from_secs(6), "{:?}", noticed.elapsed());
}

async fn a_command_has_ended_by_the_end_of_a_lease_that_cannot_be_renewed(fixture: Fixture) {
    const TTL: Duration = Duration::from_secs(6);
    let folder = tempdir().unwrap();
    let (work, silence) = (folder.path().join("work"), folder.path().join("silence"));
    // Neither it nor what it has started ends by itself.
    let stay = format!(
        "work() {{ while :; do echo works >> {}; sleep 0.02; done; }}; \
        trap 'echo asked' TERM; echo runs; (trap '' TERM; work) & work",
        work.display(),
    );
    let hole = Hole::start(fixture.replica.server.address()).await;
    let flags = ["--ttl", "6s", "--kill-after", "3s", "--timeout", "30s"];
    let mut running = Running::start_through(&hole, &flags, &stay);
    running.says("runs");
    hole.silence();
    fs::write(&silence, "").unwrap();
    let mut asked = None;
    while let Some(line) = running.lines.next() {
        assert_eq!(line, "asked");
        asked.get_or_insert_with(Instant::now);
    }
    let ended = Instant::now();
    // All renewals were sent before that, so the lease ends within its TTL. The file system's
    // clock is exact however late this test sees it.
    let at = |file| fs::metadata(file).unwrap().modified().unwrap();
    let worked = at(&work).duration_since(at(&silence)).unwrap();
    assert!(worked < TTL, "it worked for {worked:?}");
    let asked = asked.expect("it is asked to end first");
    assert!(ended - asked > Duration::from_secs(1), "it had {:?} to end", ended - asked);
    let told = running.errors.next().unwrap();
    assert!(told.starts_with(&format!("lost the lease of {SESSION}: not renewed")), "{told}");
    assert_eq!(running.child.wait().unwrap().code(), Some(12));
    // Nor does it wait for an answer that nobody needs.
    assert!(ended.elapsed() < Duration::from_secs(5), "{:?}", ended.elapsed());
}

async fn an_exec_does_not_wait_for_a_silent_server_when_its_command_has_ended(fixture: Fixture) {
    let hole = Hole::start(fixture.replica.server.address()).await;
    let flags = ["--timeout", "30s"];
    let running = Running::start_through(&hole, &flags, "echo runs; sleep 1; exit 7");
    running.says("runs");
    hole.silence();
    let silenced = Instant::now();
    assert_eq!(running.ends(), 7);
    assert!(silenced.elapsed() < Duration::from_secs(10), "{:?}", silenced.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_commands_run_at_once() {
    let directory = tempdir().unwrap();
    let replica = Replica::start(&sqlite_url(&directory), Clock::Store, &[]).await;
    let [cut, open] =
        [Hole::start(replica.server.address()).await, Hole::start(replica.server.address()).await];
    let log = directory.path().join("log");
    let works = |name: &str| {
        let log = log.display();
        format!(
            "trap '' TERM; echo runs; i=0; \
            while [ $i -lt 200 ]; do i=$((i+1)); echo {name} >> {log}; sleep 0.05; done"
        )
    };
    let flags = ["--ttl", "4s", "--kill-after", "2s"];
    let first = Running::start_through(&cut, &flags, &works("first"));
    first.says("runs");
    let second = Running::start_through(&open, &flags, &works("second"));
    cut.silence();
    // It waited for longer than the lease runs, and has all of it.
    second.says("runs");
    assert_eq!(first.ends(), 12);
    assert_eq!(second.ends(), 0);
    let log = fs::read_to_string(log).unwrap();
    let is_first = |line: &&str| *line == "first";
    assert!(!log.lines().skip_while(is_first).any(|line| is_first(&line)), "{log}");
    assert_eq!(log.lines().filter(|line| !is_first(line)).count(), 200);
}

#[test]
fn a_ttl_too_short_to_end_the_command_within_is_refused() {
    for (flags, problem) in [
        (&["--ttl", "5s"][..], "--ttl 5s is too short for --kill-after 5s: must be 7s 875ms"),
        (&["--kill-after", "30s"], "--ttl 30s is too short for --kill-after 30s: must be 45s"),
        (&["--ttl", "15m", "--kill-after", "15m"], "--kill-after 15m"),
        (&["--kill-after", "10000000000000000000s"], "--kill-after"),
    ] {
        let exec = [&["exec", "-n", "--session", SESSION], flags, &["--", "true"]].concat();
        let ran = run(&mut oncegate(&exec), "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{flags:?}: {}", ran.err);
        assert!(ran.err.contains(problem), "{flags:?}: {}", ran.err);
    }
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
