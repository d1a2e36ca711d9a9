//! Callers: bots that mark events, take leases and run turns, and operators that repair.

use std::{fmt::Display, sync::Arc, time::Duration};

use oncegate::{
    domain::{Delivered, EventKey, Id, SessionKey, Team, Ttl, limits},
    session::SessionError,
};
use tokio::time::{Instant, sleep};

use super::{
    chance::Chance,
    checker::{Checker, GrantId},
    world::{Replica, World},
};

mod leases;
mod marks;
mod operator;
mod runs;
mod turns;

pub const EVENTS: u64 = 12;
pub const SESSIONS: u64 = 3;
/// How long a caller waits for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);

fn id(text: String) -> Id {
    Id::parse("id", text).unwrap()
}

fn ttl(span: Duration) -> Ttl {
    Ttl::parse(Some(span), span, &(Duration::from_millis(1)..=limits::CLAIM_MEMORY)).unwrap()
}

/// An event; every third one has an alias.
pub fn event(number: u64) -> Delivered {
    let key = |name: &str| EventKey::given(Team::stored("T"), id(format!("{name}{number}")));
    let aliases =
        if number.is_multiple_of(3) { vec![format!("alias{number}")] } else { Vec::new() };
    Delivered::new(key("event"), aliases, None, None)
}

/// The same event, sometimes delivered with its alias first, or alone.
fn delivered(number: u64, chance: &mut Chance) -> Delivered {
    let key = EventKey::given(Team::stored("T"), id(format!("alias{number}")));
    match chance.below(3) {
        0 if number.is_multiple_of(3) => {
            Delivered::new(key, vec![format!("event{number}")], None, None)
        }
        1 if number.is_multiple_of(3) => Delivered::new(key, Vec::new(), None, None),
        _ => event(number),
    }
}

pub fn session(number: u64) -> SessionKey {
    SessionKey::given(Team::stored("T"), id(format!("session{number}")))
}

/// What the checker and the history call an event.
pub fn event_name(number: u64) -> String {
    format!("event {number}")
}

/// What the checker and the history call a session.
pub fn session_name(number: u64) -> String {
    format!("session {number}")
}

/// A bot, which at times is an operator, for as long as the simulation lasts.
pub async fn run(world: Arc<World>, mut chance: Chance, number: usize) {
    let name = format!("bot{number}");
    let mut bot = Bot { world, chance: chance.fork(), name, requests: 0 };
    loop {
        sleep(chance.millis(0, 2_500)).await;
        match chance.below(24) {
            0..6 => bot.mark().await,
            6..10 => bot.lease().await,
            10..13 => bot.hold().await,
            13..18 => bot.turn().await,
            18..22 => bot.run_turn().await,
            22 => bot.look().await,
            _ if chance.one_in(4) => bot.operate().await,
            _ => {}
        }
    }
}

struct Bot {
    world: Arc<World>,
    chance: Chance,
    name: String,
    requests: u64,
}

impl Bot {
    fn request(&mut self) -> Id {
        self.requests += 1;
        id(format!("{} {}", self.name, self.requests))
    }

    fn note(&self, line: impl FnOnce() -> String) {
        self.world.note(|| format!("{} {}", self.name, line()));
    }

    fn check(&self, check: impl FnOnce(&mut Checker)) {
        self.world.check(check);
    }

    /// The moment of a call, and the replica to call.
    fn sends(&mut self) -> (Instant, Arc<Replica>) {
        (Instant::now(), self.world.replica(&mut self.chance))
    }

    /// How long the body of a handler takes.
    fn work(&mut self) -> Duration {
        if self.chance.one_in(6) {
            self.chance.millis(5_000, 30_000)
        } else {
            self.chance.millis(0, 3_000)
        }
    }

    /// Half of the callers wait for a session.
    fn wait(&mut self) -> Duration {
        if self.chance.one_in(2) { Duration::ZERO } else { self.chance.millis(0, 10_000) }
    }

    /// A call that began at `sent` came to nothing because of a fault: there must have been one.
    fn failed(&self, sent: Instant, call: &str, why: &str) {
        if self.world.is_calm_since(sent) {
            self.check(|checker| {
                checker.violations.push(format!("{call}: failed without a fault: {why}"));
            });
        }
    }

    /// The server refused a call of the holder of these grants, as if one had ended.
    fn refused(&self, grants: &[(String, GrantId)], why: &str) {
        self.check(|checker| checker.refused(grants, why));
    }
}

/// Whether a call came to nothing because of a fault, rather than of what is on record.
fn is_fault(error: &SessionError) -> bool {
    matches!(
        error,
        SessionError::Call(_)
            | SessionError::Draining
            | SessionError::Timeout(_)
            | SessionError::TooManyCalls
            | SessionError::TooManyOfTeam
            | SessionError::QueueFull
    )
}

/// An answer, in the history.
fn outcome<T, E: Display, L>(answer: &Result<Result<T, E>, L>) -> String {
    match answer {
        Ok(Ok(_)) => "done".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    }
}
