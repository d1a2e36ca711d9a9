//! Forged, foreign, stale and odd tokens of service accounts.

use ring::hmac;
use serde_json::{Value, json};

use super::{
    signer::{Alg, IAT, ISSUER, Signer, claims, claims_with, claims_without, encode},
    *,
};
use crate::auth::{jwt::LEEWAY, token::MAX_BEARER_BYTES};

use Unauthenticated::{Conflicting, Expired, Malformed, Unknown};

fn signer() -> Signer {
    Signer::new("rsa.pem")
}

/// What becomes of a token with these claims.
fn judged(claims: &str) -> Result<String, Unauthenticated> {
    let signer = signer();
    by_bearer(&signer.policy(), &signer.usual(Alg::EdDsa, claims))
}

fn judged_at(claims: &str, seconds: u64) -> Result<Option<SystemTime>, Unauthenticated> {
    let signer = signer();
    let header = format!("Bearer {}", signer.usual(Alg::EdDsa, claims));
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let credentials = Credentials { authorization: &[header.as_bytes()], ..Credentials::default() };
    Ok(signer.policy().authenticate(&credentials, at)?.expires)
}

#[test]
fn each_algorithm_is_accepted_with_its_own_key() {
    let signer = signer();
    let policy = signer.policy();
    let claims = claims().to_string();
    for alg in Alg::ALL {
        assert_eq!(by_bearer(&policy, &signer.usual(alg, &claims)), Ok("a".into()), "{alg:?}");
        for (kid, key) in Alg::ALL.map(|other| (other.name(), other)) {
            let header = json!({ "alg": alg.name(), "kid": kid }).to_string();
            let wanted = if key == alg { Ok("a".into()) } else { Err(Unknown) };
            // Signed as the header says, and as the key does.
            for signed in [alg, key] {
                let token = signer.token(signed, &header, &claims);
                assert_eq!(by_bearer(&policy, &token), wanted, "{alg:?} with the key {kid}");
            }
        }
    }
}

#[test]
fn tokens_that_openssl_signed_are_accepted() {
    let policy = signer().policy();
    for name in ["rs256.jwt", "ps256.jwt"] {
        let token = String::from_utf8(data(name)).unwrap();
        assert_eq!(by_bearer(&policy, token.trim_end()), Ok("a".into()), "{name}");
    }
}

#[test]
fn what_another_key_signed_or_what_was_changed_is_refused() {
    let (signer, thief) = (signer(), Signer::new("other_rsa.pem"));
    let policy = signer.policy();
    let claims = claims().to_string();
    for alg in Alg::ALL {
        assert_eq!(by_bearer(&policy, &thief.usual(alg, &claims)), Err(Unknown), "{alg:?}");
        let token = signer.usual(alg, &claims);
        let (body, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = body.split_once('.').unwrap();
        let admin = encode(claims.replace("acme", "other"));
        let changed = format!("{header}.{admin}.{signature}");
        assert_eq!(by_bearer(&policy, &changed), Err(Unknown), "{alg:?}");
        let zeros = format!("{body}.{}", encode(vec![0; 64]));
        assert_eq!(by_bearer(&policy, &zeros), Err(Unknown), "{alg:?}");
    }
    let der = signer.usual(Alg::Es256Der, &claims);
    assert_eq!(by_bearer(&policy, &der), Err(Unknown), "a signature as DER");
}

#[test]
fn alg_none_and_shared_secrets_are_refused() {
    let policy = signer().policy();
    let claims = encode(claims().to_string());
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let header = encode(json!({ "alg": none, "kid": "RS256" }).to_string());
        for signature in ["", "AA", "e30"] {
            let token = format!("{header}.{claims}.{signature}");
            assert_eq!(by_bearer(&policy, &token), Err(Malformed), "{none} {signature}");
        }
    }
    // The public key as the secret, in each form that a library might take it in.
    let pem = data("rsa_public.pem");
    let text = String::from_utf8(pem.clone()).unwrap();
    let jwk = signer().rsa_jwk("RS256");
    for secret in [pem, text.trim_end().into(), jwk.to_string().into(), jwk["n"].to_string().into()]
    {
        for alg in ["HS256", "RS256", "hs256"] {
            let header = encode(json!({ "alg": alg, "kid": "RS256" }).to_string());
            let signed = format!("{header}.{claims}");
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let token = format!("{signed}.{}", encode(hmac::sign(&key, signed.as_bytes())));
            let wanted = if alg == "RS256" { Unknown } else { Malformed };
            assert_eq!(by_bearer(&policy, &token), Err(wanted), "{alg}");
        }
    }
}

