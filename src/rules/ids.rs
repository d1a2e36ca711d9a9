//! New ids.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::Version;
use crate::domain::{LeaseId, RequestId};

/// Where the rules get new ids from.
#[derive(Debug, Default)]
pub enum Ids {
    /// Random ones.
    #[default]
    Random,
    /// The same ones for the same seed.
    Seeded {
        /// The seed.
        seed: u64,
        /// How many were drawn.
        drawn: u64,
    },
}

impl Ids {
    /// Ids that depend on `seed` alone.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self::Seeded { seed, drawn: 0 }
    }

    /// Further ids, for somebody else.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        match self {
            Self::Random => Self::Random,
            Self::Seeded { .. } => Self::seeded(self.uuid().as_u64_pair().0),
        }
    }

    fn uuid(&mut self) -> Uuid {
        match self {
            Self::Random => Uuid::new_v4(),
            Self::Seeded { seed, drawn } => {
                *drawn += 1;
                let random = xxh3_128_with_seed(&drawn.to_le_bytes(), *seed);
                uuid::Builder::from_random_bytes(random.to_le_bytes()).into_uuid()
            }
        }
    }

    /// A new lease's name.
    pub fn lease(&mut self) -> LeaseId {
        LeaseId::from_uuid(self.uuid())
    }

    /// An attempt of nobody's.
    pub fn request(&mut self) -> RequestId {
        RequestId::from_uuid(self.uuid())
    }

    /// A new version of a record.
    #[expect(clippy::cast_possible_wrap, reason = "62 random bits, whatever the sign")]
    pub fn version(&mut self) -> Version {
        Version(self.uuid().as_u64_pair().1 as i64)
    }
}
