use std::collections::{BTreeMap, BTreeSet};

use clap::{Arg, ArgAction, Command, CommandFactory as _};
use oncegate::cli::Cli;

use super::{code, head, row};

/// An argument as it is written: `--name <VALUE>`, or `VALUE`.
fn spelled(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let value = names.iter().map(clap::builder::Str::as_str).collect::<Vec<_>>().join(" ");
    let Some(long) = arg.get_long() else { return value };
    let short = arg.get_short().map_or(String::new(), |short| format!("-{short}, "));
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    format!("{short}--{long}{}", if takes { format!(" {value}") } else { String::new() })
}

fn help(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).unwrap_or_default().to_string();
    let values = arg.get_possible_values();
    let values = values.iter().map(|value| code(value.get_name())).collect::<Vec<_>>();
    if values.is_empty() || !arg.get_action().takes_values() || values == ["`true`", "`false`"] {
        return help;
    }
    format!("{help}: {}", values.join(", "))
}

/// The arguments that a reader may give, as a table.
pub fn table<'a>(args: impl Iterator<Item = &'a Arg>) -> String {
    let shown = args.filter(|arg| {
        let asks = matches!(
            arg.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        );
        !arg.is_hide_set() && !asks
    });
    let rows = shown.map(|arg| {
        let variable = arg.get_env().map_or("", |name| name.to_str().unwrap());
        let defaults = arg.get_default_values().iter().map(|value| value.to_str().unwrap());
        let default =
            if arg.get_action().takes_values() { defaults.collect() } else { String::new() };
        row([code(&spelled(arg)), code(variable), code(&default), help(arg)])
    });
    let rows = rows.collect::<String>();
    if rows.is_empty() {
        return rows;
    }
    format!("{}{rows}", head(["argument", "variable", "default", "meaning"]))
}

fn as_block(text: &str) -> String {
    format!("```text\n{text}\n```")
}

/// The commands that run, those below others included, in the order of `--help`.
fn commands(of: &Command) -> Vec<Command> {
    let below = of.get_subcommands().filter(|command| command.get_name() != "help");
    let below = below.flat_map(commands).collect::<Vec<_>>();
    if below.is_empty() { vec![of.clone()] } else { below }
}

fn section(mut command: Command, settings: &BTreeSet<&str>) -> String {
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let about = command.get_long_about().or(command.get_about()).unwrap_or_default().to_string();
    let about = about.trim_end_matches('.');
    let title = command.get_bin_name().unwrap();
    let is_setting = |arg: &&Arg| settings.contains(arg.get_id().as_str());
    let plain = || command.get_arguments().filter(|arg| arg.get_help_heading().is_none());
    let own = table(plain().filter(|arg| !is_setting(arg)));
    // What all commands take is mentioned once.
    let is_common = |arg: &Arg| matches!(arg.get_id().as_str(), "help" | "log" | "log_format");
    let has_settings = plain().any(|arg| is_setting(&arg) && !is_common(arg));
    let settings = has_settings.then_some("Settings: see [configuration](configuration.md).\n");
    let codes = command.get_after_help().filter(|_| command.get_name() != "serve");
    let parts = [
        format!("## {title}\n\n{about}.\n\n{}\n", as_block(usage)),
        own,
        settings.unwrap_or_default().to_owned(),
        codes.map_or(String::new(), |codes| as_block(&codes.to_string()) + "\n"),
    ];
    let parts = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
    format!("\n{}", parts.join("\n"))
}

/// The arguments that several commands share stand under a heading of their own.
fn shared(commands: &[Command], settings: &BTreeSet<&str>) -> String {
    let mut sections: BTreeMap<&str, (String, Vec<String>)> = BTreeMap::new();
    for command in commands {
        let args =
            || command.get_arguments().filter(|arg| !settings.contains(arg.get_id().as_str()));
        for heading in args().filter_map(Arg::get_help_heading).collect::<BTreeSet<_>>() {
            let of_heading = args().filter(|arg| arg.get_help_heading() == Some(heading));
            let (_, takers) =
                sections.entry(heading).or_insert_with(|| (table(of_heading), Vec::new()));
            takers.push(code(command.get_bin_name().unwrap().trim_start_matches("oncegate ")));
        }
    }
    let section = |(heading, (table, takers)): (_, (_, Vec<String>))| {
        format!("\n## {heading}\n\nOptions of {}.\n\n{table}", takers.join(", "))
    };
    sections.into_iter().map(section).collect()
}

pub fn page() -> String {
    let mut oncegate = Cli::command();
    oncegate.build();
    let codes = oncegate.get_after_help().unwrap().to_string();
    let commands = commands(&oncegate);
    let serve = commands.iter().find(|command| command.get_name() == "serve").unwrap();
    let settings: BTreeSet<_> = serve.get_arguments().map(|arg| arg.get_id().as_str()).collect();
    let common = shared(&commands, &settings);
    let sections = commands.iter().map(|command| section(command.clone(), &settings));
    format!(
        "The commands of `oncegate`, as `--help` shows them. All of them take `--log` and `--log-format`, see\n\
        [configuration](configuration.md). Each ends with one of these codes, unless its section has others.\n\n\
        {}\n{}{common}",
        as_block(&codes),
        sections.collect::<String>(),
    )
}