#[test]
fn a_header_brings_no_key_and_no_extension() {
    let signer = signer();
    let policy = signer.policy();
    let claims = claims().to_string();
    let with = |name: &str, value: Value| {
        let mut header = json!({ "alg": "EdDSA", "kid": "EdDSA" });
        header[name] = value;
        by_bearer(&policy, &signer.token(Alg::EdDsa, &header.to_string(), &claims))
    };
    assert_eq!(with("typ", json!("JWT")), Ok("a".into()));
    for (name, value) in [
        ("jku", json!("https://evil.example/jwks")),
        ("x5u", json!("https://evil.example/cert")),
        ("jwk", signer.rsa_jwk("RS256")),
        ("x5c", json!(["AA"])),
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
        ("cty", json!("JWT")),
        ("typ", json!("at+jwt")),
        ("typ", json!(1)),
        ("kid", json!(null)),
        ("kid", json!(["EdDSA"])),
        ("kid", json!("k".repeat(257))),
        ("alg", json!("ES384")),
        ("alg", json!(["EdDSA"])),
    ] {
        assert_eq!(with(name, value.clone()), Err(Malformed), "{name} {value}");
    }
    for kid in ["", "edDSA", "../../dev/null", "/dev/null", "EdDSA\0", "' OR 1=1", "other"] {
        assert_eq!(with("kid", json!(kid)), Err(Unknown), "{kid}");
    }
    for header in [
        r#"{"alg":"EdDSA"}"#,
        r#"{"kid":"EdDSA"}"#,
        r#"{"alg":"EdDSA","kid":"EdDSA","alg":"EdDSA"}"#,
        r#"{"alg":"EdDSA","kid":"EdDSA","kid":"EdDSA"}"#,
        r#"["EdDSA","EdDSA",null]"#,
        r#"{"alg":"EdDSA","kid":"EdDSA"} "x""#,
        r#""EdDSA""#,
        "null",
        "{",
    ] {
        let token = signer.token(Alg::EdDsa, header, &claims);
        assert_eq!(by_bearer(&policy, &token), Err(Malformed), "{header}");
    }
}

#[test]
fn a_token_is_three_parts_of_canonical_base64url() {
    let signer = signer();
    let policy = signer.policy();
    let good = signer.usual(Alg::EdDsa, &claims().to_string());
    let parts: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else { panic!() };
    // The last letter of 64 bytes in base64url has four bits that must be zero.
    let last = signature.chars().last().unwrap();
    let next = char::from(u8::try_from(last).unwrap() + 1);
    let loose = format!("{}{next}", &signature[..signature.len() - 1]);
    assert_ne!(&loose, signature);
    for (what, token) in [
        ("one part", (*header).to_owned()),
        ("two parts", format!("{header}.{claims}")),
        ("four parts", format!("{good}.{signature}")),
        ("four parts, the last empty", format!("{good}.")),
        ("an empty part before", format!(".{good}")),
        ("an empty signature", format!("{header}.{claims}.")),
        ("an empty header", format!(".{claims}.{signature}")),
        ("empty claims", format!("{header}..{signature}")),
        ("points only", "..".to_owned()),
        ("padding", format!("{good}==")),
        ("bits behind the last byte", format!("{header}.{claims}.{loose}")),
        ("a letter of base64", format!("{header}.{claims}.+{}", &signature[1..])),
        ("too long", format!("{header}.{}.{signature}", "A".repeat(MAX_BEARER_BYTES))),
    ] {
        assert_eq!(by_bearer(&policy, &token), Err(Malformed), "{what}");
    }
    assert_eq!(by_bearer(&policy, &good), Ok("a".into()));
}

