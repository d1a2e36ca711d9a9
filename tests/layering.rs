//! Dependencies point one way; the libraries at the edges stay there.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::harness::files;

/// Each module at the crate's root, and the others that it may name.
const MAY_NAME: [(&str, &[&str]); 20] = [
    ("backoff", &[]),
    ("der", &[]),
    ("domain", &[]),
    ("rules", &["domain"]),
    ("auth", &["der", "domain"]),
    ("telemetry", &[]),
    ("platform", &["domain"]),
    ("config", &["domain", "telemetry"]),
    ("store", &["backoff", "domain", "rules", "telemetry"]),
    ("lane", &["backoff", "domain", "store", "telemetry"]),
    ("dedup", &["domain", "store", "lane", "telemetry"]),
    ("session", &["domain", "store", "lane", "telemetry"]),
    ("cleanup", &["domain", "store", "lane", "telemetry"]),
    ("turn", &["backoff", "domain", "store", "lane", "session", "telemetry"]),
    ("admin", &["domain", "store", "lane", "session", "telemetry"]),
    (
        "grpc",
        &[
            "domain",
            "auth",
            "platform",
            "store",
            "lane",
            "dedup",
            "session",
            "turn",
            "cleanup",
            "admin",
            "sockets",
            "telemetry",
        ],
    ),
    ("sockets", &["config", "der"]),
    (
        "server",
        &[
            "domain",
            "auth",
            "config",
            "store",
            "dedup",
            "session",
            "turn",
            "cleanup",
            "admin",
            "grpc",
            "sockets",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "auth",
            "backoff",
            "domain",
            "platform",
            "config",
            "store",
            "grpc",
            "server",
            "telemetry",
        ],
    ),
    ("main", &["cli"]),
];

/// Libraries, by how their names begin, and the only modules that may use them.
const WALLS: [(&str, &[&str]); 7] = [
    ("sqlx", &["store"]),
    ("hyper", &["server", "cli"]),
    ("oncegate_client", &["cli"]),
    ("tonic", &["grpc", "server", "cli"]),
    ("prost", &["grpc", "server", "cli"]),
    ("clap", &["config", "cli", "main"]),
    ("opentelemetry", &["telemetry", "server"]),
];

/// What values and rules have no use for: I/O, waiting, and the time.
const NOT_IN_DOMAIN: [&str; 10] =
    ["async", "await", "tokio", "fs", "io", "net", "env", "Instant", "SystemTime", "tracing"];
/// What deciding who calls has no use for: moments come in as values.
const NOT_IN_AUTH: [&str; 7] = ["async", "await", "tokio", "fs", "io", "net", "tracing"];
/// Teams that nobody checks: what reads requests must ask for them by the caller's scope.
const UNCHECKED: [&str; 2] = ["Team", "TeamFilter"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Mark(char),
    Open(Delimiter),
    Close,
}

/// The tokens of a source text, in one row. Comments are none of them, and
/// what is within quotation marks is no word.
fn tokens(source: &str) -> Vec<Token> {
    fn flatten(stream: TokenStream, row: &mut Vec<Token>) {
        for tree in stream {
            match tree {
                TokenTree::Ident(word) => row.push(Token::Word(word.to_string())),
                TokenTree::Punct(mark) => row.push(Token::Mark(mark.as_char())),
                TokenTree::Literal(_) => row.push(Token::Mark('"')),
                TokenTree::Group(group) => {
                    row.push(Token::Open(group.delimiter()));
                    flatten(group.stream(), row);
                    row.push(Token::Close);
                }
            }
        }
    }
    let mut row = Vec::new();
    flatten(source.parse().expect("source text"), &mut row);
    row
}

fn word(token: Option<&Token>) -> Option<&str> {
    match token {
        Some(Token::Word(word)) => Some(word),
        _ => None,
    }
}

/// What follows `row[at]` in a path; nothing where no `::` does.
fn after(row: &[Token], at: usize) -> Option<usize> {
    let colons = [Token::Mark(':'), Token::Mark(':')];
    (row.get(at + 1..at + 3)? == colons).then_some(at + 3)
}

