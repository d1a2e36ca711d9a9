//! Fairness between teams, over a store that does nothing.

use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt as _;
use tokio::{sync::Semaphore, task::JoinHandle};

use super::{
    turns::{IN_USE, SHORT},
    *,
};
use crate::telemetry::Metrics;

/// A batch's time.
const TOOK: Duration = Duration::from_millis(10);

struct Item(&'static str, u32);

impl Op for Item {
    type Key<'a> = (&'a str, u32);
    type Row = u32;
    type Answer = u32;

    fn key(&self) -> (&str, u32) {
        (self.0, self.1)
    }

    fn team(&self) -> &str {
        self.0
    }

    fn answer(&self, row: &u32) -> Verdict<u32> {
        if *row == u32::MAX { Verdict::Retry } else { Verdict::Decided(*row) }
    }
}

/// How many operations a batch had of each team.
type Counts = Vec<(&'static str, usize)>;

/// The batches that a store ran.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Counts>>>);

impl Log {
    fn batches(&self) -> Vec<Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// In which batch, from 1, `team` was first.
    fn first(&self, team: &str) -> Option<usize> {
        let has = |batch: &Vec<(&str, usize)>| batch.iter().any(|(of, _)| *of == team);
        self.batches().iter().position(has).map(|place| place + 1)
    }
}

struct Slow {
    log: Log,
    /// One for each batch that may run.
    gate: Arc<Semaphore>,
    /// Whose operations are never decided.
    stuck: &'static str,
}

impl Reset for Slow {
    fn reset(&mut self) {}
}

impl Executes<Item> for Slow {
    async fn execute(&mut self, ops: &[&Item]) -> Result<Vec<Verdict<u32>>, StoreError> {
        self.gate.acquire().await.expect("open").forget();
        let mut batch = Counts::new();
        for op in ops {
            match batch.last_mut() {
                Some((team, count)) if *team == op.0 => *count += 1,
                _ => batch.push((op.0, 1)),
            }
        }
        self.log.0.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
        tokio::time::sleep(TOOK).await;
        let row = |op: &&Item| Verdict::Decided(if op.0 == self.stuck { u32::MAX } else { op.1 });
        Ok(ops.iter().map(row).collect())
    }
}

/// A lane whose batches wait for the gate.
fn lane(capacity: usize, batch: usize, stuck: &'static str) -> (Lane<Item>, Log, Arc<Semaphore>) {
    let (log, gate) = (Log::default(), Arc::new(Semaphore::new(0)));
    let store = Slow { log: log.clone(), gate: Arc::clone(&gate), stuck };
    let metrics = Metrics::new().lane("test");
    (Lane::start(&Handle::current(), store, capacity, batch, metrics), log, gate)
}

type Calls = Vec<JoinHandle<Vec<Result<u32, CallError>>>>;

/// Calls with `size` operations each, queued in that order.
fn calls(lane: &Lane<Item>, team: &'static str, count: u32, size: u32) -> Calls {
    let call = |number| {
        let ops = (0..size).map(|op| Item(team, number * size + op)).collect();
        tokio::spawn(lane.call_all(ops))
    };
    (0..count).map(call).collect()
}

/// How many of them were refused. The others were answered, in order.
async fn refused(calls: Calls) -> usize {
    let mut refused = 0;
    for (number, call) in calls.into_iter().enumerate() {
        let answers = call.await.unwrap();
        if answers.iter().all(|answer| matches!(answer, Err(CallError::Overloaded))) {
            refused += 1;
            continue;
        }
        let size = answers.len();
        for (place, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer.unwrap() as usize, number * size + place);
        }
    }
    refused
}

