//! `oncegate token`: bearer tokens, without a server.

use clap::Subcommand;
use serde_json::json;

use super::{Exit, client::Output};
use crate::auth::token::{self, Digest};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print a new bearer token, and the line for the principal in the --auth file
    #[command(long_about = "Print a new bearer token, and the line for the principal in the \
        --auth file.\n\nThe token is on the first line and is shown only once. The file has \
        its SHA-256, from which the token cannot be found. To rotate a token, add the new digest \
        beside the old one, give the new token to the callers, then remove the old digest.")]
    New {
        /// Output format
        #[arg(long, env = "ONCEGATE_OUTPUT", value_enum, default_value = "text")]
        output: Output,
    },
}

pub(super) fn run(command: &Command) -> anyhow::Result<Exit> {
    let Command::New { output } = command;
    let token = token::generate()?;
    let digest = Digest::of(token.as_bytes()).to_hex();
    let json = json!({ "token": token, "token_sha256": digest });
    output.print(&json, format_args!("{token}\ntoken_sha256 = [\"{digest}\"]"))?;
    Ok(Exit::Yes)
}
