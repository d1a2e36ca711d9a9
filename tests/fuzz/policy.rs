//! A policy, and the credentials that it accepts. All keys are fixed, so that the same seed
//! gives the same inputs.

use std::{path::Path, time::Duration, time::SystemTime};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use oncegate::auth::{Credentials, Policy, Unauthenticated, token::Digest};
use ring::{
    rsa::PublicKeyComponents as RsaPublicKeyComponents,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, RsaKeyPair, UnparsedPublicKey},
};
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde_json::{Value, json};

use crate::data;

pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
pub const SUBJECT: &str = "system:serviceaccount:bots:acme";
pub const SPIFFE: &str = "spiffe://prod/ns/bots/sa/acme";
pub const SEED: [u8; 32] = [7; 32];
const IAT: u64 = 1_800_000_000;
const JWKS: &str = "/jwks";

/// The token of the principal `a`.
pub fn token() -> String {
    format!("once_{}", "a".repeat(43))
}

pub fn digest() -> String {
    Digest::of(token().as_bytes()).to_hex()
}

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&SEED).expect("a key")
}

/// A file with every field.
pub fn file() -> String {
    format!(
        "[[principal]]\nname = 'a'\nrole = 'bot'\nteams = ['T1']\ntoken_sha256 = ['{}']\n\
         spiffe = ['{SPIFFE}', 'spiffe://prod/jobs/*']\nservice_account = ['bots/acme']\n\
         unix_uid = [7]\nrate = '2000/s'\nburst = 4000\nin_flight = 512\nwaiters = 256\n\
         [[principal]]\nname = 'b'\nrole = 'reader'\nteams = ['*']\nunix_uid = [8]\n\
         [jwt.cluster]\nissuer = '{ISSUER}'\naudience = 'oncegate'\njwks = '{JWKS}'\n",
        digest()
    )
}

/// The algorithms of keys, each of which is the id of its key as well.
pub const ALGORITHMS: [&str; 4] = ["RS256", "PS256", "ES256", "EdDSA"];

/// A key for each algorithm: those of `tests/data/jwt`, and the one that [`sign`] uses.
pub fn jwks() -> Value {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let rsa = PrivatePkcs8KeyDer::from_pem_slice(data::text("jwt/rsa.pem").as_bytes());
    let rsa = RsaKeyPair::from_pkcs8(rsa.expect("a key").secret_pkcs8_der()).expect("a key");
    let n = encode(&RsaPublicKeyComponents::<Vec<u8>>::from(rsa.public()).n);
    let ec = SubjectPublicKeyInfoDer::from_pem_slice(data::text("jwt/ec_public.pem").as_bytes());
    let ec = ec.expect("a key");
    // The point is at its end.
    let (rest, y) = ec.split_last_chunk::<32>().expect("a key");
    let (_, x) = rest.split_last_chunk::<32>().expect("a key");
    json!({ "keys": [
        { "kty": "RSA", "kid": "RS256", "use": "sig", "alg": "RS256", "n": n, "e": "AQAB" },
        { "kty": "RSA", "kid": "PS256", "use": "sig", "alg": "PS256", "n": n, "e": "AQAB" },
        { "kty": "EC", "kid": "ES256", "crv": "P-256", "x": encode(x), "y": encode(y) },
        { "kty": "OKP", "kid": "EdDSA", "crv": "Ed25519", "x": encode(pair().public_key().as_ref()) },
        { "kty": "RSA", "kid": "other", "use": "enc", "alg": "RSA-OAEP", "n": "AQAB", "e": "x" },
    ]})
}

pub fn parse(file: &[u8], jwks: &[u8]) -> anyhow::Result<Policy> {
    Policy::parse(file, &|_: &Path| Ok(jwks.to_vec()), None)
}

pub fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "aud": ["oncegate"],
        "sub": SUBJECT,
        "iat": IAT,
        "nbf": IAT,
        "exp": IAT + 3_600,
        "kubernetes.io": {
            "namespace": "bots",
            "pod": { "name": "acme-0", "uid": "2" },
            "serviceaccount": { "name": "acme", "uid": "3" },
        },
    })
}

/// A token of these texts, signed.
pub fn sign(header: &[u8], claims: &[u8]) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(pair().sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// Whether [`sign`] signed this token, with these claims, by other means than the server's.
pub fn is_genuine(token: &str) -> bool {
    let Some((signed, signature)) = token.rsplit_once('.') else { return false };
    let Some((_, claims)) = signed.split_once('.') else { return false };
    let (Ok(signature), Ok(claims)) =
        (URL_SAFE_NO_PAD.decode(signature), URL_SAFE_NO_PAD.decode(claims))
    else {
        return false;
    };
    let key = UnparsedPublicKey::new(&ED25519, pair().public_key().as_ref().to_vec());
    if key.verify(signed.as_bytes(), &signature).is_err() {
        return false;
    }
    // The server skips what it does not read: deep values, and text that is not UTF-8.
    let Ok(claims) = serde_json::from_slice::<Value>(&claims) else { return true };
    let is_for_us = claims["aud"] == "oncegate"
        || claims["aud"].as_array().is_some_and(|all| all.contains(&json!("oncegate")));
    let ends = claims["exp"].as_u64().is_some_and(|exp| exp > IAT - 60);
    let is_acme = claims["iss"] == ISSUER && claims["sub"] == SUBJECT;
    is_acme && is_for_us && ends
}

/// Who presents `credentials`, at the time of the tokens.
pub fn who(policy: &Policy, credentials: &Credentials<'_>) -> Result<String, Unauthenticated> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(IAT);
    Ok(policy.authenticate(credentials, now)?.principal.name.to_string())
}
