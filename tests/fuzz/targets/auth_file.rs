//! The `--auth` file, with the JWK set that it names.

use futures_util::{FutureExt as _, future::BoxFuture};
use oncegate::auth::{Credentials, Policy};

use crate::{chance::Chance, json, mutate::mutate, policy, target::Target};

/// What stands between the file and the JWK set.
const BETWEEN: &[u8] = b"\n# JWKS\n";

/// An input is the file and the JWK set.
pub struct AuthFile {
    corpus: Vec<Vec<u8>>,
    digest: String,
}

impl AuthFile {
    pub fn new() -> Self {
        let file = policy::file();
        let mut corpus: Vec<_> =
            file.split_inclusive('\n').map(|line| line.as_bytes().to_vec()).collect();
        corpus.insert(0, file.into_bytes());
        Self { corpus, digest: policy::digest() }
    }

    fn check(&self, input: &[u8]) -> Result<(), String> {
        let between = input.windows(BETWEEN.len()).position(|window| window == BETWEEN);
        let at = between.unwrap_or(input.len());
        let (file, jwks) = (&input[..at], input.get(at + BETWEEN.len()..).unwrap_or_default());
        if let Err(error) = Policy::files(file) {
            self.judge(&format!("{error:#}"))?;
        }
        let policy = match policy::parse(file, jwks) {
            Ok(policy) => {
                policy.stale().iter().try_for_each(|problem| self.judge(problem))?;
                policy
            }
            Err(error) => return self.judge(&format!("{error:#}")),
        };
        let header = format!("Bearer {}", policy::token());
        let credentials =
            Credentials { authorization: &[header.as_bytes()], ..Credentials::default() };
        let is_known = policy::who(&policy, &credentials).is_ok();
        let text = String::from_utf8_lossy(file).to_ascii_lowercase();
        if is_known && !text.contains(&self.digest) {
            return Err("accepts a token whose digest it does not have".to_owned());
        }
        Ok(())
    }

    /// An error holds no part of a digest, and is not long.
    fn judge(&self, error: &str) -> Result<(), String> {
        let lower = error.to_ascii_lowercase();
        let parts = self.digest.as_bytes().windows(12);
        let holds = |part: &[u8]| lower.as_bytes().windows(part.len()).any(|window| window == part);
        if lower.contains("aaaaaaaaaaaa") || parts.into_iter().any(holds) {
            return Err(format!("an error holds a secret: {error}"));
        }
        if error.len() > 2_048 {
            return Err(format!("an error of {} bytes: {error}", error.len()));
        }
        Ok(())
    }
}

impl Target for AuthFile {
    fn name(&self) -> &'static str {
        "auth-file"
    }

    fn share(&self) -> u64 {
        5
    }

    fn input(&self, chance: &mut Chance) -> Vec<u8> {
        let mut jwks = policy::jwks();
        if chance.one_in(4) {
            json::mutate(chance, &mut jwks);
        }
        let (mut file, mut jwks) = (self.corpus[0].clone(), jwks.to_string().into_bytes());
        match chance.below(4) {
            0 => mutate(chance, &mut jwks, &[]),
            // A token where its digest should be.
            1 => {
                let text =
                    String::from_utf8_lossy(&file).replacen(&self.digest, &policy::token(), 1);
                file = text.into_bytes();
                mutate(chance, &mut file, &self.corpus);
            }
            _ => mutate(chance, &mut file, &self.corpus),
        }
        [&file[..], BETWEEN, &jwks].concat()
    }

    fn take<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<(), String>> {
        async move { self.check(input) }.boxed()
    }
}