/// Lets the lane take its first batch.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn one_team_has_its_calls_run_whole_and_in_order() {
    let (lane, log, gate) = lane(16_384, 1_024, "");
    let noisy = calls(&lane, "noisy", 5, 500);
    settle().await;
    gate.add_permits(1_000);
    assert_eq!(refused(noisy).await, 0);
    assert_eq!(log.batches(), [[("noisy", 1_000)], [("noisy", 1_000)], [("noisy", 500)]]);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_team_is_in_the_next_batch_which_is_a_short_one() {
    let (lane, log, gate) = lane(16_384, 1_024, "");
    let noisy = calls(&lane, "noisy", 16, 1_000);
    settle().await;
    let quiet = calls(&lane, "quiet", 1, 1);
    gate.add_permits(1_000);
    assert_eq!(refused(quiet).await, 0);
    assert_eq!(log.batches()[..2], [vec![("noisy", 1_000)], vec![("noisy", SHORT), ("quiet", 1)]]);
    assert_eq!(refused(noisy).await, 0);
    let rows: usize = log.batches().iter().flatten().map(|(_, count)| count).sum();
    assert_eq!(rows, 16_001);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_team_is_in_the_next_batch_however_many_others_have_a_backlog() {
    const TEAMS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let (lane, log, gate) = lane(16_384, 1_024, "");
    let noisy: Vec<Calls> = TEAMS.iter().map(|team| calls(&lane, team, 2, 1_000)).collect();
    settle().await;
    let quiet = calls(&lane, "quiet", 1, 5);
    gate.add_permits(1_000);
    assert_eq!(refused(quiet).await, 0);
    let batches = log.batches();
    assert!(batches[1].contains(&("quiet", 5)), "{batches:?}");
    assert_eq!(batches[1].iter().map(|(_, count)| count).sum::<usize>(), SHORT + 5);
    for noisy in noisy {
        assert_eq!(refused(noisy).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn teams_with_a_backlog_have_equal_shares_whatever_the_size_of_their_calls() {
    let (lane, log, gate) = lane(1_000_000, 1_024, "");
    let large = calls(&lane, "large", 40, 1_000);
    let small = calls(&lane, "small", 400, 100);
    settle().await;
    gate.add_permits(20);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rows = |team| {
        let of = |(name, count): &(&str, usize)| if *name == team { *count } else { 0 };
        log.batches().iter().flatten().map(of).sum::<usize>()
    };
    assert!(rows("large").abs_diff(rows("small")) <= 2 * 1_024, "{:?}", log.batches());
    gate.add_permits(1_000);
    assert_eq!(refused(large).await, 0);
    assert_eq!(refused(small).await, 0);
}

#[tokio::test(start_paused = true)]
async fn more_teams_than_a_batch_has_room_for_take_turns() {
    const TEAMS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let (lane, log, gate) = lane(64, 4, "");
    let all: Vec<Calls> = TEAMS.iter().map(|team| calls(&lane, team, 3, 1)).collect();
    settle().await;
    gate.add_permits(1_000);
    for calls in all {
        assert_eq!(refused(calls).await, 0);
    }
    let last = TEAMS.iter().filter_map(|team| log.first(team)).max();
    assert!(last <= Some(5), "{:?}", log.batches());
}

#[tokio::test(start_paused = true)]
async fn operations_that_a_team_retries_leave_room_for_a_quiet_team() {
    let (lane, log, gate) = lane(16_384, 256, "stuck");
    let stuck = calls(&lane, "stuck", 512, 1);
    settle().await;
    let quiet = calls(&lane, "quiet", 1, 1);
    gate.add_permits(2);
    assert_eq!(refused(quiet).await, 0);
    assert_eq!(log.batches(), [vec![("stuck", 256)], vec![("quiet", 1), ("stuck", SHORT)]]);
    stuck.iter().for_each(JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_decides_nothing_is_retried_after_a_pause() {
    let (lane, log, gate) = lane(16_384, 256, "stuck");
    let stuck = calls(&lane, "stuck", 256, 1);
    gate.add_permits(1_000_000);
    tokio::time::sleep(Duration::from_secs(2)).await;
    // 10 ms each, and pauses up to 100 ms.
    let tries = log.batches().len();
    assert!((18..=25).contains(&tries), "{tries}");
    // A call that has no room in the batch does not end the pause; one that has does.
    let more = calls(&lane, "stuck", 100, 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let more_tries = log.batches().len() - tries;
    assert!((8..=11).contains(&more_tries), "{more_tries}");
    let before = Instant::now();
    assert_eq!(refused(calls(&lane, "quiet", 1, 1)).await, 0);
    assert!(before.elapsed() <= 2 * TOOK, "{:?}", before.elapsed());
    stuck.iter().chain(&more).for_each(JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_the_team_that_has_most() {
    let (lane, log, gate) = lane(4_000, 1_024, "");
    let noisy = calls(&lane, "noisy", 4, 1_000);
    settle().await;
    // The noisy team itself is refused at once.
    assert!(lane.call(Item("noisy", 0)).now_or_never().is_some_and(|answer| answer.is_err()));
    // A quiet one evicts the noisy one's newest call.
    let quiet = calls(&lane, "quiet", 4, 200);
    // One eviction was enough for all of it, and there is no room for more of the noisy one.
    assert_eq!(refused(calls(&lane, "noisy", 1, 201)).await, 1);
    gate.add_permits(1_000);
    assert_eq!(refused(quiet).await, 0);
    assert_eq!(log.first("quiet"), Some(2));
    assert_eq!(refused(noisy).await, 1);
}

#[tokio::test(start_paused = true)]
async fn only_what_is_sure_to_be_refused_is_refused_before_it_is_queued() {
    let (lane, _, gate) = lane(2_000, 1_024, "");
    let lanes = Lanes([lane.clone()].into());
    let noisy = calls(&lane, "noisy", 1, 1_000);
    settle().await;
    assert!(lanes.check_room("noisy", 1_000).is_ok());
    let more = calls(&lane, "noisy", 1, 1_000);
    settle().await;
    assert!(lanes.check_room("noisy", 1).is_err());
    // As much as the noisy team has may come in its place.
    assert!(lanes.check_room("quiet", 1_999).is_ok());
    assert!(lanes.check_room("quiet", 2_000).is_err());
    // What is left of the noisy team is in a batch. After one call that found that, others are refused at once.
    let quiet = calls(&lane, "quiet", 1, 500);
    assert_eq!(refused(more).await, 1);
    assert!(lanes.check_room("other", 600).is_ok());
    assert_eq!(refused(calls(&lane, "other", 1, 600)).await, 1);
    assert!(lanes.check_room("other", 600).is_err());
    // Until there is room.
    gate.add_permits(1_000);
    assert_eq!(refused(noisy).await, 0);
    assert_eq!(refused(quiet).await, 0);
    assert!(lanes.check_room("other", 600).is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_newest_call_is_evicted_and_none_that_has_begun() {
    let (lane, _, gate) = lane(3_000, 1_024, "");
    let first = calls(&lane, "noisy", 1, 1_000);
    settle().await;
    let second = calls(&lane, "noisy", 1, 1_000);
    let third = calls(&lane, "noisy", 1, 1_000);
    let quiet = calls(&lane, "quiet", 1, 900);
    assert_eq!(refused(third).await, 1);
    let other = calls(&lane, "other", 1, 900);
    assert_eq!(refused(second).await, 1);
    // Only the call is left that is in a batch.
    assert_eq!(refused(calls(&lane, "last", 1, 901)).await, 1);
    gate.add_permits(1_000);
    assert_eq!(refused(first).await, 0);
    assert_eq!(refused(quiet).await, 0);
    assert_eq!(refused(other).await, 0);
}

#[tokio::test(start_paused = true)]
async fn teams_that_share_the_room_equally_evict_nobody() {
    let (lane, _, gate) = lane(2_000, 1_024, "");
    let one = calls(&lane, "one", 4, 250);
    let other = calls(&lane, "other", 4, 250);
    settle().await;
    // What may be evicted for it is not enough.
    assert_eq!(refused(calls(&lane, "third", 1, 900)).await, 1);
    // What was looked at for it is still there, and in order.
    gate.add_permits(1_000);
    assert_eq!(refused(one).await, 0);
    assert_eq!(refused(other).await, 0);
}

#[tokio::test(start_paused = true)]
async fn work_without_a_caller_is_not_evicted() {
    let (lane, log, gate) = lane(100, 10, "");
    let noisy = calls(&lane, "noisy", 1, 10);
    settle().await;
    (0..90).for_each(|number| lane.post(Item("noisy", 1_000 + number)).unwrap());
    assert_eq!(refused(calls(&lane, "quiet", 1, 1)).await, 1);
    gate.add_permits(1_000);
    assert_eq!(refused(noisy).await, 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(log.batches().iter().flatten().map(|(_, count)| count).sum::<usize>(), 100);
}

#[tokio::test(start_paused = true)]
async fn work_without_a_caller_that_is_never_decided_is_given_up() {
    let (lane, log, gate) = lane(1, 10, "stuck");
    lane.post(Item("stuck", 0)).unwrap();
    gate.add_permits(1_000_000);
    tokio::time::sleep(Duration::from_mins(14)).await;
    assert!(lane.post(Item("other", 1)).is_err(), "it is still tried");
    tokio::time::sleep(Duration::from_mins(2)).await;
    let tries = log.batches().len();
    assert_eq!(lane.call(Item("other", 1)).await.unwrap(), 1);
    assert_eq!(log.batches().len(), tries + 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_with_items_of_several_teams_is_charged_to_each() {
    let (lane, log, gate) = lane(16_384, 64, "");
    let noisy = calls(&lane, "noisy", 1, 64);
    settle().await;
    // Another team's item in front, and a backlog of the caller's own behind it.
    let mixed = |number: u32| {
        let own = (0..200).map(move |op| Item("noisy", 1_000 + number * 200 + op));
        let mut ops = vec![Item("front", number)];
        ops.extend(own);
        tokio::spawn(lane.call_all(ops))
    };
    let mixed: Vec<_> = (0..4).map(mixed).collect();
    let quiet = calls(&lane, "quiet", 1, 1);
    gate.add_permits(1_000);
    assert_eq!(refused(quiet).await, 0);
    assert_eq!(log.batches()[1], [("front", 4), ("noisy", SHORT), ("quiet", 1)]);
    for (number, call) in (0..).zip(mixed) {
        let answers: Vec<u32> = call.await.unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(answers[0], number);
        assert_eq!(answers[1..], (0..200).map(|op| 1_000 + number * 200 + op).collect::<Vec<_>>());
    }
    assert_eq!(refused(noisy).await, 0);
}

#[tokio::test(start_paused = true)]
async fn batches_are_short_for_as_long_as_a_quiet_team_may_call_again() {
    let (lane, log, gate) = lane(16_384, 1_024, "");
    let noisy = calls(&lane, "noisy", 2, 1_000);
    settle().await;
    let quiet = calls(&lane, "quiet", 1, 1);
    gate.add_permits(1_000);
    assert_eq!(refused(quiet).await, 0);
    assert_eq!(refused(noisy).await, 0);
    let short = 1_000_usize.div_ceil(SHORT);
    assert_eq!(log.batches().len(), 1 + short);
    assert_eq!(refused(calls(&lane, "noisy", 1, 1_000)).await, 0);
    assert_eq!(log.batches().len(), 1 + 2 * short);
    tokio::time::sleep(2 * IN_USE).await;
    assert_eq!(refused(calls(&lane, "noisy", 1, 1_000)).await, 0);
    assert_eq!(log.batches().len(), 1 + 2 * short + 1);
}

#[tokio::test(start_paused = true)]
async fn a_team_alone_has_long_batches_whatever_the_size_of_its_calls() {
    let (lane, log, gate) = lane(16_384, 1_024, "");
    let first = calls(&lane, "bot", 1, 50);
    settle().await;
    let more = calls(&lane, "bot", 3, 50);
    gate.add_permits(100);
    assert_eq!(refused(first).await, 0);
    assert_eq!(refused(more).await, 0);
    assert_eq!(log.batches(), [[("bot", 50)], [("bot", 150)]]);
}

#[tokio::test(start_paused = true)]
async fn teams_with_a_backlog_take_turns_by_short_batches() {
    let (lane, log, gate) = lane(16_384, 1_024, "");
    let first = calls(&lane, "a", 1, 1_000);
    settle().await;
    let others: Vec<Calls> = ["b", "c", "d"].map(|team| calls(&lane, team, 2, 1_000)).into();
    let quiet = calls(&lane, "quiet", 1, 1);
    gate.add_permits(5);
    assert_eq!(refused(quiet).await, 0);
    tokio::time::sleep(10 * TOOK).await;
    let turns: Vec<_> = log.batches()[1..].iter().map(|batch| batch[0]).collect();
    assert_eq!(turns, [("b", SHORT), ("c", SHORT), ("d", SHORT), ("b", SHORT)]);
    gate.add_permits(10_000);
    for calls in others.into_iter().chain([first]) {
        assert_eq!(refused(calls).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_ends_with_its_callers_and_answers_what_had_queued() {
    let (lane, log, gate) = lane(16_384, 1_024, "");
    let queued = calls(&lane, "noisy", 3, 1_000);
    drop(lane);
    gate.add_permits(3);
    assert_eq!(refused(queued).await, 0);
    settle().await;
    assert_eq!(Arc::strong_count(&log.0), 1, "the store is dropped");
}
