//! Values of the `authorization` header: bearer tokens and tokens of service accounts.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{FutureExt as _, future::BoxFuture};
use oncegate::auth::{Credentials, Policy, Unauthenticated};
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
        let own = policy::sign(
            header("EdDSA", "EdDSA").to_string().as_bytes(),
            policy::claims().to_string().as_bytes(),
        );
        let others = ["rs256", "ps256", "es256"].map(|name| data::text(&format!("jwt/{name}.jwt")));
        let tokens = [policy::token(), own].into_iter().chain(others);
        let corpus = tokens.map(|token| format!("Bearer {}", token.trim_end()).into_bytes());
        let target = Self { policy, corpus: corpus.collect() };
        for seed in &target.corpus {
            // Otherwise its mutations end at the look-up of the key.
            let who = target.who(seed);
            assert_eq!(who.as_deref(), Ok("a"), "{}", String::from_utf8_lossy(seed));
        }
        target
    }

    fn who(&self, input: &[u8]) -> Result<String, Unauthenticated> {
        let credentials = Credentials { authorization: &[input], ..Credentials::default() };
        policy::who(&self.policy, &credentials)
    }

    fn check(&self, input: &[u8]) -> Result<(), String> {
        let Ok(name) = self.who(input) else { return Ok(()) };
        let text = String::from_utf8_lossy(input);
        let token = text.trim_end().rsplit(' ').next().unwrap_or_default();
        let is_seed = self.corpus.iter().any(|seed| seed == input);
        if name == "a" && (is_seed || policy::is_genuine(token)) {
            return Ok(());
        }
        Err(format!("accepted as {name}"))
    }
}

fn header(alg: &str, kid: &str) -> Value {
    json!({ "alg": alg, "kid": kid })
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
        let (mut head, mut claims) = (header("EdDSA", "EdDSA"), policy::claims());
        let place = if chance.one_in(3) { &mut head } else { &mut claims };
        json::mutate(chance, place);
        if chance.one_in(4) {
            let kid = *chance.pick(&policy::ALGORITHMS);
            let others = ["none", "HS256", "RS256", "PS256", "ES256", "EdDSA", "eddsa"];
            let alg: &str = if chance.one_in(2) { kid } else { chance.pick::<&str>(&others) };
            head = header(alg, kid);
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
            let genuine: &Vec<u8> = chance.pick(&self.corpus[1..]);
            let genuine = String::from_utf8_lossy(genuine);
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
