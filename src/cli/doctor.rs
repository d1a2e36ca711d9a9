//! `oncegate doctor`: checks the store that a server with the same settings would use.

use anyhow::Context as _;
use serde_json::json;

use super::{Exit, WrongArguments, client::Output};
use crate::{
    config::ServeConfig,
    server,
    store::doctor::{Check, Planned, Severity},
};

pub(super) const EXIT_CODES: &str =
    "Exit codes: 0 no check failed, 1 a check failed, 2 wrong arguments";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many replicas share the database
    #[arg(long, env = "ONCEGATE_REPLICAS", value_name = "COUNT", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..))]
    replicas: u16,
    /// Output format
    #[arg(long, env = "ONCEGATE_OUTPUT", value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    serve: ServeConfig,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let Args { replicas, output, serve } = args;
    serve.validate().context(WrongArguments)?;
    let (migrate, writers, replicas) = (serve.migrate, serve.writers, usize::from(replicas));
    let checks = server::doctor(&serve.store, Planned { migrate, writers, replicas }).await?;
    for check in &checks {
        print(check, output)?;
    }
    let is_failed = |check: &Check| check.finding.severity == Severity::Failed;
    Ok(if checks.iter().any(is_failed) { Exit::Failed } else { Exit::Yes })
}

fn print(Check { name, finding }: &Check, output: Output) -> anyhow::Result<()> {
    let severity = finding.severity.name();
    let json = json!({
        "check": name,
        "result": severity,
        "found": finding.found,
        "advice": finding.advice,
    });
    let advice = finding.advice.iter().map(|advice| format!("; {advice}"));
    let text = format!("{severity:<7} {name}: {}{}", finding.found, advice.collect::<String>());
    Ok(output.print(&json, text)?)
}
