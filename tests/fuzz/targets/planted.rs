//! Faults that are planted, to see that they are found: each at one input in a hundred.

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::{chance::Chance, target::Target};

#[derive(Clone, Copy)]
pub enum Planted {
    /// In another task, as in a server.
    Panic,
    Memory,
    Leak,
    Error,
}

impl Planted {
    pub const ALL: [Self; 4] = [Self::Panic, Self::Memory, Self::Leak, Self::Error];
}

impl Target for Planted {
    fn name(&self) -> &'static str {
        match self {
            Self::Panic => "planted-panic",
            Self::Memory => "planted-memory",
            Self::Leak => "planted-leak",
            Self::Error => "planted-error",
        }
    }

    /// None of a run of all targets.
    fn share(&self) -> u64 {
        0
    }

    fn input(&self, chance: &mut Chance) -> Vec<u8> {
        vec![u8::try_from(chance.below(100)).unwrap_or(0)]
    }

    fn take<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<(), String>> {
        let (fault, is_bad) = (*self, input == [42]);
        async move {
            match fault {
                _ if !is_bad => {}
                Self::Panic => drop(tokio::spawn(async { panic!("planted") }).await),
                Self::Memory => drop(std::hint::black_box(vec![1_u8; 9 << 20])),
                Self::Leak => std::mem::forget(std::hint::black_box(vec![1_u8; 64 << 10])),
                Self::Error => return Err("planted".to_owned()),
            }
            Ok(())
        }
        .boxed()
    }
}
