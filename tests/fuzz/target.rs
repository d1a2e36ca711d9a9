//! What is fuzzed.

use futures_util::future::BoxFuture;

use crate::chance::Chance;

/// One surface that takes bytes of strangers.
pub trait Target {
    /// Its name, which is also its folder in `tests/data/fuzz`.
    fn name(&self) -> &'static str;

    /// How many of a hundred inputs of a whole run are for it.
    fn share(&self) -> u64;

    /// The most that one input may make the process allocate, in bytes.
    fn bound(&self) -> usize {
        8 << 20
    }

    /// Makes one input.
    fn input(&self, chance: &mut Chance) -> Vec<u8>;

    /// Takes one input. What breaks a guarantee is an error.
    fn take<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<(), String>>;

    /// Called before and after a block of inputs, with nothing under way.
    fn start(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// The same at the end: releases all memory.
    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
