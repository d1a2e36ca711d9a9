//! The file: each mistake is an error that names the place and no value.

use super::{
    signer::{Alg, ISSUER, Signer, claims},
    *,
};
use crate::{
    auth::{PrincipalLimits, Rate, Role},
    domain::TeamScope,
};

fn error(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => format!("{error:#}"),
    }
}

/// The error of a file with one principal, whose line `field` is `line` (or is left out).
fn error_with(field: &str, line: &str) -> String {
    let lines = [("name", "name = 'a'"), ("role", "role = 'bot'"), ("teams", "teams = ['T1']")];
    let mut text = "[[principal]]\n".to_owned();
    for (name, usual) in lines.into_iter().chain([("unix_uid", "unix_uid = [1]")]) {
        text.push_str(if name == field { line } else { usual });
        text.push('\n');
    }
    if !text.contains(line) {
        text.push_str(line);
    }
    error(&text)
}

#[test]
fn every_field_is_read() {
    let text = two(
        &format!(
            "token_sha256 = ['{}']\nrate = '2000/s'\nburst = 4000\nin_flight = 512\nwaiters = 256",
            digest('a')
        ),
        "unix_uid = [7]\nrate = '5/s'",
    );
    let policy = policy(&text);
    let principals: Vec<_> = policy.principals().collect();
    let [a, b] = principals.as_slice() else { panic!() };
    assert_eq!((&*a.name, a.role), ("a", Role::Bot));
    assert_eq!(a.teams, TeamScope::Only(["T1".to_owned()].into()));
    let rate = Some(Rate { per_second: 2_000, burst: 4_000 });
    assert_eq!(a.limits, PrincipalLimits { rate, in_flight: Some(512), waiters: Some(256) });
    assert_eq!((&*b.name, b.role, &b.teams), ("b", Role::Reader, &TeamScope::All));
    assert_eq!(b.limits.rate, Some(Rate { per_second: 5, burst: 5 }));
    assert_eq!((b.limits.in_flight, b.limits.waiters), (None, None));
    let probe = self::policy("[[principal]]\nname = 'p'\nrole = 'probe'\nunix_uid = [1]");
    assert_eq!(probe.principals().next().unwrap().teams, TeamScope::Only([].into()));
}

#[test]
fn each_mistake_names_its_principal_and_field() {
    let many = format!("token_sha256 = [{}]", "'x',".repeat(65));
    for (field, line, wanted) in [
        ("name", "", "principal number 1: name: is required"),
        ("name", "name = 5", "principal number 1: name: must be a string"),
        ("name", "name = ''", "principal number 1: name: must be 1 to 64"),
        ("name", "name = 'a b'", "principal number 1: name: must be 1 to 64"),
        ("name", "name = 'a\"b'", "principal number 1: name: must be 1 to 64"),
        ("name", "name = 'é'", "principal number 1: name: must be 1 to 64"),
        ("name", "name = 'anonymous'", "and not anonymous or other"),
        ("role", "", "principal a: role: is required"),
        ("role", "role = 'root'", "principal a: role: must be one of probe, reader, bot, admin"),
        ("role", "role = 'Bot'", "principal a: role: must be one of"),
        ("teams", "", "principal a: teams: is required"),
        ("teams", "teams = []", "principal a: teams: must name a team"),
        ("teams", "teams = 'T1'", "principal a: teams: must be an array of strings"),
        ("teams", "teams = ['T1', 2]", "principal a: teams: must be an array of strings"),
        ("teams", "teams = ['T1', '*']", "principal a: teams: must be [\"*\"], or names"),
        ("teams", "teams = ['*', '*']", "principal a: teams: must be [\"*\"], or names"),
        ("teams", "teams = ['T1', 'T1']", "principal a: teams[1]: is given twice"),
        ("teams", "teams = ['T1', '']", "principal a: teams[1]: must be 1 to 512 bytes"),
        ("teams", "teams = [\"T\\n\"]", "principal a: teams[0]: must be 1 to 512 bytes"),
        ("unix_uid", "", "principal a: needs a credential"),
        ("unix_uid", "unix_uid = []", "principal a: needs a credential"),
        ("unix_uid", "unix_uid = 1", "principal a: unix_uid: must be an array of integers"),
        ("unix_uid", "unix_uid = [-1]", "principal a: unix_uid[0]: must be a uid"),
        ("unix_uid", "unix_uid = [4294967295]", "principal a: unix_uid[0]: must be a uid"),
        ("unix_uid", "unix_uid = [1, 65534]", "principal a: unix_uid[1]: must not be 65534"),
        ("unix_uid", "unix_uid = [1, 1]", "principal a: unix_uid: has an entry twice"),
        ("token_sha256", "token_sha256 = ['5e88']", "principal a: token_sha256[0]: must be the 64"),
        ("token_sha256", &many, "principal a: token_sha256: must have at most 64 entries"),
        ("spiffe", "spiffe = ['a']", "principal a: spiffe[0]: must be spiffe://"),
        ("service_account", "service_account = ['a']", "a: service_account[0]: must be NAMESPACE"),
        ("service_account", "service_account = ['a/b/c']", "a: service_account[0]: must be"),
        ("service_account", "service_account = ['*/b']", "a: service_account[0]: must be"),
        ("service_account", "service_account = ['A/b']", "a: service_account[0]: must be"),
        ("service_account", "service_account = ['a/b']", "service_account[0]: needs a [jwt.NAME]"),
        ("rate", "rate = 5", "principal a: rate: must be a string"),
        ("rate", "rate = '5'", "principal a: rate: must be \"N/s\""),
        ("rate", "rate = '0/s'", "principal a: rate: must be \"N/s\""),
        ("rate", "rate = '-1/s'", "principal a: rate: must be \"N/s\""),
        ("rate", "rate = '+1/s'", "principal a: rate: must be \"N/s\""),
        ("rate", "rate = '1000001/s'", "principal a: rate: must be \"N/s\""),
        ("burst", "burst = 5", "principal a: burst: needs a rate"),
        ("burst", "rate = '5/s'\nburst = 0", "principal a: burst: must be an integer from 1"),
        ("in_flight", "in_flight = 0", "principal a: in_flight: must be an integer from 1"),
        ("in_flight", "in_flight = 1.5", "principal a: in_flight: must be an integer from 1"),
        ("waiters", "waiters = -1", "principal a: waiters: must be an integer from 0"),
        ("colour", "colour = 1", "principal a: unknown field colour; the fields are name, role"),
        ("role", "role = 'bot'\nrole = 'bot'", "line 4: a field is given twice"),
        ("name", "name = ", "line 2: the text is not valid TOML"),
    ] {
        let error = error_with(field, line);
        assert!(error.contains(wanted), "{line:?}: {error}");
    }
}

