//! JWK sets that must not be taken.

use serde_json::{Value, json};

use super::signer::{Signer, encode};
use crate::auth::jwks::Keys;

fn error(set: &Value) -> String {
    format!("{:#}", Keys::parse(set.to_string().as_bytes()).map(|_| ()).unwrap_err())
}

fn rsa() -> Value {
    Signer::new("rsa.pem").rsa_jwk("RS256")
}

fn rsa_with(name: &str, value: Value) -> Value {
    let mut key = rsa();
    key[name] = value;
    json!({ "keys": [key] })
}

#[test]
fn a_key_that_is_weak_private_or_unknown_fails_the_set() {
    let size = |bytes: usize, first: u8| {
        let mut n = vec![0xff; bytes];
        n[0] = first;
        json!(encode(n))
    };
    for (name, value, wanted) in [
        ("n", size(2, 0xff), "keys[0]: n: must have 2048 to 4096 bits, has 16"),
        ("n", size(128, 0xff), "keys[0]: n: must have 2048 to 4096 bits, has 1024"),
        ("n", size(256, 0x7f), "keys[0]: n: must have 2048 to 4096 bits, has 2047"),
        ("n", size(513, 0x01), "keys[0]: n: must have 2048 to 4096 bits, has 4097"),
        ("n", size(257, 0x00), "keys[0]: n: must not begin with a zero byte"),
        ("n", json!(""), "keys[0]: n: must have 2048 to 4096 bits, has 0"),
        ("n", json!("AB"), "keys[0]: n: must be base64url"),
        ("n", json!("+/=="), "keys[0]: n: must be base64url"),
        ("n", json!(null), "keys[0]: n: must be base64url"),
        ("e", json!("Aw"), "keys[0]: e: must be AQAB"),
        ("e", json!("AQ"), "keys[0]: e: must be AQAB"),
        ("e", json!(null), "keys[0]: e: must be AQAB"),
        ("kid", json!(null), "keys[0]: kid: is required"),
        ("kid", json!(""), "keys[0]: kid: must be 1 to 256 bytes"),
        ("alg", json!("HS256"), "keys[0]: kty, crv and alg: must be"),
        ("alg", json!("none"), "keys[0]: kty, crv and alg: must be"),
        ("alg", json!("ES256"), "keys[0]: kty, crv and alg: must be"),
        ("alg", json!("RS512"), "keys[0]: kty, crv and alg: must be"),
        ("kty", json!("EC"), "keys[0]: kty, crv and alg: must be"),
        ("kty", json!("oct"), "keys[0]: kty, crv and alg: must be"),
        ("crv", json!("P-256"), "keys[0]: kty, crv and alg: must be"),
        ("use", json!("tls"), "keys[0]: use: must be sig"),
        ("d", json!("AA"), "keys[0]: is a private key or a shared secret"),
        ("k", json!("AA"), "keys[0]: is a private key or a shared secret"),
    ] {
        let error = error(&rsa_with(name, value.clone()));
        assert!(error.contains(wanted), "{name} = {value}: {error}");
    }
    for (crv, x) in [("P-384", 48), ("P-256", 31), ("P-256", 33)] {
        let key = json!({ "kty": "EC", "kid": "k", "crv": crv, "x": encode(vec![1; x]), "y": encode([1; 32]) });
        assert!(Keys::parse(json!({ "keys": [key] }).to_string().as_bytes()).is_err(), "{crv} {x}");
    }
}

#[test]
fn the_set_as_a_whole_is_checked() {
    let key = rsa();
    let many: Vec<Value> = (0..65)
        .map(|at| {
            let mut key = rsa();
            key["kid"] = json!(at.to_string());
            key
        })
        .collect();
    for (set, wanted) in [
        (json!({ "keys": [] }), "has no key that verifies signatures"),
        (json!({ "keys": [{ "kty": "RSA", "use": "enc" }] }), "has no key that verifies"),
        (json!({ "keys": [key, key] }), "keys[1]: kid: is given to two keys"),
        (json!({ "keys": many }), "must have at most 64 keys"),
        (json!({}), "line 1: is no JWK set in JSON"),
        (json!([key]), "line 1: is no JWK set in JSON"),
        (json!({ "keys": [1] }), "line 1: is no JWK set in JSON"),
        (key, "line 1: is no JWK set in JSON"),
    ] {
        let error = error(&set);
        assert!(error.contains(wanted), "{error}");
    }
    for text in ["", "{", "\u{feff}{}", "-----BEGIN PUBLIC KEY-----", &"[".repeat(100_000)] {
        assert!(Keys::parse(text.as_bytes()).is_err());
    }
    // A member that counts, twice.
    let twice = json!({ "keys": [rsa()] }).to_string().replacen('{', "{\"keys\":[],", 1);
    assert!(Keys::parse(twice.as_bytes()).is_err());
    let twice = json!({ "keys": [rsa()] }).to_string().replace("\"kty\"", "\"kid\":\"x\",\"kty\"");
    assert!(Keys::parse(twice.as_bytes()).is_err());
}

#[test]
fn an_error_holds_no_value_of_the_set() {
    let planted = "planted-secret-in-a-key-set";
    for name in ["kty", "kid", "alg", "use", "crv", "n", "e", "d", "k"] {
        for value in [json!(planted), json!([planted]), json!({ planted: planted })] {
            let text = rsa_with(name, value).to_string();
            let Err(error) = Keys::parse(text.as_bytes()) else {
                assert_eq!(name, "kid");
                continue;
            };
            let shown = format!("{error:#} {error:?}");
            assert!(!shown.contains(planted), "{name}: {shown}");
        }
    }
}
