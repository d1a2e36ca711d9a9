//! Random choices of one input. They depend on the seed, the target and the input's number
//! alone, so that any input can be made again without those before it.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub struct Chance(StdRng);

impl Chance {
    pub fn of(seed: u64, target: &str, number: u64) -> Self {
        let seed = xxh3_64_with_seed(target.as_bytes(), seed);
        Self(StdRng::seed_from_u64(xxh3_64_with_seed(&number.to_le_bytes(), seed)))
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound.max(1))
    }

    pub fn between(&mut self, least: usize, most: usize) -> usize {
        self.0.random_range(least..=most)
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn byte(&mut self) -> u8 {
        self.0.random()
    }

    pub fn number(&mut self) -> u64 {
        self.0.random()
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }
}
