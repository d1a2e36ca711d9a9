//! The file as a whole: names and credentials are unique, and each service account has an
//! issuer.

use std::{collections::HashMap, hash::Hash, path::Path, sync::Arc};

use anyhow::{Context as _, bail};

use super::{AccountEntry, Entry, File, IssuerEntry};
use crate::auth::{Policy, Principal, ServiceAccount, jwks::Keys, jwt::Issuer};

impl File {
    pub(in crate::auth) fn into_policy(
        self,
        files: &dyn Fn(&Path) -> anyhow::Result<Vec<u8>>,
        previous: Option<&Policy>,
    ) -> anyhow::Result<Policy> {
        let mut policy = Policy::default();
        for (name, entry) in self.issuers {
            let name = Arc::from(name);
            if let Some(other) = policy.issuers.iter().find(|known| known.url == entry.url) {
                bail!("jwt.{} and jwt.{name}: have the same issuer", other.name);
            }
            let issuer = load(name, entry, files, previous, &mut policy.stale);
            policy.issuers.push(issuer);
        }
        for entry in self.principals {
            add(&mut policy, entry, previous)?;
        }
        Ok(policy)
    }
}

/// An issuer, with the keys of its set. If that cannot be used, it keeps its former keys; a new
/// one has none, so that its tokens are refused. The rest of the file is in force in any case: it
/// may revoke something.
fn load(
    name: Arc<str>,
    entry: IssuerEntry,
    files: &dyn Fn(&Path) -> anyhow::Result<Vec<u8>>,
    previous: Option<&Policy>,
    stale: &mut Vec<String>,
) -> Issuer {
    let IssuerEntry { url, audience, jwks } = entry;
    let keys = files(&jwks).and_then(|bytes| Keys::parse(&bytes));
    let keys = match keys {
        Ok(keys) => Arc::new(keys),
        Err(error) => {
            stale.push(format!("jwt.{name}: jwks: {error:#}"));
            let is_same = |former: &&Issuer| former.name == name && former.url == url;
            let former = previous.and_then(|previous| previous.issuers.iter().find(is_same));
            former.map(|former| Arc::clone(&former.keys)).unwrap_or_default()
        }
    };
    Issuer { name, url, audience, keys }
}

fn add(policy: &mut Policy, entry: Entry, previous: Option<&Policy>) -> anyhow::Result<()> {
    let Entry { name, role, teams, limits, tokens, spiffe, accounts, uids } = entry;
    let name: Arc<str> = name.into();
    if policy.principals.contains_key(&name) {
        bail!("principal {name}: name: is given to two principals");
    }
    let known = previous.and_then(|previous| previous.principals.get(&name));
    let usage = known.map(|known| Arc::clone(&known.usage)).unwrap_or_default();
    let principal = Arc::new(Principal { name: Arc::clone(&name), role, teams, limits, usage });

    for digest in tokens {
        claim(&mut policy.tokens, digest, &principal, "token_sha256")?;
    }
    for uid in uids {
        claim(&mut policy.uids, uid, &principal, "unix_uid")?;
    }
    for (at, account) in accounts.into_iter().enumerate() {
        let account = with_issuer(&policy.issuers, account)
            .with_context(|| format!("principal {name}: service_account[{at}]"))?;
        claim(&mut policy.accounts, account, &principal, "service_account")?;
    }
    for pattern in spiffe {
        if let Err(other) = policy.spiffe.insert(pattern, Arc::clone(&principal), Arc::ptr_eq) {
            return Err(conflict(&principal, &other, "spiffe"));
        }
    }
    policy.principals.insert(name, principal);
    Ok(())
}

/// Gives a credential to a principal, unless it is given already.
fn claim<K: Eq + Hash>(
    taken: &mut HashMap<K, Arc<Principal>>,
    credential: K,
    principal: &Arc<Principal>,
    field: &str,
) -> anyhow::Result<()> {
    match taken.insert(credential, Arc::clone(principal)) {
        None => Ok(()),
        Some(other) => Err(conflict(principal, &other, field)),
    }
}

fn conflict(principal: &Principal, other: &Principal, field: &str) -> anyhow::Error {
    let (name, other) = (&principal.name, &other.name);
    if name == other {
        anyhow::anyhow!("principal {name}: {field}: has an entry twice")
    } else {
        anyhow::anyhow!("principal {name}: {field}: overlaps with that of principal {other}")
    }
}

fn with_issuer(issuers: &[Issuer], account: AccountEntry) -> anyhow::Result<ServiceAccount> {
    let AccountEntry { issuer: wanted, namespace, name } = account;
    let issuer = match (wanted, issuers) {
        (_, []) => bail!("needs a [jwt.NAME]"),
        (None, [only]) => only,
        (None, _) => bail!("must be ISSUER:NAMESPACE/NAME, because there are several [jwt.NAME]"),
        (Some(wanted), issuers) => issuers
            .iter()
            .find(|issuer| *issuer.name == *wanted)
            .context("names no [jwt.NAME] of the file")?,
    };
    Ok(ServiceAccount { issuer: Arc::clone(&issuer.name), namespace, name })
}
