//! A bound on how much of one thing is done in a span of time.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Admits up to `most` in each window of time, and counts the others.
#[derive(Debug)]
pub(super) struct Window {
    length: Duration,
    most: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    begun: Option<Instant>,
    admitted: u32,
    /// Not admitted since the last one that was.
    left_out: u64,
}

impl Window {
    pub(super) fn new(length: Duration, most: u32) -> Self {
        Self { length, most, state: Mutex::default() }
    }

    /// Admits one: how many before it were not.
    pub(super) fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.begun.is_none_or(|begun| now.duration_since(begun) >= self.length) {
            (state.begun, state.admitted) = (Some(now), 0);
        }
        if state.admitted >= self.most {
            state.left_out += 1;
            return None;
        }
        state.admitted += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_few_are_admitted_and_the_next_one_knows_how_many_were_not() {
        let (length, begun) = (Duration::from_secs(10), Instant::now());
        let window = Window::new(length, 3);
        let admitted: Vec<_> = (0..10).map(|_| window.admit(begun)).collect();
        assert_eq!(admitted[..3], [Some(0); 3]);
        assert_eq!(admitted[3..], [None; 7]);
        assert_eq!(window.admit(begun + length), Some(7));
        assert_eq!(window.admit(begun + length), Some(0));
    }
}
