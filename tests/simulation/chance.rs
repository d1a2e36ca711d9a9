//! Random choices that depend on a seed.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

pub struct Chance(StdRng);

impl Chance {
    pub fn of(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Choices of its own, for another task.
    pub fn fork(&mut self) -> Self {
        Self::of(self.0.random())
    }

    pub fn seed(&mut self) -> u64 {
        self.0.random()
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(0..bound)
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.0.random_range(least..=most))
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.place(items)]
    }

    pub fn place<T>(&mut self, items: &[T]) -> usize {
        self.0.random_range(0..items.len())
    }
}
