//! A measurement: whether a refusal takes longer for a token that begins as a right one does.

use std::{hint::black_box, time::Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

/// Refusals of each class.
const SAMPLES: usize = 100_000;
/// Above this, two means differ for sure.
const MOST_T: f64 = 4.5;
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Welch's t of two samples.
#[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds are small")]
fn welch(samples: &[Vec<u64>; 2]) -> f64 {
    let [(mean_a, error_a), (mean_b, error_b)] = samples.each_ref().map(|sample| {
        let count = sample.len() as f64;
        let mean = sample.iter().map(|&time| time as f64).sum::<f64>() / count;
        let squares = sample.iter().map(|&time| (time as f64 - mean).powi(2)).sum::<f64>();
        (mean, squares / (count - 1.0) / count)
    });
    (mean_a - mean_b) / (error_a + error_b).sqrt()
}

/// `cargo test --release --lib -- --ignored --nocapture timing`
#[test]
#[ignore = "measures time: run it alone, in release"]
fn a_refusal_takes_no_longer_for_a_token_that_shares_31_bytes_with_a_right_one() {
    let mut random = StdRng::seed_from_u64(31);
    let mut letters = |count: usize| -> String {
        (0..count).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
    };
    let right = format!("once_{}", letters(43));
    let digest = Digest::of(right.as_bytes()).to_hex();
    let policy = policy(&two(&format!("token_sha256 = ['{digest}']"), "unix_uid = [1]"));
    assert_eq!(by_bearer(&policy, &right), Ok("a".into()));

    // Both classes are made alike, and measured in one random order.
    let mut refused: Vec<(usize, String)> = (0..2 * SAMPLES)
        .map(|at| {
            let kept = if at % 2 == 0 { 31 } else { "once_".len() };
            (at % 2, format!("Bearer {}{}", &right[..kept], letters(right.len() - kept)))
        })
        .collect();
    let mut order = StdRng::seed_from_u64(32);
    for at in (1..refused.len()).rev() {
        refused.swap(at, order.random_range(0..=at));
    }
    let mut samples = [Vec::new(), Vec::new()];
    for (class, header) in &refused {
        let values = [header.as_bytes()];
        let credentials = Credentials { authorization: &values, ..Credentials::default() };
        let start = Instant::now();
        let answer = black_box(policy.authenticate(black_box(&credentials), now()));
        let time = start.elapsed();
        assert_eq!(answer.err(), Some(Unauthenticated::Unknown));
        samples[*class].push(u64::try_from(time.as_nanos()).unwrap());
    }
    // What the scheduler interrupted says nothing: the slowest hundredth of both together is
    // left out.
    let mut all = samples.concat();
    all.sort_unstable();
    let most = all[all.len() / 100 * 99];
    for sample in &mut samples {
        sample.retain(|time| *time <= most);
    }
    let t = welch(&samples);
    println!("Welch's t = {t:.2} of {} and {} refusals", samples[0].len(), samples[1].len());
    assert!(t.abs() < MOST_T, "{t}");
}
