//! The attempts at an event of several names, each of which may have been claimed by itself.

use super::*;

on_all_stores!(
    the_name_that_was_claimed_most_often_counts,
    the_name_that_was_claimed_most_often_is_given_up,
);

/// Has "often" claimed twice and "own" once, the latter by the request `r1`, and all of
/// these claims lapse.
async fn claimed_apart(f: &Fixture, turns: &mut Turns) {
    let own = BeginTurnRequest { request_id: "r1".into(), ..wish("own", &[]) };
    for (request, attempt) in [(wish("often", &[]), 1), (wish("often", &[]), 2), (own, 1)] {
        assert_eq!(turn(begin(turns, request).await).attempt, attempt);
        f.clock.advance(Duration::from_mins(1));
    }
}

/// A repetition of a request whose claim has lapsed is an attempt as any other.
async fn the_name_that_was_claimed_most_often_counts(f: Fixture) {
    let mut turns = turns(&f).await;
    claimed_apart(&f, &mut turns).await;
    let again = BeginTurnRequest { request_id: "r1".into(), ..wish("own", &["often"]) };
    let mine = turn(begin(&mut turns, again.clone()).await);
    assert_eq!(mine.attempt, 3);
    // While the claim runs it is the same one.
    assert_eq!(turn(begin(&mut turns, again).await).turn_id, mine.turn_id);
    finish(&mut turns, mine, TurnOutcome::Succeeded).await;
}

async fn the_name_that_was_claimed_most_often_is_given_up(f: Fixture) {
    let mut turns = turns(&f).await;
    claimed_apart(&f, &mut turns).await;
    let again =
        BeginTurnRequest { request_id: "r1".into(), max_attempts: 2, ..wish("own", &["often"]) };
    let Outcome::GaveUp(gave_up) = begin(&mut turns, again).await else { panic!() };
    let event = gave_up.event.unwrap();
    assert_eq!((event.outcome(), event.attempt), (TurnOutcome::GaveUp, 2));
}
