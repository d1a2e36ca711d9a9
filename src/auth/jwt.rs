//! Service account tokens of Kubernetes, verified offline: RFC 7519 and RFC 8725, as far as such
//! tokens need them.
//!
//! What is strict here: the algorithm is that of the key, never of the token alone; the header
//! has no member but `alg`, `kid` and `typ`, so none that brings a key or asks for an extension;
//! times are whole, positive numbers. A verified token stays valid until its `exp`, even if its
//! pod or its account was deleted meanwhile, so its life is limited to an hour.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    ServiceAccount, Unauthenticated,
    jwks::{Algorithm, Keys, MAX_KID_BYTES},
};

/// How far the clocks of the issuer and of the server may differ.
pub(super) const LEEWAY: Duration = Duration::from_mins(1);
/// The longest time from `iat` to `exp`.
const MAX_LIFE_SECONDS: u64 = 3_600;
/// 9999-12-31: no time of a token is later.
const MAX_TIME_SECONDS: u64 = 253_402_300_799;
/// The most entries of `aud`.
const MAX_AUDIENCES: usize = 16;

/// A `[jwt.NAME]`, with its keys.
pub(super) struct Issuer {
    pub(super) name: Arc<str>,
    /// What `iss` must be.
    pub(super) url: String,
    pub(super) audience: String,
    pub(super) keys: Arc<Keys>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: Algorithm,
    kid: String,
    typ: Option<String>,
}

/// The claims that count. A derived parser refuses one that is given twice.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: u64,
    iat: u64,
    #[serde(default)]
    nbf: Option<u64>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The service account that a token is of, and when the token stops being accepted.
pub(super) fn verify(
    issuers: &[Issuer],
    token: &str,
    now: SystemTime,
) -> Result<(ServiceAccount, SystemTime), Unauthenticated> {
    let parts = Parts::of(token).ok_or(Unauthenticated::Malformed)?;
    let header: Header = parts.header().ok_or(Unauthenticated::Malformed)?;
    if header.typ.is_some_and(|typ| typ != "JWT") || header.kid.len() > MAX_KID_BYTES {
        return Err(Unauthenticated::Malformed);
    }
    // The id of a key is the key of a map, and nothing else. Two issuers may use the same id.
    let signer = issuers.iter().find(|issuer| {
        issuer.keys.get(&header.kid).is_some_and(|key| {
            key.algorithm == header.alg && key.verifies(parts.signed.as_bytes(), &parts.signature)
        })
    });
    let signer = signer.ok_or(Unauthenticated::Unknown)?;
    let claims: Claims = parts.claims().ok_or(Unauthenticated::Malformed)?;
    accept(signer, claims, now)
}

/// What the signer says of the caller, if it says it to us, and now.
fn accept(
    signer: &Issuer,
    claims: Claims,
    now: SystemTime,
) -> Result<(ServiceAccount, SystemTime), Unauthenticated> {
    let Claims { iss, sub, aud, exp, iat, nbf, kubernetes } = claims;
    let is_for_us = match aud {
        Audience::One(audience) => audience == signer.audience,
        Audience::Many(audiences) => {
            audiences.len() <= MAX_AUDIENCES && audiences.contains(&signer.audience)
        }
    };
    if iss != signer.url || !is_for_us {
        return Err(Unauthenticated::Unknown);
    }
    if [exp, iat, nbf.unwrap_or(0)].iter().any(|time| *time > MAX_TIME_SECONDS) {
        return Err(Unauthenticated::Malformed);
    }
    let life = exp.checked_sub(iat).ok_or(Unauthenticated::Malformed)?;
    if life > MAX_LIFE_SECONDS {
        return Err(Unauthenticated::Malformed);
    }
    let at = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let until = at(exp).and_then(|exp| exp.checked_add(LEEWAY));
    let latest = now.checked_add(LEEWAY);
    let (Some(until), Some(latest), Some(iat)) = (until, latest, at(iat)) else {
        return Err(Unauthenticated::Malformed);
    };
    let is_early = iat > latest || nbf.is_some_and(|nbf| at(nbf).is_none_or(|nbf| nbf > latest));
    if is_early {
        return Err(Unauthenticated::Unknown);
    }
    if now >= until {
        return Err(Unauthenticated::Expired);
    }
    let Kubernetes { namespace, serviceaccount: Named { name } } = kubernetes;
    if sub != format!("system:serviceaccount:{namespace}:{name}") {
        return Err(Unauthenticated::Malformed);
    }
    Ok((ServiceAccount { issuer: Arc::clone(&signer.name), namespace, name }, until))
}

/// A token, decoded.
struct Parts<'a> {
    /// What the signature is over.
    signed: &'a str,
    header: Vec<u8>,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        // A point in the claims is no base64url, so a token of four parts ends here. So does
        // one with padding, or with bits behind its last byte.
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok().filter(|part| !part.is_empty());
        Some(Self {
            signed,
            header: decode(header)?,
            claims: decode(claims)?,
            signature: decode(signature)?,
        })
    }

    fn header(&self) -> Option<Header> {
        object(&self.header)
    }

    fn claims(&self) -> Option<Claims> {
        object(&self.claims)
    }
}

/// A JSON object: a derived parser would take an array of the values as well.
fn object<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    json.starts_with(b"{").then(|| serde_json::from_slice(json).ok()).flatten()
}
