use clap::CommandFactory as _;
use oncegate::cli::Cli;

use super::cli::table;

pub fn page() -> String {
    let mut oncegate = Cli::command();
    oncegate.build();
    let serve = oncegate.find_subcommand("serve").unwrap();
    format!(
        "The settings of `oncegate serve`: flags, or the variables beside them. A flag wins over its\n\
        variable. Durations are written as `250ms`, `30s`, `5m`, `1h` or `30d`.\n\n{}",
        table(serve.get_arguments())
    )
}