/// The names that a path goes on with: one, or those of a `{…}` list.
fn heads(row: &[Token], at: usize) -> Vec<String> {
    if row.get(at) != Some(&Token::Open(Delimiter::Brace)) {
        return word(row.get(at)).map(str::to_owned).into_iter().collect();
    }
    let mut names = Vec::new();
    let mut depth = 0;
    for (index, token) in row.iter().enumerate().skip(at) {
        match token {
            Token::Open(_) => depth += 1,
            Token::Close if depth == 1 => break,
            Token::Close => depth -= 1,
            Token::Word(name) => {
                let before = &row[index - 1];
                if depth == 1 && matches!(before, Token::Open(_) | Token::Mark(',')) {
                    names.push(name.clone());
                }
            }
            Token::Mark(_) => {}
        }
    }
    names
}

/// The modules at the crate's root that `row` names; its own module lies
/// `depth` below the root.
fn named_modules(row: &[Token], mut depth: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut groups = Vec::new();
    let mut at = 0;
    while at < row.len() {
        match &row[at] {
            Token::Open(_) => {
                let inline = at >= 2 && word(row.get(at - 2)) == Some("mod");
                depth += usize::from(inline);
                groups.push(inline);
            }
            Token::Close => depth -= usize::from(groups.pop().unwrap_or(false)),
            Token::Word(name) if name == "crate" || name == "oncegate" => {
                if let Some(next) = after(row, at) {
                    names.extend(heads(row, next));
                }
            }
            Token::Word(name) if name == "super" => {
                let mut up = 1;
                while let Some(next) = after(row, at) {
                    at = next;
                    if word(row.get(at)) != Some("super") {
                        break;
                    }
                    up += 1;
                }
                if up >= depth {
                    names.extend(heads(row, at));
                }
                // A list is still to be walked.
                at -= usize::from(row.get(at) == Some(&Token::Open(Delimiter::Brace)));
            }
            Token::Word(_) | Token::Mark(_) => {}
        }
        at += 1;
    }
    names
}

/// What the file at `path`, below `src`, does that it may not.
fn breaches(path: &str, source: &str) -> Vec<String> {
    let place = path.trim_end_matches(".rs");
    let module = place.split('/').next().unwrap_or_default();
    let depth = if module == "main" || module == "lib" { 0 } else { place.split('/').count() };
    let row = tokens(source);
    let mut found = Vec::new();

    let allowed = MAY_NAME.iter().find(|(name, _)| *name == module).map(|(_, others)| *others);
    if allowed.is_none() && module != "lib" {
        found.push(format!("{path}: module {module} has no place in the order of modules"));
    }
    for name in named_modules(&row, depth) {
        if name != module && !allowed.unwrap_or_default().contains(&name.as_str()) {
            found.push(format!("{path}: {module} must not know {name}"));
        }
    }
    for (at, token) in row.iter().enumerate() {
        let Some(name) = word(Some(token)) else { continue };
        for (library, places) in WALLS {
            // A derive that makes an enum a flag's value says nothing of the command line.
            let derive = (module, name) == ("telemetry", "clap")
                && after(&row, at).and_then(|at| word(row.get(at))) == Some("ValueEnum");
            if name.starts_with(library) && !places.contains(&module) && !derive {
                found.push(format!("{path}: {library} is not for {module}"));
            }
        }
        if matches!(module, "domain" | "rules" | "platform") && NOT_IN_DOMAIN.contains(&name) {
            found.push(format!("{path}: {name} is not for values and rules"));
        }
        if module == "auth" && !place.starts_with("auth/tests") && NOT_IN_AUTH.contains(&name) {
            found.push(format!("{path}: {name} is not for deciding who calls"));
        }
        let stored = after(&row, at).and_then(|at| word(row.get(at))) == Some("stored");
        if matches!(module, "grpc" | "cli") && UNCHECKED.contains(&name) && stored {
            found.push(format!("{path}: {name}::stored takes a team that nobody has checked"));
        }
    }
    found
}

/// Every source file below `src`, with its path from there.
fn sources() -> Vec<(String, String)> {
    let texts = files::texts("src", "rs").into_iter();
    texts.map(|(path, text)| (path.trim_start_matches("src/").to_owned(), text)).collect()
}

#[test]
fn no_module_knows_what_it_must_not() {
    let files = sources();
    let found: Vec<String> =
        files.iter().flat_map(|(path, source)| breaches(path, source)).collect();
    assert!(found.is_empty(), "{found:#?}");
    // Each file that does use a library would be caught where it may not.
    for (path, elsewhere) in [
        ("store/postgres.rs", "lane.rs"),
        ("grpc/convert.rs", "session/convert.rs"),
        ("config.rs", "server.rs"),
        ("cleanup.rs", "domain/cleanup.rs"),
        ("server.rs", "store/server.rs"),
    ] {
        let (_, source) = files.iter().find(|(name, _)| name == path).expect(path);
        assert!(!breaches(elsewhere, source).is_empty(), "{path} at {elsewhere}");
    }
}

