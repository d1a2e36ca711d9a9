//! A request for a turn is repeated while a clock that was stepped back, and runs, catches up.

use std::sync::Arc;

use oncegate::{
    domain::{Begin, Begun, Obtained, PriorGrant, ResumedBy, Timestamp},
    store::{Connection, ManualClock, Verdict, memory::Memory, postgres::Postgres},
};
use tokio::time::sleep;

use super::*;
use crate::harness::{ops, postgres::new_database};

const START: i64 = 1_790_000_000_000_000;

async fn begin(store: &mut impl Connection, asked: &Begin) -> (Timestamp, Obtained) {
    let begun = store.change_turns(&[asked], &[]).await.unwrap().begins.pop();
    let Some(Verdict::Decided(Begun::Granted { claim, obtained, .. })) = begun else {
        panic!("{begun:?}")
    };
    (claim.claim_time, obtained)
}

/// How often a repetition finds the claim before it has the turn.
async fn finds(mut store: impl Connection, clock: &ManualClock, step: Duration) -> usize {
    let asked = Begin { session: None, ..ops::begin(&format!("{step:?}"), &[]) };
    assert_eq!(begin(&mut store, &asked).await.1, Obtained::Granted);
    clock.set(clock.now().minus(step).as_micros());
    let (mut resumes, mut finds) = (None, 0);
    loop {
        sleep(Duration::from_millis(2)).await;
        match begin(&mut store, &Begin { resumes, ..asked.clone() }).await {
            (id, Obtained::Found(by)) => resumes = Some(PriorGrant { id, resumed: by }),
            (_, obtained) => {
                assert_eq!(obtained, Obtained::Resumed(ResumedBy::Nobody));
                return finds;
            }
        }
        finds += 1;
    }
}

#[tokio::test]
async fn a_repetition_has_its_turn_before_the_clock_has_caught_up() {
    let clock = Arc::new(ManualClock::running_from(START));
    let memory = Memory::new(Clock::Manual(Arc::clone(&clock)));
    let postgres = Clock::Manual(Arc::clone(&clock));
    let postgres = Postgres::new(&new_database().await, secs(60), postgres).unwrap();
    postgres.migrate().await.unwrap();
    // So little is no step: the claim runs for as long as it was written.
    let little = Duration::from_millis(900);
    for step in [little, HOUR] {
        assert_eq!(finds(memory.connection(Work::Turns), &clock, step).await, 1);
    }
    assert_eq!(finds(postgres.connection(Work::Turns), &clock, little).await, 1);
    // It is shortened, and so is another one.
    assert_eq!(finds(postgres.connection(Work::Turns), &clock, HOUR).await, 2);
}
