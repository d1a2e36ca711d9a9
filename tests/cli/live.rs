//! `oncegate mark --slack -`: deliveries that come one by one.

use std::{
    io::{PipeWriter, Write as _, empty, pipe},
    process::{Child, ChildStdin, Stdio},
};

use super::{Lines, asking};
use crate::{harness::Fixture, on_both_stores};

on_both_stores!(
    each_line_is_answered_before_the_next_is_there,
    a_stream_ends_when_its_server_does,
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
        let (answers, output) = pipe().unwrap();
        Self::printing_to(output, Lines::of(answers), fixture)
    }

    fn printing_to(output: PipeWriter, answers: Lines, fixture: &Fixture) -> Self {
        let mut child = asking(fixture, &["mark", "T1", "--slack", "-"])
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
                at column 25",
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

async fn a_stream_ends_when_its_server_does(fixture: Fixture) {
    let mut stream = Stream::open(&fixture);
    stream.say("Ev1");
    stream.hears("1: first T1 Ev1");
    fixture.replica.server.stop().await.unwrap();
    stream.say("Ev2");
    let (code, last_words) = stream.end();
    let last_words = last_words.unwrap();
    assert!(
        last_words.starts_with("error: stopped at line 2: no answer from the server: "),
        "{last_words}"
    );
    assert_eq!(code, Some(4));
}

async fn a_stream_ends_when_nobody_reads_it(fixture: Fixture) {
    let (reader, output) = pipe().unwrap();
    drop(reader);
    let mut stream = Stream::printing_to(output, Lines::of(empty()), &fixture);
    stream.say("Ev1");
    assert_eq!(stream.end(), (Some(1), None));
}
