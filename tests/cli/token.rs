//! `oncegate token`: what it prints is what the server accepts.

use std::{collections::HashSet, path::Path, time::SystemTime};

use oncegate::auth::{Credentials, Policy};

use super::{oncegate, run};

/// Whom a policy with this line finds by this token.
fn found(line: &str, token: &str) -> Option<String> {
    let text = format!("[[principal]]\nname = 'a'\nrole = 'bot'\nteams = ['*']\n{line}\n");
    let no_files = |_: &Path| unreachable!();
    let policy = Policy::parse(text.as_bytes(), &no_files, None).unwrap();
    let header = format!("Bearer {token}");
    let credentials = Credentials { authorization: &[header.as_bytes()], ..Credentials::default() };
    let found = policy.authenticate(&credentials, SystemTime::UNIX_EPOCH);
    found.ok().map(|found| found.principal.name.to_string())
}

#[test]
fn a_new_token_is_accepted_with_the_line_that_is_printed() {
    let made = run(&mut oncegate(&["token", "new"]), "");
    assert_eq!((made.code, made.err.as_str()), (Some(0), ""));
    let lines: Vec<&str> = made.out.lines().collect();
    let [token, line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(found(line, token).as_deref(), Some("a"));
    assert_eq!(found(line, &format!("once_{}", "a".repeat(43))), None);

    let json = run(&mut oncegate(&["token", "new", "--output", "json"]), "").json(0);
    let line = format!("token_sha256 = [{}]", json["token_sha256"]);
    let other = json["token"].as_str().unwrap();
    assert_eq!(found(&line, other).as_deref(), Some("a"));
    assert_eq!(HashSet::from([*token, other]).len(), 2);
}
