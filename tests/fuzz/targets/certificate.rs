//! Certificates, as far as the server reads them after the TLS handshake: their SPIFFE ID.

use futures_util::{FutureExt as _, future::BoxFuture};
use oncegate::auth::{Credentials, Policy};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::{chance::Chance, mutate::mutate, policy, target::Target};

/// What stands before the seed in the PKCS #8 form of an Ed25519 key.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// An input is a certificate in DER.
pub struct Certificate {
    policy: Policy,
    corpus: Vec<Vec<u8>>,
}

impl Certificate {
    pub fn new() -> Self {
        let jwks = policy::jwks().to_string();
        let policy = policy::parse(policy::file().as_bytes(), jwks.as_bytes()).expect("a policy");
        let other = "spiffe://prod/jobs/x";
        let uris: [&[&str]; 5] =
            [&[policy::SPIFFE], &[other], &[policy::SPIFFE, other], &[], &["https://x.example"]];
        Self { policy, corpus: uris.map(certificate).to_vec() }
    }

    fn check(&self, input: &[u8]) -> Result<(), String> {
        let der = CertificateDer::from(input);
        let credentials = Credentials { certificate: Some(&der), ..Credentials::default() };
        let Ok(name) = policy::who(&self.policy, &credentials) else { return Ok(()) };
        let uris = uris(input);
        let is_known = |uri: &&[u8]| {
            *uri == policy::SPIFFE.as_bytes() || uri.starts_with(b"spiffe://prod/jobs/")
        };
        if name == "a" && uris.iter().any(|uri| is_known(&&**uri)) {
            return Ok(());
        }
        Err(format!("accepted as {name}"))
    }
}

/// A certificate with these URIs and a name, always the same.
fn certificate(uris: &[&str]) -> Vec<u8> {
    let key = [&PKCS8[..], &policy::SEED].concat();
    let key = PrivatePkcs8KeyDer::from(key);
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ED25519).expect("a key");
    let mut params = CertificateParams::new(vec!["a.example".to_owned()]).expect("a name");
    let names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("a URI")));
    params.subject_alt_names.extend(names);
    params.self_signed(&key).expect("a certificate").der().to_vec()
}

/// Whatever may be a URI of the certificate: what follows its tag and a length.
fn uris(certificate: &[u8]) -> Vec<Vec<u8>> {
    let starts = certificate.windows(2).enumerate().filter(|(_, two)| two[0] == 0x86);
    let texts = starts.filter_map(|(at, two)| {
        let (from, length) = match two[1] {
            0x81 => (at + 3, usize::from(*certificate.get(at + 2)?)),
            short => (at + 2, usize::from(short)),
        };
        certificate.get(from..from + length).map(<[u8]>::to_vec)
    });
    texts.collect()
}

impl Target for Certificate {
    fn name(&self) -> &'static str {
        "certificate"
    }

    fn share(&self) -> u64 {
        10
    }

    fn input(&self, chance: &mut Chance) -> Vec<u8> {
        let mut input = chance.pick(&self.corpus).clone();
        mutate(chance, &mut input, &self.corpus);
        input
    }

    fn take<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<(), String>> {
        async move { self.check(input) }.boxed()
    }
}
