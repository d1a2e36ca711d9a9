//! Claims that end, or are taken, while a statement about them waits for a lock. Somebody
//! outside holds that, so that it waits for as long as a test needs.

use oncegate::{
    grpc::pb::{
        BeginTurnRequest, EventKey, EventState, FinishTurnRequest, FinishTurnResponse,
        IsProcessedRequest, MarkProcessedRequest, ProcessedEvent, RenewTurnRequest,
        RenewTurnResponse, SessionKey, Turn, TurnOutcome, begin_turn_response::Outcome,
        turn_service_client::TurnServiceClient,
    },
    store::Clock,
};
use sqlx::{Connection as _, PgConnection, Postgres, Transaction};
use tonic::{Response, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::harness::{Client, Replica, connect, event, postgres, seconds, session};

/// Two replicas that wait for locks for longer than a claim runs.
struct Stage {
    _replicas: Vec<Replica>,
    client: Client,
    turns: TurnServiceClient<Channel>,
}

impl Stage {
    /// And a connection of somebody outside.
    async fn new() -> (Self, PgConnection) {
        let url = postgres::new_database().await;
        let mut replicas = Vec::new();
        for _ in 0..2 {
            let flags = ["--store-timeout", "60s", "--call-timeout", "120s"];
            replicas.push(Replica::start(&url, Clock::Store, &flags).await);
        }
        let turns = TurnServiceClient::new(connect(replicas[0].server.address()).await);
        let client = replicas[1].client().await;
        let outside = PgConnection::connect(&url).await.unwrap();
        (Self { _replicas: replicas, client, turns }, outside)
    }

    async fn begin(&mut self, name: &str, aliases: &[&str], claim: i64) -> Turn {
        self.begin_in(None, name, aliases, claim).await
    }

    async fn begin_in(
        &mut self,
        session: Option<SessionKey>,
        name: &str,
        aliases: &[&str],
        claim: i64,
    ) -> Turn {
        let request = BeginTurnRequest {
            event: named(name, aliases),
            session,
            holder: "run".into(),
            claim_ttl: seconds(claim),
            ..Default::default()
        };
        match self.turns.begin_turn(request).await.unwrap().into_inner().outcome.unwrap() {
            Outcome::Granted(granted) => granted.turn.unwrap(),
            other => panic!("not granted: {other:?}"),
        }
    }

    async fn look(&mut self, name: &str) -> ProcessedEvent {
        let request = IsProcessedRequest { event: event("T1", name), ..Default::default() };
        self.client.is_processed(request).await.unwrap().into_inner().event.unwrap()
    }

    /// An event's claim lapses, and another delivery of it is the first.
    async fn is_taken(&mut self, name: &str, alias: &str) {
        while self.look(alias).await.state() != EventState::NotSeen {}
        let request = MarkProcessedRequest { event: named(name, &[alias]), ..Default::default() };
        assert!(self.client.mark_processed(request).await.unwrap().into_inner().first);
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
fn named(name: &str, aliases: &[&str]) -> Option<EventKey> {
    let aliases = aliases.iter().map(|&alias| alias.into()).collect();
    Some(EventKey { aliases, ..event("T1", name).unwrap() })
}

/// Locks an event's row.
async fn lock<'a>(outside: &'a mut PgConnection, name: &str) -> Transaction<'a, Postgres> {
    let mut locking = outside.begin().await.unwrap();
    let lock = "SELECT FROM processed_events WHERE event_id = $1 FOR UPDATE";
    sqlx::query(lock).bind(name).execute(&mut *locking).await.unwrap();
    locking
}

/// Waits until so many statements wait for a lock.
pub(crate) async fn blocked(locking: &mut Transaction<'_, Postgres>, count: i64) {
    const BLOCKED: &str = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    // What the first look sees is kept for the transaction.
    let look = async |locking: &mut Transaction<'_, Postgres>| {
        sqlx::query("SELECT pg_stat_clear_snapshot()").execute(&mut **locking).await.unwrap();
        sqlx::query_scalar::<_, i64>(BLOCKED).fetch_one(&mut **locking).await.unwrap()
    };
    while look(locking).await < count {}
}

async fn finish(
    mut turns: TurnServiceClient<Channel>,
    turn: Turn,
) -> Result<Response<FinishTurnResponse>, Status> {
    let outcome = TurnOutcome::Succeeded.into();
    turns
        .finish_turn(FinishTurnRequest { turn_id: turn.turn_id, outcome, ..Default::default() })
        .await
}

async fn renew(
    mut turns: TurnServiceClient<Channel>,
    turn: Turn,
) -> Result<Response<RenewTurnResponse>, Status> {
    let claim_ttl = seconds(60);
    turns
        .renew_turn(RenewTurnRequest { turn_id: turn.turn_id, claim_ttl, ..Default::default() })
        .await
}

#[track_caller]
fn is_lost<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.unwrap_err();
    assert_eq!(status.get_details_error_info().unwrap().reason, "CLAIM_LOST");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_whose_claim_lapses_while_it_is_ended_is_not_ended() {
    let (mut stage, mut outside) = Stage::new().await;
    let turn = stage.begin("message", &["ts"], 1).await;
    let mut locking = lock(&mut outside, "message").await;
    let ending = tokio::spawn(finish(stage.turns.clone(), turn));
    blocked(&mut locking, 1).await;
    stage.is_taken("mention", "ts").await;
    locking.rollback().await.unwrap();
    is_lost(ending.await.unwrap());
    assert_eq!(stage.look("message").await.state(), EventState::NotSeen);
}

/// The same of a turn that is ended by the shortest statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_in_a_session_whose_claim_lapses_while_it_is_ended_is_not_ended() {
    let (mut stage, mut outside) = Stage::new().await;
    let turn = stage.begin_in(session("T1", "s"), "message", &[], 1).await;
    let mut locking = lock(&mut outside, "message").await;
    let ending = tokio::spawn(finish(stage.turns.clone(), turn));
    blocked(&mut locking, 1).await;
    while stage.look("message").await.state() != EventState::NotSeen {}
    locking.rollback().await.unwrap();
    is_lost(ending.await.unwrap());
    assert_eq!(stage.look("message").await.state(), EventState::NotSeen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_whose_claim_lapses_while_it_is_renewed_runs_no_more() {
    let (mut stage, mut outside) = Stage::new().await;
    let turn = stage.begin("message", &["ts"], 1).await;
    let mut locking = lock(&mut outside, "message").await;
    let renewing = tokio::spawn(renew(stage.turns.clone(), turn));
    blocked(&mut locking, 1).await;
    stage.is_taken("mention", "ts").await;
    locking.rollback().await.unwrap();
    is_lost(renewing.await.unwrap());
    assert_eq!(stage.look("message").await.state(), EventState::NotSeen);
}

/// Each takes the names in one order, whichever is the event's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_is_renewed_and_ended_at_once_stands_in_nobodys_way() {
    let (mut stage, mut outside) = Stage::new().await;
    let turn = stage.begin("message", &["alias"], 60).await;
    let mut locking = lock(&mut outside, "alias").await;
    let ending = tokio::spawn(finish(stage.turns.clone(), turn.clone()));
    blocked(&mut locking, 1).await;
    let renewing = tokio::spawn(renew(stage.turns.clone(), turn));
    blocked(&mut locking, 2).await;
    locking.rollback().await.unwrap();
    ending.await.unwrap().unwrap();
    is_lost(renewing.await.unwrap());
    assert_eq!(stage.look("alias").await.outcome(), TurnOutcome::Succeeded);
}
