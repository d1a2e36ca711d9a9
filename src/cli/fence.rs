//! `oncegate fence`: the floor of fencing tokens, in the database itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use serde_json::json;

use super::{Exit, WrongArguments, client::Output};
use crate::{
    config::StoreConfig,
    domain::{FencingToken, Timestamp},
    server,
    store::Fence,
};

/// How far above all that is known the floor is raised by default: tokens are microseconds,
/// so this covers a clock that is behind by as much.
const MARGIN: Duration = Duration::from_hours(24);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the floor, the highest token on record, and the store's clock
    Show(Args),
    /// Raise the floor: the next token of every session is above it
    #[command(long_about = "Raise the floor: the next token of every session is above it.\n\n\
        Needed if a failover or a restore has lost tokens that are above the clock, because tokens \
        could decrease then: the clock was stepped back, or has not passed a floor that was raised. \
        Run this command before you restart the service.")]
    Raise {
        /// The new floor. Unset: one day (86400000000) above the current floor, all tokens on
        /// record and the store's clock
        #[arg(long, value_name = "TOKEN",
            value_parser = clap::value_parser!(i64).range(1..=FencingToken::MAX_FLOOR.0))]
        to: Option<i64>,
        #[command(flatten)]
        args: Args,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    store: StoreConfig,
    /// Output format
    #[arg(long, env = "ONCEGATE_OUTPUT", value_enum, default_value = "text")]
    output: Output,
}

pub(super) async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Show(Args { store, output }) => {
            let fence = server::fence(&store).await?;
            let Fence { floor, highest, now } = fence;
            let clock = token_of(now);
            let json = json!({ "floor": floor.0, "highest": highest.0, "clock": clock.0 });
            let text = format!(
                "floor {}, highest token on record {}, clock {}",
                floor.0, highest.0, clock.0
            );
            output.print(&json, text)?;
        }
        Command::Raise { to, args: Args { store, output } } => {
            let before = server::fence(&store).await?;
            let to = FencingToken(to.unwrap_or_else(|| above(before)));
            if to <= before.floor {
                return Err(anyhow::anyhow!(
                    "--to must be above the current floor {}, is {}; the floor cannot be lowered",
                    before.floor.0,
                    to.0
                ))
                .context(WrongArguments);
            }
            ensure!(
                to <= FencingToken::MAX_FLOOR,
                "the default floor {} exceeds the maximum {}; set --to",
                to.0,
                FencingToken::MAX_FLOOR.0
            );
            let after = server::raise_fence(&store, to).await?;
            let json = json!({ "before": before.floor.0, "after": after.floor.0 });
            let text = format!("floor raised from {} to {}", before.floor.0, after.floor.0);
            output.print(&json, text)?;
        }
    }
    Ok(Exit::Yes)
}

/// The moment as a token: microseconds since 1970.
const fn token_of(now: Timestamp) -> FencingToken {
    FencingToken(now.as_micros())
}

/// [`MARGIN`] above all that is known.
fn above(fence: Fence) -> i64 {
    let Fence { floor, highest, now } = fence;
    let known = Timestamp::from_micros(floor.max(highest).max(token_of(now)).0);
    known.plus(MARGIN).as_micros()
}
