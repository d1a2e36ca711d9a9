//! Rates, calls in flight, waiters.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    auth::{OverLimit, Principal, PrincipalLimits, Rate, Role, Usage},
    domain::TeamScope,
};

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn principal(limits: PrincipalLimits) -> Principal {
    let usage = Arc::new(Usage::default());
    Principal { name: "a".into(), role: Role::Bot, teams: TeamScope::All, limits, usage }
}

#[test]
fn a_rate_admits_its_burst_and_then_one_per_interval() {
    let usage = Usage::default();
    let start = Instant::now();
    let rate = Rate { per_second: 10, burst: 3 };
    for _ in 0..3 {
        assert_eq!(usage.admit(rate, start), Ok(()));
    }
    let pause = usage.admit(rate, start).unwrap_err();
    assert_eq!(pause, millis(100));
    assert!(usage.admit(rate, start + millis(99)).is_err());
    assert_eq!(usage.admit(rate, start + pause), Ok(()));
    assert!(usage.admit(rate, start + pause).is_err());
    // After any pause, the burst again and no more.
    let later = start + Duration::from_hours(1);
    assert_eq!((0..10).filter(|_| usage.admit(rate, later).is_ok()).count(), 3);
}

#[test]
fn over_a_long_time_no_more_than_the_rate_and_the_burst_are_admitted() {
    let usage = Usage::default();
    let start = Instant::now();
    let rate = Rate { per_second: 2_000, burst: 4_000 };
    let admitted =
        (0..100_000).filter(|at| usage.admit(rate, start + millis(at / 10)).is_ok()).count();
    // 10 s.
    assert!((24_000 - 2..=24_000 + 2).contains(&admitted), "{admitted}");
}

#[test]
fn a_refused_call_costs_nothing() {
    let usage = Usage::default();
    let start = Instant::now();
    let rate = Rate { per_second: 1, burst: 1 };
    assert!(usage.admit(rate, start).is_ok());
    for _ in 0..1_000 {
        assert_eq!(usage.admit(rate, start), Err(Duration::from_secs(1)));
    }
    assert!(usage.admit(rate, start + Duration::from_secs(1)).is_ok());
}

#[test]
fn a_lower_rate_after_a_reload_does_not_lock_out() {
    let usage = Usage::default();
    let start = Instant::now();
    let slow = Rate { per_second: 1, burst: 1_000 };
    while usage.admit(slow, start).is_ok() {}
    let fast = Rate { per_second: 1_000, burst: 1 };
    let pause = usage.admit(fast, start).unwrap_err();
    assert!(pause <= millis(1_001), "{pause:?}");
    assert!(usage.admit(fast, start + pause).is_ok());
}

/// A call that read its time before another did does not move the rate back.
#[test]
fn a_late_call_with_an_early_time_does_not_add_to_the_rate() {
    let usage = Usage::default();
    let start = Instant::now();
    let rate = Rate { per_second: 10, burst: 2 };
    let later = start + millis(500);
    assert!(usage.admit(rate, later).is_ok() && usage.admit(rate, later).is_ok());
    for _ in 0..100 {
        assert!(usage.admit(rate, start).is_err());
    }
    assert_eq!(usage.admit(rate, later), Err(millis(100)));
}

#[test]
fn threads_share_a_rate() {
    let usage = Usage::default();
    let start = Instant::now();
    let rate = Rate { per_second: 1, burst: 1_000 };
    let admitted: usize = std::thread::scope(|scope| {
        let count = || (0..1_000).filter(|_| usage.admit(rate, start).is_ok()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(admitted, 1_000);
}

#[test]
fn a_time_before_the_start_and_extreme_rates_do_not_panic() {
    let usage = Usage::default();
    let now = Instant::now();
    for rate in [
        Rate { per_second: 0, burst: 0 },
        Rate { per_second: u32::MAX, burst: u32::MAX },
        Rate { per_second: 1, burst: u32::MAX },
    ] {
        for at in [now.checked_sub(Duration::from_secs(1)), now.checked_add(Duration::MAX / 4)] {
            let _ = usage.admit(rate, at.unwrap_or(now));
        }
    }
}

#[test]
fn calls_in_flight_and_waiters_are_bounded_and_end_with_their_places() {
    let limits = PrincipalLimits { rate: None, in_flight: Some(2), waiters: Some(1) };
    let principal = principal(limits);
    let now = Instant::now();
    let first = principal.begin_call(now).unwrap();
    let _second = principal.begin_call(now).unwrap();
    assert_eq!(principal.begin_call(now).unwrap_err(), OverLimit::InFlight);
    drop(first);
    let _third = principal.begin_call(now).unwrap();
    let waiting = principal.begin_wait().unwrap();
    assert_eq!(principal.begin_wait().unwrap_err(), OverLimit::Waiters);
    assert_eq!(principal.usage.counts(), (2, 1));
    drop(waiting);
    assert!(principal.begin_wait().is_ok());
}

#[test]
fn a_call_that_one_limit_refuses_counts_against_none() {
    let rate = Some(Rate { per_second: 1, burst: 2 });
    let principal = principal(PrincipalLimits { rate, in_flight: Some(1), waiters: None });
    let now = Instant::now();
    let first = principal.begin_call(now).unwrap();
    // Refused for the calls in flight: the rate still has one.
    assert_eq!(principal.begin_call(now).unwrap_err(), OverLimit::InFlight);
    drop(first);
    drop(principal.begin_call(now).unwrap());
    // Refused for the rate: nothing is in flight.
    let retry_after = Duration::from_secs(1);
    assert_eq!(principal.begin_call(now).unwrap_err(), OverLimit::Rate { retry_after });
    assert_eq!(principal.usage.counts(), (0, 0));
}
