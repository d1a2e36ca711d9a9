//! Attacks on what names a principal, and the file that says so.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;

use super::{Authenticated, Credentials, Policy, Unauthenticated, token::Digest};

mod bearer;
mod certificate;
mod file;
mod jwks;
mod jwt;
mod order;
mod signer;
mod timing;
mod usage;

/// The time of every test: 1,800,000,000 s after 1970, 2027-01-15.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(500_000)
}

fn token(letter: char) -> String {
    format!("once_{}", letter.to_string().repeat(43))
}

fn digest(letter: char) -> String {
    Digest::of(token(letter).as_bytes()).to_hex()
}

/// A file with the principals `a` and `b`, each with `more` of its own.
fn two(a: &str, b: &str) -> String {
    format!(
        "[[principal]]\nname = 'a'\nrole = 'bot'\nteams = ['T1']\n{a}\n\
         [[principal]]\nname = 'b'\nrole = 'reader'\nteams = ['*']\n{b}\n"
    )
}

fn no_files(path: &Path) -> anyhow::Result<Vec<u8>> {
    anyhow::bail!("{} was not expected", path.display())
}

fn parse(text: &str) -> anyhow::Result<Policy> {
    Policy::parse(text.as_bytes(), &no_files, None)
}

fn policy(text: &str) -> Policy {
    parse(text).unwrap_or_else(|error| panic!("{error:#}\n{text}"))
}

/// Whose credentials these are.
fn who(policy: &Policy, credentials: &Credentials<'_>) -> Result<String, Unauthenticated> {
    let Authenticated { principal, .. } = policy.authenticate(credentials, now())?;
    Ok(principal.name.to_string())
}

fn by_header(policy: &Policy, values: &[&[u8]]) -> Result<String, Unauthenticated> {
    who(policy, &Credentials { authorization: values, ..Credentials::default() })
}

fn by_bearer(policy: &Policy, token: &str) -> Result<String, Unauthenticated> {
    by_header(policy, &[format!("Bearer {token}").as_bytes()])
}

fn by_certificate(policy: &Policy, der: &CertificateDer<'_>) -> Result<String, Unauthenticated> {
    who(policy, &Credentials { certificate: Some(der), ..Credentials::default() })
}

fn by_uid(policy: &Policy, uid: u32) -> Result<String, Unauthenticated> {
    who(policy, &Credentials { uid: Some(uid), ..Credentials::default() })
}

fn data(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/jwt").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