#[test]
fn the_file_as_a_whole_is_checked() {
    let jwt = "[jwt.k]\nissuer = 'i'\naudience = 'o'\njwks = '/k'\n";
    let one = "[[principal]]\nname = 'a'\nrole = 'bot'\nteams = ['*']\nunix_uid = [1]\n";
    for (text, wanted) in [
        (String::new(), "the file has no [[principal]]"),
        (jwt.to_owned(), "the file has no [[principal]]"),
        (format!("{one}{one}"), "principal a: name: is given to two principals"),
        ("principal = 1".to_owned(), "principal: must be an array of tables"),
        ("[principal]\nname = 'a'".to_owned(), "principal: must be an array of tables"),
        (format!("more = 1\n{one}"), "the file: unknown field more; the fields are principal, jwt"),
        (format!("jwt = 1\n{one}"), "jwt: must be tables"),
        (format!("{one}[jwt]\nissuer = 'i'"), "jwt: must be tables"),
        (format!("{one}[jwt.'a b']\nissuer = 'i'"), "jwt: a name must be"),
        (format!("{one}[jwt.k]\naudience = 'o'\njwks = '/k'"), "jwt.k: issuer: is required"),
        (format!("{one}[jwt.k]\nissuer = 'i'\njwks = '/k'"), "jwt.k: audience: is required"),
        (format!("{one}{}", jwt.replace("'o'", "''")), "jwt.k: audience: must be 1 to 1024"),
        (format!("{one}[jwt.k]\nissuer = 'i'\naudience = 'o'"), "jwt.k: jwks: is required"),
        (format!("{one}{}", jwt.replace("'/k'", "'k'")), "jwt.k: jwks: must be an absolute path"),
        (format!("{one}{jwt}leeway = 1"), "jwt.k: unknown field leeway"),
        (
            two("unix_uid = [7]", "unix_uid = [7]"),
            "principal b: unix_uid: overlaps with that of principal a",
        ),
        (
            two(
                &format!("token_sha256 = ['{}']", digest('a')),
                &format!("token_sha256 = ['{}']", digest('a').to_uppercase()),
            ),
            "principal b: token_sha256: overlaps with that of principal a",
        ),
    ] {
        let error = error(&text);
        assert!(error.contains(wanted), "{text}\n{error}");
    }
    let bytes = Policy::parse(b"\xff", &no_files, None).unwrap_err();
    assert_eq!(bytes.to_string(), "the file must be UTF-8");
}

#[test]
fn an_issuer_without_a_good_key_set_has_its_former_keys_or_none() {
    let signer = Signer::new("rsa.pem");
    let pod = signer.usual(Alg::EdDsa, &claims().to_string());
    let (text, good) = (signer.file(), signer.jwks().to_string());
    let read = |jwks: &str, previous: &Policy| {
        Policy::parse(text.as_bytes(), &|_| Ok(jwks.into()), Some(previous)).unwrap()
    };
    let stale = ["jwt.cluster: jwks: line 1: is no JWK set in JSON".to_owned()];
    // A new one has none, also when the file is read again.
    let before = policy(&two("unix_uid = [1]", "unix_uid = [2]"));
    let first = read("{", &before);
    let again = read("{", &first);
    for policy in [&first, &again] {
        assert_eq!(policy.stale(), stale);
        assert_eq!(by_bearer(policy, &pod), Err(Unauthenticated::Unknown));
    }
    // What else the file says is in force.
    assert_eq!(by_uid(&before, 1), Ok("a".into()));
    assert_eq!(by_uid(&first, 1), Err(Unauthenticated::Unknown));
    let better = read(&good, &again);
    assert!(better.stale().is_empty());
    assert_eq!(by_bearer(&better, &pod), Ok("a".into()));
    // Now there are former keys.
    let kept = read("{", &better);
    assert_eq!(kept.stale(), stale);
    assert_eq!(by_bearer(&kept, &pod), Ok("a".into()));
    // Not those of another issuer that took its name.
    let text = text.replace(ISSUER, "https://other.test");
    let other = Policy::parse(text.as_bytes(), &|_| Ok("{".into()), Some(&better)).unwrap();
    assert_eq!(other.stale(), stale);
    assert_eq!(by_bearer(&other, &pod), Err(Unauthenticated::Unknown));
}

