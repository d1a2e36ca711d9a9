//! The settings that differ from their defaults, as flags, without secrets.

use clap::{Arg, ArgMatches, Command, parser::ValueSource};

/// What of the subcommand that `matches` names was set, by a flag or a variable, to other than its
/// default.
pub(super) fn given(command: &Command, matches: &ArgMatches) -> String {
    let Some((name, matches)) = matches.subcommand() else { return String::new() };
    let Some(command) = command.find_subcommand(name) else { return String::new() };
    let shown = command.get_arguments().filter_map(|arg| setting(arg, matches));
    shown.collect::<Vec<_>>().join(" ")
}

fn setting(arg: &Arg, matches: &ArgMatches) -> Option<String> {
    // What is not to be printed by `--help` is not to be logged either.
    if arg.is_hide_set() || arg.is_hide_env_values_set() {
        return None;
    }
    let id = arg.get_id().as_str();
    let source = matches.try_contains_id(id).ok().and_then(|_| matches.value_source(id))?;
    if source == ValueSource::DefaultValue {
        return None;
    }
    let values = matches.get_raw(id)?.map(|value| value.to_string_lossy().into_owned());
    let values = values.collect::<Vec<_>>();
    let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
    if defaults.eq(values.iter().map(String::as_str)) {
        return None;
    }
    let flag = arg.get_long()?;
    if !arg.get_action().takes_values() {
        return Some(format!("--{flag}"));
    }
    Some(format!("--{flag}={}", values.join(",")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{super::Cli, given};

    fn of(arguments: &[&str]) -> String {
        let mut command = Cli::command();
        command.build();
        let matches = command.clone().try_get_matches_from(arguments).unwrap();
        given(&command, &matches)
    }

    #[test]
    fn only_what_differs_is_shown_and_no_secret() {
        assert_eq!(of(&["oncegate", "serve"]), "");
        let some = [
            "oncegate",
            "--log=debug",
            "serve",
            "--database-url=postgres://u:open-sesame@h/d",
            "--writers=4",
            "--max-hold=1h",
            "--insecure",
            "--listen=127.0.0.1:1",
            "--listen=[::1]:2",
        ];
        let shown = of(&some);
        for part in ["--log=debug", "--writers=4", "--insecure", "--listen=127.0.0.1:1,[::1]:2"] {
            assert!(shown.split(' ').any(|found| found == part), "{part}: {shown}");
        }
        assert!(!shown.contains("max-hold") && !shown.contains("open-sesame"), "{shown}");
    }
}
