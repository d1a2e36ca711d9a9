//! What goes wrong, how it is told, and with which exit code.

use std::{io::pipe, net::TcpListener, thread};

use tempfile::tempdir;

use super::{ask, asking, data, oncegate, run};
use crate::{harness::Fixture, on_both_stores};

on_both_stores!(an_invalid_argument_is_told_by_its_field);

async fn an_invalid_argument_is_told_by_its_field(fixture: Fixture) {
    let long = "x".repeat(513);
    let cases: [(&[&str], &str); 13] = [
        (&["mark", "", "Ev1"], "event.team_id: must not be empty"),
        (&["mark", "T1", ""], "event.event_id: must not be empty"),
        (&["mark", "T1", "a\nb"], "event.event_id: must not contain control characters"),
        (&["mark", "T1", &long], "event.event_id: must be at most 512 bytes, is 513"),
        (&["mark", "T1", "E", "--request-id", &long], "request_id: must be at most 512 bytes"),
        (&["check", &long, "Ev1"], "event.team_id: must be at most 512 bytes, is 513"),
        (&["lease", "acquire", "T1", ""], "session.session_id: must not be empty"),
        (&["lease", "acquire", "T1", "S1", "--holder", ""], "holder: must not be empty"),
        (&["lease", "acquire", "T1", "S1", "--epic", &long], "epic_id: must be at most 512 bytes"),
        (&["lease", "renew", "T1", "S1", "mine"], "lease_id: must be a lease_id that"),
        (&["lease", "release", "T1", "S1", ""], "lease_id: must "),
        (&["lease", "check", "T1", "S1", "0"], "fencing_token: must be 1 or more"),
        (&["cleanup", "--older-than", "0s"], "team_id: is required where older_than is zero"),
    ];
    for (arguments, problem) in cases {
        ask(&fixture, arguments).complained(2, &format!("error: INVALID_ARGUMENT: {problem}"));
    }
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_asked() {
    let health = |server| ["health", "--server", server];
    let server = "--server: the server must be ";
    let cases: [(&[&str], &str); 23] = [
        (&["mark"], "<TEAM> <EVENT>"),
        (&["mark", "T1"], "<EVENT>"),
        (&["mark", "T1", "Ev1", "Ev2"], "unexpected argument 'Ev2'"),
        (&["mark", "T1", "Ev1", "--slack", "-"], "'[EVENT]' cannot be used with '--slack <FILE>'"),
        (&["mark", "T1", "Ev1", "--ttl", "31d"], "'--ttl <TTL>': must be 1s to 30days"),
        (&["mark", "T1", "Ev1", "--ttl", "999ms"], "'--ttl <TTL>': must be 1s to 30days"),
        (
            &["mark", "T1", "Ev1", "--ttl", "1x"],
            "'--ttl <TTL>': must be a duration such as 30s or 5m",
        ),
        (&["mark", "T1", "Ev1", "--output", "yaml"], "possible values: text, json"),
        (&["mark", "T1", "Ev1", "--timeout", "100000y"], "'--timeout <TIMEOUT>': must be 1ms to"),
        (&["check", "T1"], "<EVENT>"),
        (&["lease"], "Usage: oncegate lease"),
        (&["lease", "acquire", "T1", "S1", "--ttl", "16m"], "'--ttl <TTL>': must be 1s to 15m"),
        (&["lease", "acquire", "T1", "S1", "--wait", "11m"], "'--wait <WAIT>': must be 0s to 10m"),
        (&["lease", "acquire", "T1", "S1", "--label", "x"], "must be NAME=VALUE"),
        (&["lease", "renew", "T1", "S1", "L", "--ttl", "0s"], "'--ttl <TTL>': must be 1s to 15m"),
        (&["lease", "check", "T1", "S1", "one"], "'<FENCING_TOKEN>': invalid digit"),
        (&["cleanup", "--older-than", "11y"], "'--older-than <AGE>': must be 0s to"),
        (&["cleanup", "--max-rows", "0"], "0 is not in 1..=1000000"),
        (&health("localhost"), server),
        (&health(""), "--server: it is empty"),
        (&health("unix:"), server),
        (&health("https://oncegate"), server),
        (&["health", "--log", "oncegate=loud"], "wrong arguments: --log: "),
    ];
    for (arguments, problem) in cases {
        let ran = run(&mut oncegate(arguments), "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(problem), "{arguments:?}: {problem:?} is not in {}", ran.err);
    }
}

#[test]
fn a_server_that_is_not_there_can_be_asked_again_later() {
    let directory = tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("none.sock").display());
    // Bound and let go: nobody listens on that port now.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for server in [socket, port] {
        let commands: [&[&str]; 7] = [
            &["mark", "T1", "Ev1"],
            &["check", "T1", "Ev1"],
            &["lease", "acquire", "T1", "S1"],
            &["lease", "release", "T1", "S1", "00000000-0000-0000-0000-000000000000"],
            &["lease", "check", "T1", "S1", "1"],
            &["cleanup"],
            &["health"],
        ];
        for command in commands {
            let ran = run(oncegate(command).args(["--server", &server]), "");
            ran.complained(4, &format!("error: UNAVAILABLE: cannot reach {server}: "));
            assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        }
    }
}

#[test]
fn a_server_that_is_mute_can_be_asked_again_later() {
    // The kernel accepts for it, and nobody ever answers.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = mute.local_addr().unwrap().to_string();
    let health = ["health", "--server", &server, "--timeout", "50ms"];
    run(&mut oncegate(&health), "")
        .complained(4, "error: no answer from the server: Timeout expired");
}

#[test]
fn a_server_that_hangs_up_can_be_asked_again_later() {
    let rude = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = rude.local_addr().unwrap().to_string();
    let hangs_up = thread::spawn(move || drop(rude.accept().unwrap()));
    let ran = run(&mut oncegate(&["health", "--server", &server]), "");
    ran.complained(4, "error: ");
    assert!(!ran.err.contains("Status"), "{}", ran.err);
    hangs_up.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_that_nobody_reads_ends_a_command_quietly() {
    let fixture = Fixture::sqlite().await;
    let file = data("slack_deliveries.jsonl");
    let commands: [&[&str]; 5] = [
        &["mark", "T1", "Ev1"],
        &["mark", "--slack", &file],
        &["lease", "acquire", "T1", "S1"],
        &["cleanup"],
        &["health"],
    ];
    for command in commands {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut asking = asking(&fixture, command);
        let (answers, errors) = pipe().unwrap();
        let ended = asking.stdout(writer.try_clone().unwrap()).stderr(errors).status().unwrap();
        drop(asking);
        assert_eq!(std::io::read_to_string(answers).unwrap(), "", "{command:?}");
        assert_eq!(ended.code(), Some(1), "{command:?}");

        // Nor may it stumble where its last words go nowhere either.
        let both = writer.try_clone().unwrap();
        let ended = self::asking(&fixture, command).stdout(writer).stderr(both).status().unwrap();
        assert_eq!(ended.code(), Some(1), "{command:?}");
    }

    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let ended = asking(&fixture, &["mark", "", "Ev1"]).stderr(writer).status().unwrap();
    assert_eq!(ended.code(), Some(2));
}