#[test]
fn a_token_of_another_issuer_or_for_another_audience_is_refused() {
    for issuer in [
        format!("{ISSUER}/"),
        ISSUER.to_uppercase(),
        ISSUER.replace("https", "http"),
        format!("{ISSUER}.evil"),
        String::new(),
    ] {
        assert_eq!(judged(&claims_with("iss", json!(issuer))), Err(Unknown), "{issuer}");
    }
    for audience in [
        json!(ISSUER),
        json!([ISSUER]),
        json!([]),
        json!(""),
        json!("Oncegate"),
        json!("oncegate2"),
        json!(["once", "gate"]),
        json!(vec!["oncegate"; 17]),
    ] {
        assert_eq!(judged(&claims_with("aud", audience.clone())), Err(Unknown), "{audience}");
    }
    for audience in [json!("oncegate"), json!(["oncegate"]), json!([ISSUER, "oncegate"])] {
        assert_eq!(judged(&claims_with("aud", audience.clone())), Ok("a".into()), "{audience}");
    }
    for audience in [json!(null), json!(1), json!({"oncegate": 1}), json!([["oncegate"]])] {
        assert_eq!(judged(&claims_with("aud", audience.clone())), Err(Malformed), "{audience}");
    }
}

#[test]
fn a_token_is_accepted_from_its_first_to_its_last_second() {
    let claims = claims().to_string();
    let leeway = LEEWAY.as_secs();
    let (first, last) = (IAT - leeway, IAT + 3_600 + leeway);
    assert_eq!(judged_at(&claims, first - 1), Err(Unknown));
    let until = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(last));
    assert_eq!(judged_at(&claims, first), Ok(until));
    assert_eq!(judged_at(&claims, last - 1), Ok(until));
    assert_eq!(judged_at(&claims, last), Err(Expired));
    assert_eq!(judged_at(&claims, last + 1_000_000), Err(Expired));
    assert_eq!(judged_at(&claims, 0), Err(Unknown));
    assert_eq!(judged_at(&claims_with("nbf", json!(IAT + 61)), IAT), Err(Unknown));
    assert!(judged_at(&claims_with("nbf", json!(IAT + 60)), IAT).is_ok());
    assert_eq!(judged_at(&claims_without("nbf"), first - 1), Err(Unknown));
    assert!(judged_at(&claims_without("nbf"), first).is_ok());
}

#[test]
fn times_are_whole_and_possible_and_an_hour_at_most() {
    for name in ["iat", "exp"] {
        assert_eq!(judged(&claims_without(name)), Err(Malformed), "{name}");
    }
    for name in ["iat", "exp", "nbf"] {
        let odd = [
            "-1",
            "1.8e9",
            "1e300",
            "-1e300",
            "\"1800000000\"",
            "[]",
            "true",
            "18446744073709551615",
            "18446744073709551616",
            "253402300800",
        ];
        for value in odd {
            // As text: a parsed number might lose its form.
            let claims = claims_with(name, json!("?")).replace("\"?\"", value);
            assert_eq!(judged(&claims), Err(Malformed), "{name} = {value}");
        }
    }
    assert_eq!(judged(&claims_with("exp", json!(null))), Err(Malformed));
    assert_eq!(judged(&claims_with("exp", json!(IAT + 3_601))), Err(Malformed));
    assert_eq!(judged(&claims_with("exp", json!(IAT - 1))), Err(Malformed));
    assert_eq!(judged(&claims_with("iat", json!(IAT - 1))), Err(Malformed));
    assert_eq!(judged(&claims_with("iat", json!(0))), Err(Malformed));
}

#[test]
fn subject_and_claims_of_kubernetes_agree() {
    for subject in [
        "system:serviceaccount:bots:other",
        "system:serviceaccount:evil:acme",
        "system:serviceaccount:bots:acme:x",
        "system:serviceaccount:bots",
        "system:serviceaccount:bots/acme",
        "system:node:bots:acme",
        "bots/acme",
        "",
    ] {
        assert_eq!(judged(&claims_with("sub", json!(subject))), Err(Malformed), "{subject}");
    }
    for name in ["sub", "kubernetes.io", "iss", "aud"] {
        assert_eq!(judged(&claims_without(name)), Err(Malformed), "{name}");
    }
    let other = |namespace: &str, name: &str| {
        let mut claims = claims();
        claims["sub"] = json!(format!("system:serviceaccount:{namespace}:{name}"));
        claims["kubernetes.io"] =
            json!({ "namespace": namespace, "serviceaccount": { "name": name } });
        judged(&claims.to_string())
    };
    assert_eq!(other("bots", "acme"), Ok("a".into()));
    assert_eq!(other("bots", "other"), Ok("b".into()));
    for (namespace, name) in [
        ("bots", "acme2"),
        ("bots2", "acme"),
        ("bots", "Acme"),
        ("bots:acme", ""),
        ("", "bots:acme"),
        ("bots/acme", "x"),
    ] {
        assert_eq!(other(namespace, name), Err(Unknown), "{namespace} {name}");
    }
}

