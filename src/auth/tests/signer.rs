//! What signs the tokens of the tests, and the JWK sets for them.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
        RsaPublicKeyComponents,
    },
};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::{Policy, data, two};

pub(super) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// When the tokens of the tests are issued: now.
pub(super) const IAT: u64 = 1_800_000_000;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alg {
    Rs256,
    Ps256,
    Es256,
    /// ES256 as X.509 has it, which is not as JWT has it.
    Es256Der,
    EdDsa,
}

impl Alg {
    pub(super) const ALL: [Self; 4] = [Self::Rs256, Self::Ps256, Self::Es256, Self::EdDsa];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 | Self::Es256Der => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// One issuer: a key for each algorithm, whose `kid` is the algorithm's name.
pub(super) struct Signer {
    rsa: RsaKeyPair,
    ec: Vec<u8>,
    ed: Ed25519KeyPair,
}

impl Signer {
    pub(super) fn new(rsa: &str) -> Self {
        let random = SystemRandom::new();
        let rsa = PrivatePkcs8KeyDer::from_pem_slice(&data(rsa)).unwrap();
        let rsa = RsaKeyPair::from_pkcs8(rsa.secret_pkcs8_der()).unwrap();
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let ed = Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap();
        Self { rsa, ec: ec.as_ref().to_vec(), ed }
    }

    fn sign(&self, alg: Alg, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |padding| {
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(padding, &random, message, &mut signature).unwrap();
            signature
        };
        let ec = |form| {
            let key = EcdsaKeyPair::from_pkcs8(form, &self.ec, &random).unwrap();
            key.sign(&random, message).unwrap().as_ref().to_vec()
        };
        match alg {
            Alg::Rs256 => rsa(&RSA_PKCS1_SHA256),
            Alg::Ps256 => rsa(&RSA_PSS_SHA256),
            Alg::Es256 => ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Alg::Es256Der => ec(&ECDSA_P256_SHA256_ASN1_SIGNING),
            Alg::EdDsa => self.ed.sign(message).as_ref().to_vec(),
        }
    }

    /// A token of these two texts.
    pub(super) fn token(&self, alg: Alg, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = encode(self.sign(alg, signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    /// A token with the usual header.
    pub(super) fn usual(&self, alg: Alg, claims: &str) -> String {
        let name = alg.name();
        self.token(alg, &json!({ "alg": name, "kid": name }).to_string(), claims)
    }

    pub(super) fn rsa_jwk(&self, alg: &str) -> Value {
        let n = encode(RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public()).n);
        json!({ "kty": "RSA", "kid": alg, "use": "sig", "alg": alg, "n": n, "e": "AQAB" })
    }

    pub(super) fn jwks(&self) -> Value {
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &self.ec,
            &SystemRandom::new(),
        );
        let point = key.unwrap().public_key().as_ref()[1..].to_vec();
        let (x, y) = (encode(&point[..32]), encode(&point[32..]));
        let ed = encode(self.ed.public_key());
        json!({ "keys": [
            self.rsa_jwk("RS256"),
            self.rsa_jwk("PS256"),
            { "kty": "EC", "kid": "ES256", "alg": "ES256", "crv": "P-256", "x": x, "y": y },
            { "kty": "OKP", "kid": "EdDSA", "crv": "Ed25519", "x": ed },
            { "kty": "RSA", "kid": "other", "use": "enc", "alg": "RSA-OAEP", "n": "AQAB", "e": "x" },
        ]})
    }

    /// A file in which `a` is the service account `bots/acme` of this issuer.
    pub(super) fn file(&self) -> String {
        format!(
            "{}[jwt.cluster]\nissuer = '{ISSUER}'\naudience = 'oncegate'\njwks = '/jwks'\n",
            two("service_account = ['bots/acme']", "service_account = ['bots/other']")
        )
    }

    pub(super) fn policy(&self) -> Policy {
        let files = |path: &Path| {
            assert_eq!(path, Path::new("/jwks"));
            Ok(self.jwks().to_string().into_bytes())
        };
        Policy::parse(self.file().as_bytes(), &files, None).unwrap()
    }
}

/// The claims of Kubernetes for `bots/acme`.
pub(super) fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "aud": ["oncegate"],
        "sub": "system:serviceaccount:bots:acme",
        "iat": IAT,
        "nbf": IAT,
        "exp": IAT + 3_600,
        "jti": "1",
        "kubernetes.io": {
            "namespace": "bots",
            "pod": { "name": "acme-0", "uid": "2" },
            "serviceaccount": { "name": "acme", "uid": "3" },
        },
    })
}

/// The claims, but for one.
pub(super) fn claims_with(name: &str, value: Value) -> String {
    let mut claims = claims();
    claims[name] = value;
    claims.to_string()
}

/// The claims without one.
pub(super) fn claims_without(name: &str) -> String {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name).unwrap();
    claims.to_string()
}
