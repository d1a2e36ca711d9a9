//! `oncegate mark --slack -`: deliveries that come one by one.

use std::{
    io::{PipeWriter, Write as _, empty, pipe},
    process::{Child, ChildStdin, Stdio},
};

use oncegate::grpc::pb::IsProcessedRequest;
use tempfile::tempdir;

use super::{Lines, asking, oncegate};
use crate::{
    harness::{Fixture, Replica, event},
    on_both_stores,
};

on_both_stores!(
    each_line_is_answered_before_the_next_is_there,
    a_stream_ends_when_its_server_has_been_away_for_too_long,
    a_stream_goes_on_over_a_restart_of_its_server,
    a_stream_ends_when_nobody_reads_it,
);

/// A stream of deliveries that is open.
struct Stream {
    child: Child,
    input: Option<ChildStdin>,
    answers: Lines,
    errors: Lines,
}

impl Stream {
    fn open(fixture: &Fixture) -> Self {
        Self::open_for(fixture, "10s")
    }

    /// A stream that tries each line again for `timeout`.
    fn open_for(fixture: &Fixture, timeout: &str) -> Self {
        let (answers, output) = pipe().unwrap();
        Self::printing_to(output, Lines::of(answers), fixture, timeout)
    }

    fn printing_to(output: PipeWriter, answers: Lines, fixture: &Fixture, timeout: &str) -> Self {
        let mut child = asking(fixture, &["mark", "T1", "--slack", "-", "--timeout", timeout])
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let errors = Lines::of(child.stderr.take().unwrap());
        Self { input: child.stdin.take(), answers, errors, child }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.input.as_ref().unwrap().write_all(bytes).unwrap();
    }

    fn say(&mut self, event: &str) {
        self.write(format!("{{\"event\":{{}},\"event_id\":\"{event}\"}}\n").as_bytes());
    }

    #[track_caller]
    fn hears(&self, answer: &str) {
        assert_eq!(self.answers.next().as_deref(), Some(answer));
    }

    /// How it ends, and its last words.
    fn end(&mut self) -> (Option<i32>, Option<String>) {
        assert_eq!(self.answers.next(), None);
        let last_words = self.errors.next();
        assert_eq!(self.errors.next(), None);
        (self.child.wait().unwrap().code(), last_words)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn each_line_is_answered_before_the_next_is_there(fixture: Fixture) {
    let mut stream = Stream::open(&fixture);
    for (event, answer) in [
        ("Ev1", "1: first T1 Ev1"),
        ("Ev2", "2: first T1 Ev2"),
        ("Ev1", "3: duplicate T1 Ev1"),
        (
            "\0",
            "4: bad: not JSON: control character (\\u0000-\\u001F) found while parsing a string \
                at byte 24",
        ),
        ("Ev3", "5: first T1 Ev3"),
    ] {
        stream.say(event);
        stream.hears(answer);
    }

    // Half a line is none yet.
    stream.write(br#"{"event":{},"event_"#);
    let mut other = Stream::open(&fixture);
    other.say("Ev4");
    other.hears("1: first T1 Ev4");
    stream.write(b"id\":\"Ev4\"}\n");
    stream.hears("6: duplicate T1 Ev4");

    // The last line needs no end but the stream's own.
    stream.write(br#"{"event":{},"event_id":"Ev5"}"#);
    stream.input = None;
    stream.hears("7: first T1 Ev5");
    assert_eq!(stream.end(), (Some(3), Some("4 first, 2 duplicate, 1 bad".to_owned())));
}

async fn a_stream_ends_when_its_server_has_been_away_for_too_long(fixture: Fixture) {
    let mut stream = Stream::open_for(&fixture, "2s");
    stream.say("Ev1");
    stream.hears("1: first T1 Ev1");
    fixture.replica.server.stop().await.unwrap();
    stream.say("Ev2");
    let noted = stream.errors.next().unwrap();
    assert!(noted.starts_with("waiting: "), "{noted}");
    let (code, last_words) = stream.end();
    let last_words = last_words.unwrap();
    assert!(last_words.starts_with("error: stopped at line 2: "), "{last_words}");
    assert_eq!(code, Some(4));
}

async fn a_stream_goes_on_over_a_restart_of_its_server(fixture: Fixture) {
    let directory = tempdir().unwrap();
    let listen = format!("unix:{}", directory.path().join("oncegate.sock").display());
    let fixture = fixture.restarted(&["--listen", &listen]).await;
    let mut stream = Stream::open_for(&fixture, "5m");
    stream.say("Ev1");
    stream.hears("1: first T1 Ev1");
    fixture.replica.server.stop().await.unwrap();
    for event in ["Ev2", "Ev1", "Ev3"] {
        stream.say(event);
    }
    // It has tried one of them, in vain.
    let noted = stream.errors.next().unwrap();
    assert!(noted.starts_with("waiting: "), "{noted}");
    let clock = fixture.clock.store_clock();
    let replica = Replica::start(&fixture.url, clock, &["--listen", &listen]).await;
    stream.hears("2: first T1 Ev2");
    stream.hears("3: duplicate T1 Ev1");
    stream.hears("4: first T1 Ev3");
    let asked = IsProcessedRequest { event: event("T1", "Ev3"), ..Default::default() };
    assert!(replica.client().await.is_processed(asked).await.unwrap().into_inner().processed);
    stream.input = None;
    assert_eq!(stream.end(), (Some(0), Some("3 first, 1 duplicate, 0 bad".to_owned())));
}

#[test]
fn a_server_that_is_not_there_is_waited_for_before_a_line_is_read() {
    let directory = tempdir().unwrap();
    let server = format!("unix:{}", directory.path().join("none.sock").display());
    let arguments = ["mark", "--slack", "-", "--timeout", "300ms", "--server", &server];
    let ran = super::run(&mut oncegate(&arguments), "");
    assert_eq!((ran.code, ran.out.as_str()), (Some(4), ""), "{}", ran.err);
    let cannot = format!("UNAVAILABLE: cannot reach {server}: ");
    let lines: Vec<_> = ran.err.lines().collect();
    assert!(lines[0].starts_with(&format!("waiting: {cannot}")), "{}", ran.err);
    assert!(lines[1].starts_with(&format!("error: {cannot}")), "{}", ran.err);
}

async fn a_stream_ends_when_nobody_reads_it(fixture: Fixture) {
    let (reader, output) = pipe().unwrap();
    drop(reader);
    let mut stream = Stream::printing_to(output, Lines::of(empty()), &fixture, "10s");
    stream.say("Ev1");
    assert_eq!(stream.end(), (Some(1), None));
}
