//! Keys as bots have them, made without an allocation each.

use std::time::Instant;

const TEAMS: [&str; 8] = [
    "T024BE7LD",
    "T0G9PQBBK",
    "T061EG9R6",
    "T2ABCDEF1",
    "T3XYZQWE2",
    "T4MNBVCX3",
    "T5LKJHGF4",
    "T6POIUYT5",
];

/// The keys of one connection: no two loads and no two connections share one.
pub struct Keys {
    seed: u64,
    connection: usize,
    team: usize,
    begun: Instant,
    count: u64,
}

impl Keys {
    /// `seed` rises from load to load, by the microseconds between them or more:
    /// rising ids begin with it.
    pub fn new(seed: u64, connection: usize) -> Self {
        Self { seed, connection, team: connection, begun: Instant::now(), count: 0 }
    }

    /// The same keys, of the team of that number.
    pub fn of(self, team: Option<usize>) -> Self {
        Self { team: team.unwrap_or(self.team), ..self }
    }

    /// The same keys, of the team whose session all callers of a load share.
    pub fn of_hot_session(self) -> Self {
        self.of(Some(0))
    }

    /// The team whose events these are.
    pub fn team(&self) -> &'static str {
        TEAMS[self.team % TEAMS.len()]
    }

    /// Writes a new event's id, one that rises with time over all connections,
    /// as Slack's nearly do.
    pub fn rising(&mut self, id: &mut String) {
        let micros = self.seed + self.begun.elapsed().as_micros() as u64;
        self.count += 1;
        write(id, &[(micros, 13), (self.connection as u64, 2), (self.count, 4)]);
    }

    /// Writes a new event's id, anywhere in the table.
    pub fn random(&mut self, id: &mut String) {
        self.count += 1;
        let number = mix(mix(self.seed ^ (self.connection as u64) << 56) ^ self.count);
        write(id, &[(number, 16), (self.count, 3)]);
    }

    /// Writes the id of the event `number`, the same each time.
    pub fn known(&self, number: u64, id: &mut String) {
        write(id, &[(self.seed, 13), (self.connection as u64, 2), (number, 4)]);
    }

    /// The one team and session that all callers of a load share.
    pub fn hot_session(&self) -> (&'static str, String) {
        let team = TEAMS[0];
        (team, format!("{team}:hot:{:013x}", self.seed))
    }

    /// A session of one caller's own.
    pub fn session(&self, caller: usize) -> String {
        format!("{}:C{}:{:013x}.{caller}", self.team(), self.connection, self.seed)
    }
}

/// Writes `Ev` and the last hexadecimal digits of each number.
fn write(id: &mut String, parts: &[(u64, u32)]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    id.clear();
    id.push_str("Ev");
    for &(number, digits) in parts {
        let nibbles = (0..digits).rev().map(|place| (number >> (4 * place)) as usize & 15);
        id.extend(nibbles.map(|nibble| char::from(DIGITS[nibble])));
    }
}

/// A number spread over all of the range: the finalizer of SplitMix64,
/// <https://doi.org/10.1145/2660193.2660195>.
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
