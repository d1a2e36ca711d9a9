//! Names that are made of several fields.
//!
//! A name is its parts with a `:` between each two, and no two lists of parts make one name:
//! a part that would make the name ambiguous, and the longest parts of a name that would
//! outgrow an id, are replaced by a digest.

use std::{borrow::Cow, fmt::Write as _};

use sha2::{Digest as _, Sha256};

use super::{Id, limits::MAX_ID_BYTES};

/// Stands before the 32 hexadecimal digits of a digest.
const DIGEST_MARK: u8 = b'#';
/// The length of a digest, its mark included.
const DIGEST_BYTES: usize = 33;

/// One part of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// A part that stays as it is even if it holds a `:`. A kind of name has at most one,
    /// so that the others show where it begins and ends.
    Open(&'a str),
    /// A part that is replaced by a digest if it holds a `:`.
    Closed(&'a str),
}

impl<'a> Part<'a> {
    fn written(self) -> Cow<'a, str> {
        let (text, holds_colon) = match self {
            Self::Open(text) => (text, false),
            Self::Closed(text) => (text, text.contains(':')),
        };
        if holds_colon || text.contains(char::is_control) || looks_like_digest(text) {
            Cow::Owned(digest(Of::Part, text))
        } else {
            Cow::Borrowed(text)
        }
    }
}

/// The name that `parts` make: as they are, as far as they fit.
#[must_use]
pub fn joined(parts: &[Part<'_>]) -> Id {
    let mut parts: Vec<_> = parts.iter().map(|part| part.written()).collect();
    let mut excess = parts.iter().map(|part| part.len() + 1).sum::<usize>().saturating_sub(1);
    if excess > MAX_ID_BYTES {
        let mut longest_first: Vec<usize> = (0..parts.len()).collect();
        longest_first.sort_by_key(|&at| std::cmp::Reverse(parts[at].len()));
        for at in longest_first {
            if excess <= MAX_ID_BYTES || parts[at].len() <= DIGEST_BYTES {
                break;
            }
            excess -= parts[at].len() - DIGEST_BYTES;
            parts[at] = Cow::Owned(digest(Of::Part, &parts[at]));
        }
    }
    let mut name = parts.join(":");
    if name.len() > MAX_ID_BYTES {
        name = format!("{}:{}", parts[0], digest(Of::Name, &name));
    }
    Id::derived(name)
}

/// What a digest is of: that of a name is never that of a part.
#[derive(Clone, Copy)]
enum Of {
    Part,
    Name,
}

/// The first 128 bits of the SHA-256 of a text.
fn digest(of: Of, text: &str) -> String {
    let mut hasher = Sha256::new_with_prefix([of as u8]);
    hasher.update(text);
    let mut digest = String::with_capacity(DIGEST_BYTES);
    digest.push(char::from(DIGEST_MARK));
    for byte in &hasher.finalize()[..16] {
        let _ = write!(digest, "{byte:02x}");
    }
    digest
}

fn looks_like_digest(text: &str) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == DIGEST_BYTES
        && text.as_bytes()[0] == DIGEST_MARK
        && text.as_bytes()[1..].iter().all(is_digit)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, iter};

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::{
        Part::{Closed, Open},
        *,
    };

    fn name(parts: &[Part<'_>]) -> String {
        joined(parts).into_string()
    }

    #[test]
    fn parts_that_fit_stay_as_they_are() {
        assert_eq!(
            name(&[Closed("ts"), Open("19:x@thread"), Closed("17.5")]),
            "ts:19:x@thread:17.5"
        );
        assert_eq!(name(&[Open("a"), Closed(""), Closed("")]), "a::");
        let longest = "é".repeat(255);
        assert_eq!(name(&[Closed("a"), Open(&longest)]), format!("a:{longest}"));
    }

    #[test]
    fn only_as_many_parts_are_replaced_as_it_takes() {
        let (long, longer) = ("x".repeat(300), "y".repeat(301));
        let made = name(&[Closed("k"), Closed(&long), Closed(&longer), Closed("z")]);
        let digest = digest(Of::Part, &longer);
        assert_eq!(made, format!("k:{long}:{digest}:z"));
    }

    #[test]
    fn many_short_parts_are_replaced_as_one() {
        let parts = [vec!["kind"], vec!["sixteen letters!"; 40]].concat();
        let closed: Vec<_> = parts.iter().map(|part| Closed(part)).collect();
        let made = name(&closed);
        assert_eq!(made.len(), "kind:".len() + DIGEST_BYTES);
        // The same text as one part is another name.
        assert_ne!(name(&[Closed("kind"), Closed(&parts.join(":"))]), made);
    }

    #[test]
    fn a_digest_never_changes() {
        // Rows keep it.
        assert_eq!(digest(Of::Part, "承"), "#1f37f422bad2282e54134216fae36d04");
    }

    /// Lists of parts that are easily mistaken for one another.
    fn lists() -> Vec<Vec<String>> {
        let mut random = StdRng::seed_from_u64(13);
        let seeds = ["", "a", ":", "a:b", "#", "\n", "承", &"x".repeat(40), &"y".repeat(600)];
        let mut texts: Vec<String> = seeds.map(str::to_owned).to_vec();
        // What replaces a part may be given as a part itself.
        texts.extend(seeds.map(|text| digest(Of::Part, text)));
        texts.extend(seeds.map(|text| digest(Of::Name, text)));
        let mut lists = Vec::new();
        for _ in 0..10_000 {
            let length = if random.random_ratio(1, 20) { 40 } else { random.random_range(1..=6) };
            let list: Vec<_> =
                (0..length).map(|_| texts[random.random_range(0..texts.len())].clone()).collect();
            if random.random_ratio(1, 10) && texts.len() < 200 {
                texts.push(name(&list.iter().map(|text| Closed(text)).collect::<Vec<_>>()));
                texts.push(list.join(":"));
            }
            lists.push(list);
        }
        lists
    }

    /// Names `list` by `part`, and fails if another list of `made` has that name.
    fn is_unique(
        made: &mut HashMap<String, Vec<String>>,
        list: &[String],
        part: impl Fn(usize, &str) -> Part<'_>,
    ) {
        let parts = list.iter().enumerate().map(|(at, text)| part(at, text));
        let name = name(&iter::once(Closed("kind")).chain(parts).collect::<Vec<_>>());
        assert!(name.len() <= MAX_ID_BYTES && !name.contains(char::is_control), "{name}");
        if let Some(former) = made.insert(name, list.to_vec()) {
            assert_eq!(former, list);
        }
    }

    #[test]
    fn no_two_lists_of_parts_make_one_name() {
        let mut made = HashMap::new();
        for list in lists() {
            is_unique(&mut made, &list, |_, text| Closed(text));
        }
        assert!(made.len() > 1_000);
    }

    #[test]
    fn an_open_part_is_found_between_the_others() {
        let mut made = HashMap::new();
        for list in lists().into_iter().filter(|list| list.len() == 3) {
            is_unique(&mut made, &list, |at, text| if at == 1 { Open(text) } else { Closed(text) });
        }
        assert!(made.len() > 1_000);
    }
}
