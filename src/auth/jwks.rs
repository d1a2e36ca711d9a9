//! The public keys of an issuer: a JWK set, RFC 7517.

use std::{collections::HashMap, fmt};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;

/// The most keys of one issuer.
const MAX_KEYS: usize = 64;
/// The longest id of a key.
pub(super) const MAX_KID_BYTES: usize = 256;
/// The sizes of an RSA modulus, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;
/// 65537, the only RSA exponent.
const RSA_EXPONENT: &str = "AQAB";

/// How a token is signed. What is not here is not accepted: no `none`, and nothing with a
/// shared secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Algorithm {
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "PS256")]
    Ps256,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// A public key, and the only algorithm that it is for.
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    material: Material,
}

enum Material {
    Rsa(&'static RsaParameters, RsaPublicKeyComponents<Vec<u8>>),
    Other(&'static dyn VerificationAlgorithm, Vec<u8>),
}

impl Key {
    /// Whether the key signed the message.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Rsa(parameters, key) => key.verify(parameters, message, signature),
            Material::Other(algorithm, key) => {
                UnparsedPublicKey::new(*algorithm, key).verify(message, signature)
            }
        }
        .is_ok()
    }
}

/// The keys of an issuer, by their ids.
#[derive(Default)]
pub(super) struct Keys(HashMap<String, Key>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

/// The members that count. A derived parser refuses one that is given twice.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// The private part of a key.
    d: Option<serde::de::IgnoredAny>,
    /// A shared secret.
    k: Option<serde::de::IgnoredAny>,
}

impl Keys {
    /// Reads a JWK set. Keys for encryption are left out; any other that cannot verify a token
    /// fails the whole set.
    pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        // An error of the parser quotes values.
        let set: Set = serde_json::from_slice(bytes)
            .map_err(|error| anyhow::anyhow!("line {}: is no JWK set in JSON", error.line()))?;
        let mut keys = HashMap::new();
        for (at, jwk) in set.keys.into_iter().enumerate() {
            if jwk.usage.as_deref() == Some("enc") {
                continue;
            }
            let (id, key) = read(jwk).with_context(|| format!("keys[{at}]"))?;
            ensure!(keys.insert(id, key).is_none(), "keys[{at}]: kid: is given to two keys");
            ensure!(keys.len() <= MAX_KEYS, "must have at most {MAX_KEYS} keys");
        }
        ensure!(!keys.is_empty(), "has no key that verifies signatures");
        Ok(Self(keys))
    }

    pub(super) fn get(&self, id: &str) -> Option<&Key> {
        self.0.get(id)
    }
}

fn read(jwk: Jwk) -> anyhow::Result<(String, Key)> {
    ensure!(jwk.d.is_none() && jwk.k.is_none(), "is a private key or a shared secret");
    ensure!(jwk.usage.is_none_or(|usage| usage == "sig"), "use: must be sig");
    let id = jwk.kid.context("kid: is required")?;
    ensure!((1..=MAX_KID_BYTES).contains(&id.len()), "kid: must be 1 to {MAX_KID_BYTES} bytes");
    let (algorithm, material) = match (jwk.kty.as_str(), jwk.crv.as_deref(), jwk.alg.as_deref()) {
        ("RSA", None, None | Some("RS256")) => (
            Algorithm::Rs256,
            Material::Rsa(&RSA_PKCS1_2048_8192_SHA256, rsa(jwk.n.as_deref(), jwk.e.as_deref())?),
        ),
        ("RSA", None, Some("PS256")) => (
            Algorithm::Ps256,
            Material::Rsa(&RSA_PSS_2048_8192_SHA256, rsa(jwk.n.as_deref(), jwk.e.as_deref())?),
        ),
        ("EC", Some("P-256"), None | Some("ES256")) => {
            // The point, uncompressed.
            let mut point = vec![0x04];
            point.extend(coordinate("x", jwk.x.as_deref())?);
            point.extend(coordinate("y", jwk.y.as_deref())?);
            (Algorithm::Es256, Material::Other(&ECDSA_P256_SHA256_FIXED, point))
        }
        ("OKP", Some("Ed25519"), None | Some("EdDSA" | "Ed25519")) => {
            let point = coordinate("x", jwk.x.as_deref())?;
            (Algorithm::EdDsa, Material::Other(&ED25519, point))
        }
        _ => bail!(
            "kty, crv and alg: must be RSA with RS256 or PS256, EC on P-256 with ES256, or OKP on \
             Ed25519 with EdDSA"
        ),
    };
    Ok((id, Key { algorithm, material }))
}

fn rsa(n: Option<&str>, e: Option<&str>) -> anyhow::Result<RsaPublicKeyComponents<Vec<u8>>> {
    let n = bytes(n).context("n: must be base64url")?;
    let zeros = n.first().map_or(0, |first| first.leading_zeros() as usize);
    let bits = (n.len() * 8).saturating_sub(zeros);
    ensure!(zeros < 8, "n: must not begin with a zero byte");
    ensure!(
        RSA_BITS.contains(&bits),
        "n: must have {} to {} bits, has {bits}",
        RSA_BITS.start(),
        RSA_BITS.end()
    );
    ensure!(e == Some(RSA_EXPONENT), "e: must be {RSA_EXPONENT}");
    let e = bytes(e).context("e: must be base64url")?;
    Ok(RsaPublicKeyComponents { n, e })
}

fn coordinate(name: &str, text: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let bytes = bytes(text).filter(|bytes| bytes.len() == 32);
    bytes.with_context(|| format!("{name}: must be 32 bytes in base64url"))
}

fn bytes(text: Option<&str>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text?).ok()
}
