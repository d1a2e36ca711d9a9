//! The example `fuzz`, for a short while: the inputs that once failed, and new ones.

use std::{env, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

/// How long it may take in all: much longer than it does, however slow the machine is.
const BOUND: Duration = Duration::from_mins(10);

/// Runs the example, and answers whether it found nothing, and what it printed.
async fn fuzz(flags: &str) -> (bool, String) {
    let tests = env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/fuzz");
    assert!(example.exists(), "`cargo test` builds it, and so does `cargo build --examples`");
    let mut command = Command::new(example);
    let root = env!("CARGO_MANIFEST_DIR");
    command.env_clear().args(flags.split(' ')).current_dir(root);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(BOUND, command.output()).await.expect("it takes for ever").unwrap();
    let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
    let errors = String::from_utf8_lossy(&ended.stderr);
    (ended.status.success(), format!("{printed}{errors}"))
}

#[tokio::test]
async fn no_input_breaks_a_guarantee() {
    let (is_well, printed) = fuzz("--seed 16 --inputs 20000").await;
    assert!(is_well, "{printed}");
    for target in ["platform", "auth-file", "jwt", "certificate", "grpc", "http2"] {
        assert!(printed.contains(&format!("\n{target}: ")), "{target}: {printed}");
    }
}

#[tokio::test]
async fn the_same_seed_gives_the_same_inputs() {
    let digests = async |seed: &str| {
        let (is_well, printed) = fuzz(&format!("--seed {seed} --inputs 600")).await;
        assert!(is_well, "{printed}");
        let digest = |line: &str| {
            let (name, rest) = line.split_once(": ")?;
            let (_, digest) = rest.split_once("(digest ")?;
            Some((name.to_owned(), digest.split_once(')')?.0.to_owned()))
        };
        printed.lines().filter_map(digest).collect::<Vec<_>>()
    };
    let first = digests("1").await;
    assert_eq!(first.len(), 6, "{first:?}");
    assert_eq!(first, digests("1").await);
    let other = digests("2").await;
    assert!(first.iter().zip(&other).all(|(one, other)| one != other), "{other:?}");
}

#[tokio::test]
async fn planted_faults_are_found_and_can_be_repeated() {
    for (fault, text) in
        [("panic", "planted"), ("memory", "bytes were allocated"), ("error", "FAILED planted")]
    {
        let (is_well, printed) = fuzz(&format!("--target planted-{fault} --inputs 2000")).await;
        assert!(!is_well && printed.contains(text), "{fault}: {printed}");
        let command = printed.lines().find(|line| line.starts_with("cargo run"));
        let (_, flags) = command.expect("a command that repeats it").split_once(" -- ").unwrap();
        let (is_well, printed) = fuzz(flags).await;
        assert!(!is_well && printed.contains(text), "{fault}: {printed}");
    }
    let (is_well, printed) = fuzz("--target planted-leak --inputs 60000").await;
    assert!(!is_well && printed.contains("bytes after the first life"), "{printed}");
}