#[test]
fn a_breach_is_found_however_it_is_spelled() {
    for (path, source) in [
        ("lane.rs", "use sqlx::PgConnection;"),
        ("session/grant.rs", "fn f() { sqlx::query(\"\"); }"),
        ("store/postgres.rs", "use tonic::Status;"),
        ("session.rs", "#[derive(prost::Message)] struct S;"),
        ("dedup.rs", "use prost_types::Timestamp;"),
        ("server.rs", "mod tests { use clap::Parser as _; }"),
        ("telemetry.rs", "#[derive(clap::Args)] struct S;"),
        ("domain/key.rs", "use crate::store::StoreError;"),
        ("domain/slack.rs", "use crate::platform::Named;"),
        ("platform/slack.rs", "use crate::store::StoreError;"),
        ("domain.rs", "use super::store;"),
        ("domain/key.rs", "use super::super::lane::Lane;"),
        ("domain/key.rs", "mod tests { use super::super::super::{store::Age}; }"),
        ("domain/key.rs", "pub async fn f() {}"),
        ("platform/json.rs", "fn f() { tracing::info!(\"\"); }"),
        ("domain/key.rs", "fn f() { std::fs::read(\"\"); }"),
        ("domain/time.rs", "fn is_over(now: Instant) {}"),
        ("store.rs", "use crate::{domain::Id, lane::Lane};"),
        ("store.rs", "use crate::{domain::{Id, Ttl}, lane};"),
        ("store/sqlite/events.rs", "fn f(_: &crate::session::Sessions) {}"),
        ("lane.rs", "use crate::{dedup::Dedup};"),
        ("dedup.rs", "use crate::session::Sessions;"),
        ("cleanup.rs", "use crate::grpc::pb;"),
        ("grpc/idempotency.rs", "use crate::{lane::CallError, server::Server};"),
        ("server.rs", "use crate::cli::Cli;"),
        ("main.rs", "use oncegate::server::Server;"),
        ("auth/jwks.rs", "fn f() { std::fs::read(\"\"); }"),
        ("auth/token.rs", "pub async fn f() {}"),
        ("auth.rs", "use crate::sockets::PeerIdentity;"),
        ("auth/file.rs", "use super::super::config::ServeConfig;"),
        ("sockets/tls.rs", "use crate::auth::Policy;"),
        ("sockets.rs", "use crate::{config::Address, grpc::Connection};"),
        ("server/auth.rs", "use crate::lane::Lane;"),
        ("grpc/convert/key.rs", "fn f() { Team::stored(\"T\"); }"),
        ("grpc/admin.rs", "fn f() { crate::domain::TeamFilter::stored(None); }"),
        ("cli/forget.rs", "use crate::domain::Team; fn f() { Team::stored(\"T\"); }"),
        ("novelty.rs", "struct S;"),
    ] {
        assert_eq!(breaches(path, source).len(), 1, "{path}: {source}");
    }
}

#[test]
fn what_is_allowed_is_not_a_breach() {
    for (path, source) in [
        (
            "domain/key.rs",
            "// sqlx::query and async\n/// tonic, prost\nconst S: &str = \"clap::Args\";",
        ),
        ("domain/key.rs", "use super::{Id, time::Ttl}; mod tests { use super::super::Invalid; }"),
        ("store/postgres/handle.rs", "use super::super::{Clock, StoreError}; use sqlx::Row as _;"),
        ("session/ops.rs", "use crate::{domain::{Id, lane}, store::{Age}, session::queue};"),
        ("telemetry.rs", "#[derive(clap::ValueEnum)] enum E { A }"),
        ("cli/mark.rs", "use clap::Args; use tonic::Status; use crate::grpc::pb;"),
        ("cleanup.rs", "use crate::domain::TeamFilter; fn f() { TeamFilter::stored(None); }"),
        ("auth/usage.rs", "use std::time::Instant; use crate::domain::TeamScope;"),
        ("lib.rs", "pub mod cleanup; pub mod store;"),
    ] {
        assert_eq!(breaches(path, source), Vec::<String>::new(), "{path}: {source}");
    }
}
