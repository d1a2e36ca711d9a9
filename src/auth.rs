//! Who calls: the principals of the `--auth` file, and the credentials that name them.
//!
//! | module | what it is |
//! |---|---|
//! | `file` | the TOML text; errors name the principal and the field, never a value |
//! | `principal` | what a caller may do, and its limits; `usage` is what it uses of them |
//! | `token` | bearer tokens of oncegate: 256 random bits, found by their SHA-256 |
//! | `certificate`, `spiffe` | the SPIFFE ID of a verified client certificate |
//! | `jwt`, `jwks` | Kubernetes service account tokens, verified offline |
//!
//! Architecture Invariant: nothing here does I/O or reads the system's clock. Bytes of files
//! and the time come in. No input makes it panic, and no error or `Debug` text holds a
//! credential or its digest.
//!
//! # What names a principal
//!
//! The certificate, then the bearer token, then the uid. The rules, from which
//! [`Policy::authenticate`] follows:
//!
//! 1. A bearer token is presented on purpose: one that is malformed, unknown or expired is
//!    refused, whatever else the caller has.
//! 2. A certificate with a malformed SPIFFE ID, with two URIs, or with a URI that is no SPIFFE
//!    ID is refused, whatever else the caller has.
//! 3. A certificate without a URI, one whose SPIFFE ID is not in the file, and a uid that is
//!    not in the file name no principal. They do not spoil a valid token: a caller cannot hide
//!    its uid, and could leave the certificate out.
//! 4. Credentials that name different principals are refused.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls_pki_types::CertificateDer;

mod certificate;
mod file;
mod jwks;
mod jwt;
mod principal;
mod spiffe;
#[cfg(test)]
mod tests;
pub mod token;
mod usage;

pub use principal::{Principal, PrincipalLimits, Rate, Role};
pub use usage::{OverLimit, Usage, UsageGuard};

use jwt::Issuer;
use token::{Bearer, Digest};

/// The uid that Linux shows for a peer whose uid has no mapping in this user namespace: it may
/// be any user.
pub const OVERFLOW_UID: u32 = 65_534;

/// What a caller presents.
#[derive(Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The client certificate, which the TLS handshake has verified.
    pub certificate: Option<&'a CertificateDer<'a>>,
    /// Every value of the `authorization` header.
    pub authorization: &'a [&'a [u8]],
    /// The uid of the peer of a Unix socket.
    pub uid: Option<u32>,
}

/// A caller that is known.
#[derive(Debug, Clone)]
pub struct Authenticated {
    /// Who it is.
    pub principal: Arc<Principal>,
    /// When the credential stops being accepted; none if it does not expire.
    pub expires: Option<SystemTime>,
}

/// Why a caller is not known. Callers get no detail; [`Unauthenticated::reason`] is for
/// metrics and the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unauthenticated")]
pub enum Unauthenticated {
    /// No credential was presented.
    Missing,
    /// A credential breaks the rules of its form.
    Malformed,
    /// No credential names a principal.
    Unknown,
    /// A JWT is past its `exp`.
    Expired,
    /// Two credentials name different principals.
    Conflicting,
}

impl Unauthenticated {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::Missing, Self::Malformed, Self::Unknown, Self::Expired, Self::Conflicting];

    /// The reason as the value of a label.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Conflicting => "conflicting",
        }
    }
}

/// One content of the `--auth` file and of the JWKS files that it names.
#[derive(Default)]
pub struct Policy {
    principals: BTreeMap<Arc<str>, Arc<Principal>>,
    tokens: HashMap<Digest, Arc<Principal>>,
    spiffe: spiffe::Ids<Arc<Principal>>,
    accounts: HashMap<ServiceAccount, Arc<Principal>>,
    uids: HashMap<u32, Arc<Principal>>,
    issuers: Vec<Issuer>,
    stale: Vec<String>,
}