#[test]
fn a_claim_that_is_given_twice_is_refused() {
    let claims = claims().to_string();
    for double in [
        r#""sub":"system:serviceaccount:bots:acme","#,
        r#""aud":["oncegate"],"#,
        r#""exp":1800003600,"#,
        r#""nbf":1800000000,"#,
        r#""kubernetes.io":{"namespace":"bots","serviceaccount":{"name":"acme"}},"#,
    ] {
        assert_eq!(judged(&claims.replacen('{', &format!("{{{double}"), 1)), Err(Malformed));
    }
    let nested = r#""kubernetes.io":{"namespace":"bots","#;
    assert!(claims.contains(nested));
    let twice = claims.replace(nested, &format!(r#"{nested}"namespace":"bots","#));
    assert_eq!(judged(&twice), Err(Malformed));
    assert_eq!(judged(&"[".repeat(9_000)), Err(Malformed));
}

#[test]
fn two_issuers_vouch_for_their_own_accounts_only() {
    let (first, second) = (signer(), Signer::new("other_rsa.pem"));
    let other = "https://other.example";
    let text = |a: &str, b: &str| {
        format!(
            "{}[jwt.one]\nissuer = '{ISSUER}'\naudience = 'oncegate'\njwks = '/one'\n\
             [jwt.two]\nissuer = '{other}'\naudience = 'oncegate'\njwks = '/two'\n",
            two(&format!("service_account = ['{a}']"), &format!("service_account = ['{b}']"))
        )
    };
    let files = |path: &Path| {
        let signer = if path == Path::new("/one") { &first } else { &second };
        Ok(signer.jwks().to_string().into_bytes())
    };
    let parse = |a: &str, b: &str| Policy::parse(text(a, b).as_bytes(), &files, None);
    let policy = parse("one:bots/acme", "two:bots/acme").unwrap();
    let theirs = claims_with("iss", json!(other));
    assert_eq!(by_bearer(&policy, &first.usual(Alg::Rs256, &claims().to_string())), Ok("a".into()));
    assert_eq!(by_bearer(&policy, &second.usual(Alg::Rs256, &theirs)), Ok("b".into()));
    // Neither signs for the other.
    assert_eq!(by_bearer(&policy, &first.usual(Alg::Rs256, &theirs)), Err(Unknown));
    assert_eq!(by_bearer(&policy, &second.usual(Alg::Rs256, &claims().to_string())), Err(Unknown));
    for (a, b, wanted) in [
        ("bots/acme", "two:bots/acme", "principal a: service_account[0]: must be ISSUER:"),
        ("one:bots/acme", "three:bots/acme", "principal b: service_account[0]: names no [jwt"),
        ("one:bots/acme", "one:bots/acme", "principal b: service_account: overlaps with that of"),
    ] {
        let error = format!("{:#}", parse(a, b).unwrap_err());
        assert!(error.contains(wanted), "{error}");
    }
    let paths = Policy::files(text("one:x/y", "two:x/y").as_bytes()).unwrap();
    assert_eq!(paths, [Path::new("/one"), Path::new("/two")]);
    let same = text("one:x/y", "two:x/y").replace(other, ISSUER);
    let error = Policy::parse(same.as_bytes(), &files, None).unwrap_err();
    assert_eq!(error.to_string(), "jwt.one and jwt.two: have the same issuer");
}

#[test]
fn a_token_and_another_credential_must_agree() {
    let signer = signer();
    let policy = signer.policy();
    let header = format!("Bearer {}", signer.usual(Alg::EdDsa, &claims().to_string()));
    let mut with_uid = signer.policy();
    with_uid.uids.insert(1, policy.principals["b"].clone());
    let both =
        Credentials { authorization: &[header.as_bytes()], uid: Some(1), ..Credentials::default() };
    assert_eq!(who(&with_uid, &both), Err(Conflicting));
    assert_eq!(who(&policy, &both), Ok("a".into()));
}
