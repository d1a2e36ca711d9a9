//! Names that the server gives: leases and turns. An input holds a placeholder of the same
//! length, so that the same seed gives the same inputs; it is replaced before it is sent.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Stands for the latest lease.
pub const LEASE: &str = "LEASE-LEASE-LEASE-LEASE-LEASE-LEASE-";
/// What a placeholder of a turn begins and goes on with.
const TURN: &str = "TURN-";
/// How long turns of short names are.
pub const TURN_LENGTHS: [usize; 4] = [40, 70, 43, 74];

/// A placeholder for a turn of this length.
pub fn turn(length: usize) -> String {
    TURN.repeat(length / TURN.len() + 1)[..length].to_owned()
}

/// The latest names, by length.
#[derive(Default)]
pub struct Remembered(Mutex<HashMap<usize, String>>);

impl Remembered {
    pub fn note(&self, name: &str) {
        if !name.is_empty() {
            let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            names.insert(name.len(), name.to_owned());
        }
    }

    /// Puts names in the place of placeholders.
    pub fn fill_in(&self, input: &mut [u8]) {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = names.get(&LEASE.len()).map(|name| (LEASE.to_owned(), name.clone()));
        let turns = TURN_LENGTHS
            .iter()
            .filter_map(|length| names.get(length).map(|name| (turn(*length), name.clone())));
        let mut all: Vec<_> = lease.into_iter().chain(turns).collect();
        // A placeholder begins with every shorter one.
        all.sort_by_key(|(placeholder, _)| std::cmp::Reverse(placeholder.len()));
        for (placeholder, name) in all {
            let mut at = 0;
            while let Some(found) = find(&input[at..], placeholder.as_bytes()) {
                at += found;
                input[at..at + name.len()].copy_from_slice(name.as_bytes());
            }
        }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}
