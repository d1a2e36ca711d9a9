//! Values of the `authorization` header: bearer tokens and tokens of service accounts.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{FutureExt as _, future::BoxFuture};
use oncegate::auth::{Credentials, Policy};
use serde_json::{Value, json};

use crate::{chance::Chance, data, json, mutate::mutate, policy, target::Target};

/// An input is the value of the header.
pub struct Jwt {
    policy: Policy,
    corpus: Vec<Vec<u8>>,
}

impl Jwt {
    pub fn new() -> Self {
        let jwks = policy::jwks().to_string();
        let policy = policy::parse(policy::file().as_bytes(), jwks.as_bytes()).expect("a policy");
        let rsa = ["rs256", "ps256"].map(|name| data::text(&format!("jwt/{name}.jwt")));
        let own =
            policy::sign(header().to_string().as_bytes(), policy::claims().to_string().as_bytes());
        let tokens = [policy::token(), own].into_iter().chain(rsa);
        let corpus = tokens.map(|token| format!("Bearer {}", token.trim_end()).into_bytes());
        Self { policy, corpus: corpus.collect() }
    }

    fn check(&self, input: &[u8]) -> Result<(), String> {
        let credentials = Credentials { authorization: &[input], ..Credentials::default() };
        let Ok(name) = policy::who(&self.policy, &credentials) else { return Ok(()) };
        let text = String::from_utf8_lossy(input);
        let token = text.trim_end().rsplit(' ').next().unwrap_or_default();
        if name == "a" && (token == policy::token() || policy::is_genuine(token)) {
            return Ok(());
        }
        Err(format!("accepted as {name}"))
    }
}

fn header() -> Value {
    json!({ "alg": "EdDSA", "kid": "EdDSA" })
}

impl Target for Jwt {
    fn name(&self) -> &'static str {
        "jwt"
    }

    fn share(&self) -> u64 {
        15
    }

    fn input(&self, chance: &mut Chance) -> Vec<u8> {
        if chance.one_in(3) {
            let mut input = chance.pick(&self.corpus).clone();
            mutate(chance, &mut input, &self.corpus);
            return input;
        }
        let (mut head, mut claims) = (header(), policy::claims());
        let place = if chance.one_in(3) { &mut head } else { &mut claims };
        json::mutate(chance, place);
        if chance.one_in(8) {
            let algorithms = ["none", "HS256", "RS256", "PS256", "ES256", "eddsa"];
            head = json!({ "alg": *chance.pick(&algorithms), "kid": "EdDSA" });
        }
        let (mut head, mut claims) =
            (head.to_string().into_bytes(), claims.to_string().into_bytes());
        if chance.one_in(4) {
            mutate(chance, &mut claims, &[]);
        }
        if chance.one_in(8) {
            mutate(chance, &mut head, &[]);
        }
        // What the issuer has signed, or with a signature that is of something else.
        let token = if chance.one_in(2) {
            policy::sign(&head, &claims)
        } else {
            let genuine = String::from_utf8_lossy(&self.corpus[1]);
            let signature = genuine.rsplit('.').next().unwrap_or_default();
            let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
            format!("{}.{}.{signature}", encode(&head), encode(&claims))
        };
        format!("Bearer {token}").into_bytes()
    }

    fn take<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<(), String>> {
        async move { self.check(input) }.boxed()
    }
}
