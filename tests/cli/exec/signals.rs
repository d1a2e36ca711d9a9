//! Signals to a command, and what it has started.

use super::*;

on_both_stores!(
    what_a_command_has_started_ends_with_it,
    one_that_was_stopped_for_too_long_finds_its_lease_lost,
    signals_go_to_all_of_the_command,
    a_signal_that_was_ignored_before_stays_so,
    a_signal_ends_the_wait,
);

async fn what_a_command_has_started_ends_with_it(fixture: Fixture) {
    // The one that stays keeps the output open for as long as it runs.
    const TWO: &str = "(trap '' TERM; echo runs; exec sleep 600) & wait";
    let flags = ["--ttl", "6s", "--kill-after", "500ms"];
    let running = Running::start(&fixture, &flags, TWO);
    running.says("runs");
    fixture.clock.advance(Duration::from_secs(7));
    assert_eq!(running.ends(), 12);
}

async fn one_that_was_stopped_for_too_long_finds_its_lease_lost(mut fixture: Fixture) {
    const TELL: &str = "echo $ONCEGATE_FENCING_TOKEN; exec sleep 600";
    let running = Running::start(&fixture, &["--ttl", "6s", "--kill-after", "500ms"], TELL);
    let stale: i64 = running.lines.next().unwrap().parse().unwrap();
    running.send("-STOP");
    fixture.clock.advance(Duration::from_secs(7));
    let next = hold(&mut fixture).await;
    assert!(next.fencing_token > stale);
    let check = CheckSessionLeaseRequest { session: session("T1", SESSION), fencing_token: stale };
    let checked = fixture.client.check_session_lease(check).await.unwrap().into_inner();
    assert!(!checked.current);
    running.send("-CONT");
    assert_eq!(running.ends(), 12);
    // The next holder keeps its lease.
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