#[test]
fn no_spiffe_id_is_of_two_principals() {
    for (a, b) in [
        ("spiffe://prod/x", "spiffe://prod/x"),
        ("spiffe://prod/x/*", "spiffe://prod/x/*"),
        ("spiffe://prod/x/y", "spiffe://prod/x/*"),
        ("spiffe://prod/x/*", "spiffe://prod/x/y/z"),
        ("spiffe://prod/*", "spiffe://prod/x/*"),
        ("spiffe://prod/x/*", "spiffe://prod/*"),
    ] {
        let error = error(&two(&format!("spiffe = ['{a}']"), &format!("spiffe = ['{b}']")));
        assert!(
            error.contains("principal b: spiffe: overlaps with that of principal a"),
            "{error}"
        );
    }
    policy(&two("spiffe = ['spiffe://prod/x']", "spiffe = ['spiffe://prod/x/*']"));
    policy(&two(
        "spiffe = ['spiffe://prod/x', 'spiffe://prod/*']",
        "spiffe = ['spiffe://prod2/x']",
    ));
}

/// A secret where it does not belong is in no error.
#[test]
fn an_error_never_holds_a_value() {
    let (secret, hash) = (token('s'), digest('s'));
    for planted in [&secret, &hash] {
        for text in [
            planted.clone(),
            format!("{planted} = 1"),
            format!("[{planted}]"),
            format!("[jwt.{planted}{planted}]\nissuer = 'i'"),
            format!("principal = '{planted}'"),
            format!("[[principal]]\n{planted} = 1"),
            format!("[[principal]]\nname = '{planted}\n"),
            format!("[[principal]]\nname = '{planted}-{planted}'"),
            format!("[[principal]]\nname = 'a'\nrole = '{planted}'"),
            format!("[[principal]]\nname = 'a'\nrole = {planted}"),
            two(&format!("token_sha256 = '{planted}'"), ""),
            two(&format!("token_sha256 = ['{planted}x']"), ""),
            two(&format!("token_sha256 = ['{hash}', '{planted}', '{planted}']"), ""),
            two(&format!("unix_uid = ['{planted}']"), ""),
            two(&format!("spiffe = ['{planted}']"), ""),
            two(&format!("service_account = ['{planted}']"), ""),
            two(&format!("unix_uid = [1]\nrate = '{planted}'"), ""),
            two(&format!("unix_uid = [1]\nburst = '{planted}'"), ""),
            two(&format!("unix_uid = [1]\n'{planted}' = 1"), ""),
            two(&format!("unix_uid = [1]\n'{planted}' = 1\n'{planted}' = 1"), ""),
        ] {
            let error = parse(&text).map(|_| ()).unwrap_err();
            let shown = format!("{error:#} {error:?}");
            assert!(!shown.contains(planted.as_str()), "{text}\n{shown}");
            assert!(!shown.contains(&planted[..40]), "{text}\n{shown}");
        }
    }
}

#[test]
fn deep_or_odd_files_are_errors() {
    for text in [
        "[".repeat(100_000),
        format!("principal = {}", "[".repeat(100_000)),
        format!("a = {}{}", "{a = ".repeat(10_000), "}".repeat(10_000)),
        format!("{} = 1", "a.".repeat(100_000)),
        "\0".to_owned(),
        "\u{feff}[[principal]]".to_owned(),
    ] {
        assert!(parse(&text).is_err());
    }
}

#[test]
fn usage_is_kept_over_a_reload_under_the_same_name() {
    let first = policy(&two("unix_uid = [1]", "unix_uid = [2]"));
    let a = first.principals().next().unwrap();
    let place = a.begin_wait().unwrap();
    let text = two("unix_uid = [3]", "unix_uid = [2]").replace("'b'", "'c'");
    let second = Policy::parse(text.as_bytes(), &no_files, Some(&first)).unwrap();
    let after: Vec<_> = second.principals().map(|it| (&*it.name, it.usage.counts())).collect();
    assert_eq!(after, [("a", (0, 1)), ("c", (0, 0))]);
    drop(place);
    assert_eq!(second.principals().next().unwrap().usage.counts(), (0, 0));
    assert_eq!(by_uid(&second, 1), Err(Unauthenticated::Unknown));
    assert_eq!(by_uid(&second, 3), Ok("a".into()));
}
