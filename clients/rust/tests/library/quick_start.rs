//! The quick start of the README, as it stands there.

use std::fs;

use oncegate_client::{Delivery, Error, Outcome, testing};

/// The lines between the fences of the README's first block of Rust.
fn lines_of_readme() -> Vec<String> {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(readme).expect("a README");
    let block = readme.split("```rust\n").nth(1).expect("a block of Rust");
    block.split("```").next().expect("its end").lines().map(|line| line.trim().to_owned()).collect()
}

async fn answer(body: &[u8]) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(body).to_uppercase())
}

async fn save(_reply: &str, fence: Option<i64>) -> Result<(), Error> {
    assert!(fence.is_some());
    Ok(())
}

#[tokio::test]
async fn the_quick_start_runs() {
    let (gate, _server) = testing::start().await;
    for _ in 0..2 {
        let (gate, body) = (gate.clone(), b"hello".to_vec());
        let delivery = Delivery::new("T1", "E1").session("S1");
        // quick start
        let outcome = gate.turn(delivery).run(|turn| async move {
            let reply = answer(&body).await?; // dropped if the turn is lost
            save(&reply, turn.fence()).await?;
            Ok::<_, Error>(reply) // duplicates get the reply
        });
        match outcome.await.expect("an outcome") {
            Outcome::Ran(reply) => assert_eq!(reply, "HELLO"),
            Outcome::Duplicate(other) => assert_eq!(other.result.as_deref(), Some("HELLO")),
            other => panic!("{other:?}"),
        }
    }
    // What stands in the README is what has just run.
    let tested = include_str!("quick_start.rs");
    let lines = lines_of_readme();
    assert!(lines.len() <= 15, "{} lines", lines.len());
    for line in lines.iter().filter(|line| {
        line.contains("turn.fence()")
            || line.contains("answer(&body)")
            || line.contains("Ok::<_, Error>")
            || line.contains(".run(|turn|")
    }) {
        assert!(tested.contains(line.as_str()), "this is not tested: {line}");
    }
}
