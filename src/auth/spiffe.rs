//! SPIFFE IDs, compared byte by byte.
//!
//! <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>: a trust domain in lower
//! case, and a path of letters, digits, `.`, `-` and `_`. So an ID has one spelling only:
//! nothing is decoded, folded or normalized.

use std::collections::HashMap;

const SCHEME: &str = "spiffe://";
/// The longest ID that the standard allows.
const MAX_ID_BYTES: usize = 2_048;
/// The longest trust domain that the standard allows.
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// A SPIFFE ID with a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SpiffeId(String);

impl SpiffeId {
    /// The ID that a URI is, if it is one.
    pub(super) fn parse(uri: &str) -> Option<Self> {
        is_id(uri).then(|| Self(uri.to_owned()))
    }
}

fn is_id(uri: &str) -> bool {
    let Some((trust_domain, path)) = uri.strip_prefix(SCHEME).and_then(|id| id.split_once('/'))
    else {
        return false;
    };
    uri.len() <= MAX_ID_BYTES && is_trust_domain(trust_domain) && path.split('/').all(is_segment)
}

fn is_trust_domain(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    (1..=MAX_TRUST_DOMAIN_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !matches!(text, "" | "." | "..") && text.bytes().all(allowed)
}

/// Which IDs a principal has.
#[derive(Debug)]
pub(super) enum Pattern {
    /// This one.
    Exact(SpiffeId),
    /// Each with one more segment or several below this, which ends in no `/`.
    Below(String),
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let Some(above) = text.strip_suffix("/*") else {
            return SpiffeId::parse(text).map(Self::Exact);
        };
        let is_domain = above.strip_prefix(SCHEME).is_some_and(is_trust_domain);
        (is_domain || is_id(above)).then(|| Self::Below(above.to_owned()))
    }
}

/// Which ID is whose. No ID is of two owners.
#[derive(Debug)]
pub(super) struct Ids<T> {
    exact: HashMap<SpiffeId, T>,
    below: HashMap<String, T>,
}

impl<T> Default for Ids<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), below: HashMap::new() }
    }
}

impl<T: Clone> Ids<T> {
    /// Gives the IDs of `pattern` to `owner`.
    ///
    /// # Errors
    /// The owner of the same pattern, or another owner of one of its IDs.
    pub(super) fn insert(
        &mut self,
        pattern: Pattern,
        owner: T,
        is_same: impl Fn(&T, &T) -> bool,
    ) -> Result<(), T> {
        let others = |other: &&T| !is_same(other, &owner);
        match pattern {
            Pattern::Exact(id) => {
                if let Some(other) = self.owners_above(&id.0).find(others) {
                    return Err(other.clone());
                }
                self.exact.insert(id, owner).map_or(Ok(()), Err)
            }
            Pattern::Below(above) => {
                let exact = self.exact.iter().map(|(id, owner)| (id.0.as_str(), owner));
                let below = self.below.iter().map(|(id, owner)| (id.as_str(), owner));
                let mut inside = exact.chain(below).filter_map(|(id, owner)| {
                    id.strip_prefix(above.as_str())?.starts_with('/').then_some(owner)
                });
                if let Some(other) =
                    inside.find(others).or_else(|| self.owners_above(&above).find(others))
                {
                    return Err(other.clone());
                }
                self.below.insert(above, owner).map_or(Ok(()), Err)
            }
        }
    }

    /// Whose ID it is.
    pub(super) fn get(&self, id: &SpiffeId) -> Option<&T> {
        self.exact.get(id).or_else(|| self.owners_above(&id.0).next())
    }

    /// The owners of everything below a part of `id` that ends before a `/`.
    fn owners_above<'a, 'id>(
        &'a self,
        id: &'id str,
    ) -> impl Iterator<Item = &'a T> + use<'a, 'id, T> {
        let parts = id.rmatch_indices('/').filter_map(move |(at, _)| id.get(..at));
        parts.filter_map(|above| self.below.get(above))
    }
}
