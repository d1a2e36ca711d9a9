//! What happens in the workspace: the same for the same seed.

use std::ops::Range;

use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{SECOND, START};

/// How far apart deliveries come, on average: 50 a second.
const PACE: i64 = SECOND / 50;
/// How late a delivery may be: neighbours in a thread overtake each other.
const JITTER: Range<i64> = 0..3 * SECOND;
/// The most channels.
const CHANNELS: usize = 20;

/// One message: one event, however often and by whatever name it is delivered.
pub struct Message {
    pub thread: usize,
    pub channel: String,
    pub ts: String,
    /// Empty for the first in its thread.
    pub thread_ts: String,
    /// Whether it comes twice, under two event ids.
    pub has_twin: bool,
}

/// What Slack delivers, under an event id of its own, until it is acknowledged.
pub struct Delivery {
    pub message: usize,
    pub event_id: String,
    pub due: i64,
    /// Whether the first acknowledgement comes too late for Slack.
    pub acknowledged_late: bool,
    /// Whether the first try waits while another run works in the thread.
    pub waits: bool,
    pub keeps: bool,
    /// What happens to the first try, should it be granted the turn.
    pub mishap: Option<Mishap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// The resource is out of order.
    Fails,
    /// The run stands still before it writes, until its claim has lapsed, and this long.
    WritesLate(i64),
    /// The run stands still when it has written, likewise.
    EndsLate(i64),
}

pub struct Plan {
    pub threads: usize,
    pub messages: Vec<Message>,
    pub deliveries: Vec<Delivery>,
}

impl Plan {
    /// Some `threads` with `deliveries` of messages, of which `pairs` in 100 come twice: as
    /// message and as `app_mention`, under two event ids.
    pub fn new(threads: usize, deliveries: usize, pairs: u32, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let span = PACE * i64::try_from(deliveries).unwrap_or(i64::MAX / PACE);
        let mut times: Vec<Vec<i64>> = vec![Vec::new(); threads];
        let mut twice = Vec::new();
        let mut count = 0;
        while count < deliveries {
            // Each has one, and some have many.
            let some = random.random_range(0..threads).min(random.random_range(0..threads));
            let thread = if twice.len() < threads { twice.len() } else { some };
            times[thread].push(START + random.random_range(0..span));
            let is_pair = random.random_ratio(pairs.min(100), 100) && count + 1 < deliveries;
            twice.push(is_pair);
            count += 1 + usize::from(is_pair);
        }
        let mut plan = Self { threads, messages: Vec::new(), deliveries: Vec::new() };
        for (thread, mut times) in times.into_iter().enumerate() {
            times.sort_unstable();
            let first = times.first().map(|at| ts(*at, thread, 0));
            for (place, at) in times.into_iter().enumerate() {
                let is_pair = twice[plan.messages.len()];
                for _ in 0..=usize::from(is_pair) {
                    let delivery = plan.delivery(at, &mut random);
                    plan.deliveries.push(delivery);
                }
                let thread_ts = first.clone().filter(|_| place > 0).unwrap_or_default();
                let channel = format!("C{}", thread % CHANNELS);
                let ts = ts(at, thread, place);
                let has_twin = is_pair;
                plan.messages.push(Message { thread, channel, ts, thread_ts, has_twin });
            }
        }
        plan
    }

    /// Of the message that is to come next.
    fn delivery(&self, at: i64, random: &mut impl Rng) -> Delivery {
        let mishap = match random.random_range(0..400) {
            0 | 1 => Some(Mishap::Fails),
            // Others have worked in the thread by then.
            2 | 3 => Some(Mishap::WritesLate(20 * SECOND)),
            // Perhaps nobody has yet.
            4 => Some(Mishap::EndsLate(random.random_range(0..3) * 10 * SECOND)),
            _ => None,
        };
        Delivery {
            message: self.messages.len(),
            event_id: format!("Ev{}", self.deliveries.len()),
            due: at + random.random_range(JITTER),
            acknowledged_late: random.random_ratio(1, 10),
            waits: random.random_ratio(7, 8),
            // The server renews such a run's turn, so that it would not lapse.
            keeps: random.random_ratio(1, 3) && matches!(mishap, None | Some(Mishap::Fails)),
            mishap,
        }
    }
}

/// A message's name in its channel: like Slack's, and another in every thread.
fn ts(at: i64, thread: usize, place: usize) -> String {
    format!("{}.{:06}", at / SECOND, (thread * 1_009 + place) % 1_000_000)
}