/// A Kubernetes service account, and the `[jwt.NAME]` that may vouch for it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ServiceAccount {
    issuer: Arc<str>,
    namespace: String,
    name: String,
}

/// How many principals there are, and nothing of their credentials.
impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("principals", &self.principals.len()).finish_non_exhaustive()
    }
}

impl Policy {
    /// Reads a content of the `--auth` file. `files` returns the content of a file that
    /// [`Policy::files`] lists. A principal of `previous` with the same name keeps its
    /// [`Usage`], and an issuer whose JWK set cannot be used keeps the keys that it had there, if
    /// any: otherwise one bad set would keep every revocation from being in force.
    ///
    /// # Errors
    /// What is wrong, with the principal and the field, and without any value.
    pub fn parse(
        auth_file: &[u8],
        files: &dyn Fn(&Path) -> anyhow::Result<Vec<u8>>,
        previous: Option<&Self>,
    ) -> anyhow::Result<Self> {
        file::parse(auth_file)?.into_policy(files, previous)
    }

    /// The JWKS files that a content of the `--auth` file names.
    ///
    /// # Errors
    /// As [`Policy::parse`].
    pub fn files(auth_file: &[u8]) -> anyhow::Result<Vec<PathBuf>> {
        Ok(file::parse(auth_file)?.issuers.into_values().map(|issuer| issuer.jwks).collect())
    }

    /// Which JWK sets could not be used, and why: their issuers have the keys of before, or none.
    #[must_use]
    pub fn stale(&self) -> &[String] {
        &self.stale
    }

    /// Every principal, by name.
    pub fn principals(&self) -> impl Iterator<Item = &Arc<Principal>> {
        self.principals.values()
    }

    /// Who presents `credentials`.
    ///
    /// # Errors
    /// Why the caller is not known.
    pub fn authenticate(
        &self,
        credentials: &Credentials<'_>,
        now: SystemTime,
    ) -> Result<Authenticated, Unauthenticated> {
        let Credentials { certificate, authorization, uid } = *credentials;
        if certificate.is_none() && authorization.is_empty() && uid.is_none() {
            return Err(Unauthenticated::Missing);
        }
        let of_certificate = match certificate {
            Some(certificate) => self.by_certificate(certificate)?,
            None => None,
        };
        let (of_bearer, expires) = match token::bearer(authorization)? {
            Some(bearer) => {
                let (principal, expires) = self.by_bearer(bearer, now)?;
                (Some(principal), expires)
            }
            None => (None, None),
        };
        let of_uid = uid.filter(|uid| *uid != OVERFLOW_UID).and_then(|uid| self.uids.get(&uid));

        let mut named = [of_certificate, of_bearer, of_uid].into_iter().flatten();
        let principal = named.next().ok_or(Unauthenticated::Unknown)?;
        if named.any(|other| !Arc::ptr_eq(other, principal)) {
            return Err(Unauthenticated::Conflicting);
        }
        Ok(Authenticated { principal: Arc::clone(principal), expires })
    }

    fn by_certificate(
        &self,
        certificate: &CertificateDer<'_>,
    ) -> Result<Option<&Arc<Principal>>, Unauthenticated> {
        let id = certificate::spiffe_id(certificate).map_err(|_| Unauthenticated::Malformed)?;
        Ok(id.and_then(|id| self.spiffe.get(&id)))
    }

    fn by_bearer(
        &self,
        bearer: Bearer<'_>,
        now: SystemTime,
    ) -> Result<(&Arc<Principal>, Option<SystemTime>), Unauthenticated> {
        match bearer {
            Bearer::Token(digest) => {
                let principal = self.tokens.get(&digest).ok_or(Unauthenticated::Unknown)?;
                Ok((principal, None))
            }
            Bearer::Jwt(token) => {
                let (account, expires) = jwt::verify(&self.issuers, token, now)?;
                let principal = self.accounts.get(&account).ok_or(Unauthenticated::Unknown)?;
                Ok((principal, Some(expires)))
            }
        }
    }
}
