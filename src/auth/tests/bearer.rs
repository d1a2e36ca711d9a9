//! Tokens, and the header that carries them.

use std::collections::HashSet;

use super::*;
use crate::auth::token::{self, MAX_BEARER_BYTES};

fn tokens() -> Policy {
    policy(&two(
        &format!("token_sha256 = ['{}', '{}']", digest('a'), digest('A').to_uppercase()),
        &format!("token_sha256 = ['{}']", digest('b')),
    ))
}

#[test]
fn a_token_names_its_principal_and_two_do_during_a_rotation() {
    let policy = tokens();
    assert_eq!(by_bearer(&policy, &token('a')), Ok("a".into()));
    assert_eq!(by_bearer(&policy, &token('A')), Ok("a".into()));
    assert_eq!(by_bearer(&policy, &token('b')), Ok("b".into()));
    assert_eq!(by_bearer(&policy, &token('c')), Err(Unauthenticated::Unknown));
    let after =
        self::policy(&two(&format!("token_sha256 = ['{}']", digest('A')), "unix_uid = [1]"));
    assert_eq!(by_bearer(&after, &token('a')), Err(Unauthenticated::Unknown));
    assert_eq!(by_bearer(&after, &token('A')), Ok("a".into()));
}

#[test]
fn a_header_is_one_bearer_token_exactly() {
    let policy = tokens();
    let good = format!("Bearer {}", token('a'));
    assert_eq!(by_header(&policy, &[]), Err(Unauthenticated::Missing));
    assert_eq!(by_header(&policy, &[good.as_bytes()]), Ok("a".into()));
    for values in [
        vec![good.as_bytes(), good.as_bytes()],
        vec![good.as_bytes(), b""],
        vec![b"".as_slice()],
        vec![b"Bearer".as_slice()],
        vec![b"Bearer ".as_slice()],
        vec![token('a').as_bytes()],
    ] {
        assert_eq!(by_header(&policy, &values), Err(Unauthenticated::Malformed), "{values:?}");
    }
    let a = token('a');
    for text in [
        format!("bearer {a}"),
        format!("BEARER {a}"),
        format!("Basic {a}"),
        format!("Bearer  {a}"),
        format!("Bearer {a} "),
        format!(" Bearer {a}"),
        format!("Bearer\t{a}"),
        format!("Bearer {a}\0"),
        format!("Bearer {a}\n"),
        format!("Bearer {a},Bearer {a}"),
        format!("Bearer {a}{a}"),
        format!("Bearer {}", &a[..a.len() - 1]),
        format!("Bearer {}", a.to_uppercase()),
        format!("Bearer {}\0", &a[..a.len() - 1]),
        format!("Bearer {} ", &a[..a.len() - 1]),
        format!("Bearer {}é", &a[..a.len() - 2]),
        format!("Bearer {}", &a[5..]),
        format!("Bearer {a}é"),
        format!("Bearer {}", "a".repeat(MAX_BEARER_BYTES + 1)),
        format!("Bearer {}", "a".repeat(1024 * 1024)),
    ] {
        let shown = &text[..text.len().min(60)];
        assert_eq!(
            by_header(&policy, &[text.as_bytes()]),
            Err(Unauthenticated::Malformed),
            "{shown}"
        );
    }
    assert_eq!(
        by_header(&policy, &[b"Bearer \xff\xfe".as_slice()]),
        Err(Unauthenticated::Malformed)
    );
}

#[test]
fn a_short_token_is_refused_even_if_the_file_has_its_digest() {
    let weak = Digest::of(b"once_secret").to_hex();
    let policy = policy(&two(&format!("token_sha256 = ['{weak}']"), "unix_uid = [1]"));
    assert_eq!(by_bearer(&policy, "once_secret"), Err(Unauthenticated::Malformed));
}

#[test]
fn new_tokens_are_256_random_bits_that_a_policy_accepts() {
    let made: HashSet<_> = (0..100).map(|_| token::generate().unwrap()).collect();
    assert_eq!(made.len(), 100);
    for token in made {
        let random = token.strip_prefix("once_").unwrap();
        assert_eq!(random.len(), 43);
        let digest = Digest::of(token.as_bytes()).to_hex();
        let policy = policy(&two(&format!("token_sha256 = ['{digest}']"), "unix_uid = [1]"));
        assert_eq!(by_bearer(&policy, &token), Ok("a".into()));
    }
}

/// What is looked up is the digest. It shares no more with the digest of the right token if 47 of
/// 48 bytes are right than if none is, so no comparison in the map can depend on how much is.
#[test]
fn a_nearly_right_token_is_no_nearer_to_the_right_digest() {
    let right = token('a');
    let wanted = Digest::of(right.as_bytes()).to_hex();
    let shared = |candidate: &str| {
        let hex = Digest::of(candidate.as_bytes()).to_hex();
        hex.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count()
    };
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZbcdefghijklmnopqrstuvwxyz0123456789-_";
    let policy = tokens();
    for last in alphabet.chars() {
        let near = format!("{}{last}", &right[..right.len() - 1]);
        let far = format!("once_{}", last.to_string().repeat(43));
        // 16^-5 each: one in ten thousand for all of them, and the same in each run.
        assert!(shared(&near) < 5 && shared(&far) < 5, "{near}");
        assert_eq!(by_bearer(&policy, &near), Err(Unauthenticated::Unknown));
    }
    assert_eq!(shared(&right), 64);
}

#[test]
fn nothing_that_is_printed_holds_a_credential() {
    let policy = tokens();
    let authenticated = policy
        .authenticate(
            &Credentials {
                authorization: &[format!("Bearer {}", token('a')).as_bytes()],
                ..Credentials::default()
            },
            now(),
        )
        .unwrap();
    let printed = format!("{policy:?} {authenticated:?} {:?}", Digest::of(token('a').as_bytes()));
    assert!(!printed.contains(&digest('a')[..16]) && !printed.contains(&token('a')), "{printed}");
    for refused in Unauthenticated::ALL {
        assert_eq!(refused.to_string(), "unauthenticated");
    }
}
