//! The quick start of the README, as it stands there.

use std::{fs, sync::Mutex};

use oncegate_client::{Delivery, Error, Outcome, testing};

/// As in the README, the address comes from elsewhere.
struct Gate;

static ADDRESS: Mutex<String> = Mutex::new(String::new());
static PRINTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Gate {
    fn builder() -> oncegate_client::GateBuilder {
        let address = ADDRESS.lock().expect("it is not poisoned");
        oncegate_client::Gate::builder().server(&*address)
    }
}

/// Keeps what the quick start prints.
macro_rules! println {
    ($text:literal) => {
        PRINTED.lock().expect("it is not poisoned").push(format!($text))
    };
}

#[expect(clippy::unused_async, reason = "a bot's would wait")]
async fn answer(body: &[u8]) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(body).to_uppercase())
}

#[expect(clippy::unused_async, reason = "a bot's would wait")]
async fn save(_reply: &str, fence: Option<i64>) -> Result<(), Error> {
    assert!(fence.is_some());
    Ok(())
}

#[rustfmt::skip]
async fn quick_start(delivery: Delivery, body: Vec<u8>) -> Result<(), Error> {
// From here
let gate = Gate::builder().consumer("answer-bot").build()?; // ONCEGATE_SERVER, or 127.0.0.1:7411
let outcome = gate.turn(delivery).run(|turn| async move {
    let reply = answer(&body).await?; // dropped if the turn is lost
    save(&reply, turn.fence()).await?;
    Ok::<_, Error>(reply) // duplicates get the reply
});
match outcome.await? {
    Outcome::Ran(reply) => println!("{reply}"),
    other => println!("{other:?}"),
}
// to here
Ok(())
}

#[tokio::test]
async fn the_quick_start_runs() {
    let server = testing::Server::start([]).await;
    *ADDRESS.lock().expect("it is not poisoned") = server.address();
    for _ in 0..2 {
        let delivery = Delivery::new("T1", "E1").session("S1");
        quick_start(delivery, b"hello".to_vec()).await.expect("it runs");
    }
    let printed = PRINTED.lock().expect("it is not poisoned");
    assert_eq!(printed[0], "HELLO");
    assert!(printed[1].starts_with("Duplicate") && printed[1].contains("HELLO"), "{printed:?}");
}

#[test]
fn the_readme_has_it() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(readme).expect("a README");
    let block = readme.split("```rust\n").nth(1).expect("a block of Rust");
    let block = block.split("```").next().expect("its end");
    let tested = include_str!("quick_start.rs").split("// From here\n").nth(1).expect("its begin");
    let tested = tested.split("// to here\n").next().expect("its end");
    assert_eq!(block, tested);
    assert!(block.lines().count() <= 15);
}
