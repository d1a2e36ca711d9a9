//! Commands: one line each, and its answer.

use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::{
    calls,
    proxy::{Direction, End},
    records::{self, EventName, Name, SessionName},
    replica::Replica,
};

/// How long the server may take to answer the testbed itself.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    Drain {},
    Kill {},
    Restart {
        #[serde(default)]
        after_ms: u64,
    },
    Mute {},
    Unmute {},
    Cut {
        #[serde(default)]
        side: Side,
    },
    Hold {
        #[serde(default)]
        direction: Directions,
    },
    Release {
        #[serde(default)]
        direction: Directions,
    },
    CutBeforeData {
        direction: Direction,
        #[serde(default)]
        skip: u64,
    },
    Refuse {},
    Accept {},
    Lose(SessionName),
    Forget(EventName),
    Look(Name),
    Calls {},
    Clock {
        advance_ms: u64,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Side {
    #[default]
    Both,
    Client,
    Server,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Directions {
    #[default]
    Both,
    ToClient,
    ToServer,
}

impl Directions {
    fn each(self) -> &'static [Direction] {
        match self {
            Self::Both => &[Direction::ToClient, Direction::ToServer],
            Self::ToClient => &[Direction::ToClient],
            Self::ToServer => &[Direction::ToServer],
        }
    }
}

/// Runs the command of a line, and returns the line that answers it.
pub async fn answer(line: &str, replicas: &[Replica]) -> Value {
    let (id, done) = match serde_json::from_str::<Map<String, Value>>(line) {
        Ok(mut command) => {
            let id = command.remove("id").unwrap_or_default();
            (id, run(command, replicas).await)
        }
        Err(error) => (Value::Null, Err(error).context("a command must be a JSON object")),
    };
    match done {
        Ok(ok) => json!({ "id": id, "ok": ok }),
        Err(error) => json!({ "id": id, "error": format!("{error:#}") }),
    }
}

async fn run(mut command: Map<String, Value>, replicas: &[Replica]) -> anyhow::Result<Value> {
    let number = command.remove("replica").unwrap_or(json!(0));
    let count = replicas.len();
    let replica = number.as_u64().and_then(|number| replicas.get(usize::try_from(number).ok()?));
    let replica = replica.with_context(|| format!("no replica {number}; there are {count}"))?;
    let command = serde_json::from_value(Value::Object(command))?;
    let done = json!({});
    match command {
        Command::Drain {} => replica.drain()?,
        Command::Kill {} => replica.kill().await?,
        Command::Restart { after_ms } => replica.restart(Duration::from_millis(after_ms)).await?,
        Command::Mute {} => replica.mute()?,
        Command::Unmute {} => replica.unmute()?,
        Command::Cut { side: Side::Both } => replica.proxy.cut().await,
        Command::Cut { side: Side::Client } => replica.proxy.cut_half(End::Client).await,
        Command::Cut { side: Side::Server } => replica.proxy.cut_half(End::Server).await,
        Command::Hold { direction } => hold(replica, direction, true),
        Command::Release { direction } => hold(replica, direction, false),
        Command::CutBeforeData { direction, skip } => {
            replica.proxy.cut_before_data(direction, skip);
        }
        Command::Refuse {} => replica.proxy.refuse(true),
        Command::Accept {} => replica.proxy.refuse(false),
        Command::Lose(name) => return in_time(records::lose(replica, name)).await,
        Command::Forget(name) => return in_time(records::forget(replica, name)).await,
        Command::Look(name) => return in_time(records::look(replica, name)).await,
        Command::Calls {} => {
            return in_time(async { calls::counts(&*replica.process()?).await }).await;
        }
        Command::Clock { advance_ms } => replica.advance(advance_ms).await?,
    }
    Ok(done)
}

fn hold(replica: &Replica, directions: Directions, is_held: bool) {
    for &direction in directions.each() {
        replica.proxy.hold(direction, is_held);
    }
}

/// What the server answers; a server that is muted answers late or not at all.
async fn in_time<T>(answer: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(PATIENCE, answer).await.context("the server does not answer")?
}
