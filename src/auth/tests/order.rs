//! Several credentials at once, and uids.

use super::{certificate::with_uris, *};

fn mixed() -> Policy {
    policy(&two(
        &format!(
            "token_sha256 = ['{}']\nunix_uid = [1001, 0]\nspiffe = ['spiffe://prod/a']",
            digest('a')
        ),
        &format!(
            "token_sha256 = ['{}']\nunix_uid = [1002]\nspiffe = ['spiffe://prod/b']",
            digest('b')
        ),
    ))
}

/// `uri`, letter of the token, uid.
fn ask(
    policy: &Policy,
    uris: Option<&[&str]>,
    letter: Option<char>,
    uid: Option<u32>,
) -> Result<String, Unauthenticated> {
    let certificate = uris.map(with_uris);
    let header = letter.map(|letter| format!("Bearer {}", token(letter)));
    let values: Vec<&[u8]> = header.iter().map(String::as_bytes).collect();
    who(policy, &Credentials { certificate: certificate.as_ref(), authorization: &values, uid })
}

#[test]
fn credentials_that_agree_name_their_principal() {
    let policy = mixed();
    let a = Some(["spiffe://prod/a"].as_slice());
    for (uris, letter, uid) in [
        (a, None, None),
        (None, Some('a'), None),
        (None, None, Some(1001)),
        (a, Some('a'), Some(1001)),
        (a, None, Some(1001)),
        (a, Some('a'), None),
    ] {
        assert_eq!(ask(&policy, uris, letter, uid), Ok("a".into()), "{letter:?} {uid:?}");
    }
}

#[test]
fn credentials_of_two_principals_are_refused() {
    let policy = mixed();
    let a = Some(["spiffe://prod/a"].as_slice());
    for (uris, letter, uid) in [
        (a, Some('b'), None),
        (a, None, Some(1002)),
        (None, Some('b'), Some(1001)),
        (a, Some('a'), Some(1002)),
        (a, Some('b'), Some(1001)),
    ] {
        let answer = ask(&policy, uris, letter, uid);
        assert_eq!(answer, Err(Unauthenticated::Conflicting), "{letter:?} {uid:?}");
    }
}

#[test]
fn a_bad_token_spoils_every_other_credential() {
    let policy = mixed();
    let a = Some(["spiffe://prod/a"].as_slice());
    assert_eq!(ask(&policy, a, Some('x'), Some(1001)), Err(Unauthenticated::Unknown));
    assert_eq!(ask(&policy, None, Some('x'), Some(1001)), Err(Unauthenticated::Unknown));
    let certificate = with_uris(&["spiffe://prod/a"]);
    let malformed = Credentials {
        certificate: Some(&certificate),
        authorization: &[b"Basic eA==".as_slice()],
        uid: Some(1001),
    };
    assert_eq!(who(&policy, &malformed), Err(Unauthenticated::Malformed));
}

#[test]
fn an_unknown_certificate_or_uid_does_not_spoil_a_good_token() {
    let policy = mixed();
    for (uris, uid) in [
        (None, Some(4242)),
        (None, Some(65_534)),
        (Some(["spiffe://prod/unknown"].as_slice()), None),
        (Some([].as_slice()), Some(4242)),
    ] {
        assert_eq!(ask(&policy, uris, Some('a'), uid), Ok("a".into()), "{uris:?} {uid:?}");
        assert_eq!(ask(&policy, uris, None, uid), Err(Unauthenticated::Unknown));
    }
    // An ambiguous certificate does.
    for uris in [["spiffe://prod/a", "spiffe://prod/b"].as_slice(), &["spiffe://prod/../a"]] {
        assert_eq!(ask(&policy, Some(uris), Some('a'), None), Err(Unauthenticated::Malformed));
    }
}

#[test]
fn a_uid_is_exact_and_root_is_nobody_unless_listed() {
    let policy = mixed();
    assert_eq!(by_uid(&policy, 1002), Ok("b".into()));
    assert_eq!(by_uid(&policy, 0), Ok("a".into()));
    for uid in [1, 100, 1003, 10_011, 65_534, u32::MAX] {
        assert_eq!(by_uid(&policy, uid), Err(Unauthenticated::Unknown), "{uid}");
    }
    let without_root = self::policy(&two("unix_uid = [1]", "unix_uid = [2]"));
    assert_eq!(by_uid(&without_root, 0), Err(Unauthenticated::Unknown));
    assert_eq!(who(&without_root, &Credentials::default()), Err(Unauthenticated::Missing),);
}

#[test]
fn the_overflow_uid_is_refused_even_if_a_policy_has_it() {
    let mut policy = mixed();
    let a = std::sync::Arc::clone(&policy.principals["a"]);
    policy.uids.insert(65_534, a);
    assert_eq!(by_uid(&policy, 65_534), Err(Unauthenticated::Unknown));
}
