//! The pages of `docs/reference` are generated from the code, so that they cannot drift.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

mod cli;
mod configuration;
mod errors;
mod limits;
mod metrics;

/// Writes the pages instead of comparing them.
const UPDATE: &str = "UPDATE_REFERENCE";
const UPDATE_COMMAND: &str = "UPDATE_REFERENCE=1 cargo test --locked --test suite reference::";

/// Makes the text of a page.
type Page = fn() -> String;

/// Each page: its file, its title, and what makes its text.
const PAGES: [(&str, &str, Page); 5] = [
    ("cli.md", "Command line", cli::page),
    ("configuration.md", "Configuration", configuration::page),
    ("errors.md", "Error reasons", errors::page),
    ("limits.md", "Limits", limits::page),
    ("metrics.md", "Metrics", metrics::page),
];

fn docs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs")
}

/// A row of a Markdown table.
fn row<C: AsRef<str>>(cells: impl IntoIterator<Item = C>) -> String {
    let cells = cells.into_iter().map(|cell| {
        let line = cell.as_ref().split_whitespace().collect::<Vec<_>>().join(" ");
        format!(" {} |", line.replace('|', "\\|").replace('<', "&lt;"))
    });
    format!("|{}\n", cells.collect::<String>().replace("  |", " |"))
}

/// The head of a Markdown table.
fn head<const N: usize>(titles: [&str; N]) -> String {
    format!("{}|{}\n", row(titles), "---|".repeat(N))
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "no configuration: chooses to write the pages")]
fn the_pages_are_those_of_the_code() {
    let update = env::var_os(UPDATE).is_some();
    for (file, title, page) in PAGES {
        let path = docs().join("reference").join(file);
        let note = format!("<!-- Generated. Change the code, then run: {UPDATE_COMMAND} -->");
        let text = format!("# {title}\n\n{note}\n\n{}", page());
        if update {
            fs::write(&path, &text).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        let differs = written.lines().zip(text.lines()).find(|(is, wanted)| is != wanted);
        assert!(written == text, "{file} differs at {differs:?}; run: {UPDATE_COMMAND}");
    }
}

#[test]
fn each_reason_is_explained_to_callers() {
    let calling = fs::read_to_string(docs().join("calling.md")).unwrap();
    let words: BTreeSet<_> = calling.split(|c: char| !c.is_ascii_uppercase() && c != '_').collect();
    let missing: Vec<_> =
        errors::reasons().into_iter().filter(|(name, _)| !words.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "docs/calling.md does not say what to do: {missing:?}");
}
