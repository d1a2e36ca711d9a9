//! Events of several names under many callers at once, on three replicas.

use std::collections::HashSet;

use futures_util::future::join_all;
use oncegate::{
    grpc::pb::{
        BeginTurnRequest, EventKey, EventState, IsProcessedRequest, MarkProcessedRequest,
        begin_turn_response::Outcome, turn_service_client::TurnServiceClient,
    },
    store::Clock,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use tonic::transport::Channel;

use super::Crowd;
use crate::harness::{Client, connect, event};

type Turns = TurnServiceClient<Channel>;

const ROUNDS: u64 = 60;

/// Names that lie close together, so that many events share some.
fn names(random: &mut StdRng, round: u64) -> Vec<String> {
    let all: Vec<u32> = (0..6).collect();
    let count = random.random_range(1..4);
    all.sample(random, count).map(|name| format!("{round}.{name}")).collect()
}

#[derive(Clone, Copy)]
enum Way {
    Mark,
    /// A turn without a session: with one, its lock would keep most of them apart.
    Turn,
}

/// Asks for the event of `names`, the first of them its own, and tells whether it was got.
async fn take(mut caller: Client, turns: &mut Turns, names: &[String], way: Way) -> bool {
    let aliases = names[1..].to_vec();
    let event = Some(EventKey { aliases, ..event("T1", &names[0]).unwrap() });
    match way {
        Way::Mark => {
            let request = MarkProcessedRequest { event, ..Default::default() };
            caller.mark_processed(request).await.unwrap().into_inner().first
        }
        Way::Turn => {
            let request = BeginTurnRequest { event, holder: "run".into(), ..Default::default() };
            let answer = turns.begin_turn(request).await.unwrap().into_inner();
            matches!(answer.outcome, Some(Outcome::Granted(_)))
        }
    }
}

/// Whoever is first has all of its names, and nobody else any of them; who is not has none:
/// neither an event of one name, nor one of several, on whichever replica.
async fn each_name_is_taken_once_and_whole(ways: &[Way]) {
    let mut crowd = Crowd::new(&Clock::Store).await;
    let addresses = crowd.replicas.iter().map(|replica| replica.server.address());
    let channels = join_all(addresses.map(connect)).await;
    let turns: Vec<Turns> = channels.into_iter().map(Turns::new).collect();
    let mut random = StdRng::seed_from_u64(5);
    for round in 0..ROUNDS {
        let callers = crowd.callers.iter().zip(turns.iter().cycle());
        let asking = callers.map(|(caller, turns)| {
            let (names, way) = (names(&mut random, round), *ways.choose(&mut random).unwrap());
            let (caller, mut turns) = (caller.clone(), turns.clone());
            async move { (take(caller, &mut turns, &names, way).await, names) }
        });
        let asked = join_all(asking).await;
        let mut taken: HashSet<&str> = HashSet::new();
        for (_, names) in asked.iter().filter(|(is_first, _)| *is_first) {
            for name in names {
                assert!(taken.insert(name), "{name} was taken twice in round {round}");
            }
        }
        assert!(!taken.is_empty(), "nobody was first in round {round}");
        let names: HashSet<&str> =
            asked.iter().flat_map(|(_, names)| names).map(String::as_str).collect();
        for name in names {
            let look = IsProcessedRequest { event: event("T1", name), ..Default::default() };
            let found = crowd.callers[0].is_processed(look).await.unwrap().into_inner();
            let is_taken = found.state() != EventState::NotSeen;
            assert_eq!(is_taken, taken.contains(name), "{name} of {taken:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_take_each_name_once_and_whole() {
    each_name_is_taken_once_and_whole(&[Way::Mark]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_take_each_name_once_and_whole() {
    each_name_is_taken_once_and_whole(&[Way::Turn]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_and_turns_take_each_name_once_and_whole() {
    each_name_is_taken_once_and_whole(&[Way::Mark, Way::Turn]).await;
}
