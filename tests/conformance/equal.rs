//! Equal sequences of calls have equal answers, and leave equal rows, on both stores.

use std::{fmt::Debug, time::Duration};

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BeginTurnRequest, BindEpicRequest, CleanupRequest,
    CloseSessionRequest, EventKey, FinishTurnRequest, ForceReleaseSessionLeaseRequest,
    ForgetEventRequest, GetStatsRequest, ListEventsRequest, ListSessionsRequest,
    MarkProcessedRequest, RenewTurnRequest, SessionKey, SessionLease, TurnOutcome,
    acquire_session_lease_response, admin_service_client::AdminServiceClient,
    begin_turn_response::Outcome, turn_service_client::TurnServiceClient,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tonic::{Response, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::harness::{Client, Fixture, connect, event, release, renew, seconds, session};

/// The last was the first to find a difference.
const SEEDS: [u64; 3] = [1, 2, 13];
const STEPS: u32 = 140;

const TEAMS: [&str; 2] = ["T1", "T2"];
const EVENTS: [&str; 4] = ["a", "b", "c", "d"];
const SESSIONS: [&str; 3] = ["r", "s", "t"];
const SPANS: [i64; 5] = [1, 30, 100, 500, 3_600];

/// One call, or a move of the clock.
#[derive(Debug, Clone)]
enum Step {
    Advance(Duration),
    Mark(MarkProcessedRequest),
    Begin(Box<BeginTurnRequest>),
    /// Of the turns that were granted, this one; with this detail.
    Finish(usize, TurnOutcome, &'static str),
    RenewTurn(usize, i64),
    Acquire(AcquireSessionLeaseRequest),
    /// Of the leases that were granted, this one.
    Release(usize),
    Renew(usize),
    Bind(BindEpicRequest),
    Force(ForceReleaseSessionLeaseRequest),
    Close(CloseSessionRequest),
    Forget(ForgetEventRequest),
    Cleanup(CleanupRequest),
}

/// Draws steps.
struct Dice(StdRng);

impl Dice {
    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        *values.choose(&mut self.0).unwrap()
    }

    fn span(&mut self) -> i64 {
        self.of(&SPANS)
    }

    #[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
    fn event(&mut self) -> Option<EventKey> {
        let mut key = event(self.of(&TEAMS), self.of(&EVENTS)).unwrap();
        key.consumer = self.of(&["", "", "", "bot"]).into();
        if self.of(&[true, false]) {
            key.aliases = vec![self.of(&EVENTS).to_owned(), self.of(&EVENTS).to_owned()];
        }
        Some(key)
    }

    fn session(&mut self) -> Option<SessionKey> {
        session(self.of(&TEAMS), self.of(&SESSIONS))
    }

    fn epic(&mut self) -> String {
        self.of(&["", "", "", "PROJ-1", "PROJ-2"]).into()
    }

    fn step(&mut self) -> Step {
        let actor = || "ops".to_owned();
        match self.0.random_range(0..16) {
            0..=2 => Step::Advance(Duration::from_secs(self.span().unsigned_abs())),
            3 => Step::Mark(MarkProcessedRequest {
                event: self.event(),
                ttl: seconds(self.span()),
                request_id: self.of(&["", "r1"]).into(),
                ..Default::default()
            }),
            4..=5 => Step::Begin(Box::new(BeginTurnRequest {
                session: if self.of(&[true, false]) { self.session() } else { None },
                event: self.event(),
                holder: "h".into(),
                request_id: self.of(&["", "r1", "r2"]).into(),
                claim_ttl: seconds(self.span()),
                max_attempts: self.of(&[1, 2, 5]),
                ..Default::default()
            })),
            6..=7 => Step::Finish(
                self.0.random_range(0..4),
                self.of(&[TurnOutcome::Succeeded, TurnOutcome::Failed, TurnOutcome::Rejected]),
                self.of(&["", "", "timeout", "no such channel"]),
            ),
            8 => Step::RenewTurn(self.0.random_range(0..4), self.span()),
            9 => Step::Acquire(AcquireSessionLeaseRequest {
                session: self.session(),
                holder: "h".into(),
                request_id: self.of(&["", "r1"]).into(),
                ttl: seconds(self.of(&SPANS[..4])),
                epic_id: self.epic(),
                ..Default::default()
            }),
            10 if self.of(&[true, false]) => Step::Release(self.0.random_range(0..4)),
            10 => Step::Renew(self.0.random_range(0..4)),
            11 => Step::Bind(BindEpicRequest {
                session: self.session(),
                epic_id: self.epic(),
                actor: actor(),
                ..Default::default()
            }),
            12 => Step::Force(ForceReleaseSessionLeaseRequest {
                session: self.session(),
                actor: actor(),
                reason: "stuck".into(),
            }),
            13 => Step::Close(CloseSessionRequest {
                session: self.session(),
                actor: actor(),
                ..Default::default()
            }),
            14 => Step::Forget(ForgetEventRequest {
                event: event(self.of(&TEAMS), self.of(&EVENTS)),
                actor: actor(),
                ..Default::default()
            }),
            _ => {
                let dry_run = self.of(&[true, false]);
                let older_than = self.of(&[None, Some(0), Some(30), Some(100), Some(500)]);
                let team = if older_than == Some(0) { self.of(&TEAMS) } else { "" };
                Step::Cleanup(CleanupRequest {
                    team_id: self.of(&[team, TEAMS[0]]).into(),
                    older_than: older_than.and_then(seconds),
                    // Which rows go first is up to the store.
                    max_rows: if dry_run { self.of(&[0, 2]) } else { 0 },
                    dry_run,
                })
            }
        }
    }
}

/// One of the stores, and what callers were granted by it.
struct Side {
    fixture: Fixture,
    client: Client,
    turns: TurnServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
    granted: Vec<String>,
    leases: Vec<SessionLease>,
}

/// An answer without what is random, or drawn by each store in its own way: the ids of
/// turns and leases, tokens, and the time that the call took.
fn told<T: Debug>(answer: Result<Response<T>, Status>) -> String {
    let is_own = |field: &&str| {
        !["turn_id", "lease_id", "fencing_token"].iter().any(|id| field.contains(id))
    };
    match answer {
        Ok(answer) => {
            let text = format!("{:?}", answer.into_inner());
            let mut parts = text.split("elapsed: Some(");
            let first = parts.next().unwrap_or_default().to_owned();
            let after = |part: &'_ str| part.split_once("})").map(|(_, after)| after.to_owned());
            let text = parts.fold(first, |text, part| text + &after(part).unwrap_or_default());
            text.split(", ").filter(is_own).collect::<Vec<_>>().join(", ")
        }
        Err(status) => {
            let reason = status.get_details_error_info().map(|info| info.reason);
            format!("{:?} {reason:?} {}", status.code(), status.message())
        }
    }
}

impl Side {
    async fn new(fixture: Fixture) -> Self {
        // An answer that only a busy machine keeps away is no difference.
        let patient = ["--store-timeout", "30s", "--call-timeout", "60s"];
        let fixture = fixture.restarted(&patient).await;
        let channel = connect(fixture.replica.server.address()).await;
        Self {
            client: fixture.client.clone(),
            turns: TurnServiceClient::new(channel.clone()),
            admin: AdminServiceClient::new(channel),
            granted: Vec::new(),
            leases: Vec::new(),
            fixture,
        }
    }

    /// Takes a step, and tells what was answered.
    async fn take(&mut self, step: Step) -> String {
        match step {
            Step::Advance(span) => {
                self.fixture.clock.advance(span);
                String::new()
            }
            Step::Mark(request) => told(self.client.mark_processed(request).await),
            Step::Begin(request) => {
                let begun = self.turns.begin_turn(*request).await;
                if let Ok(begun) = &begun
                    && let Some(Outcome::Granted(granted)) = &begun.get_ref().outcome
                {
                    self.granted.push(granted.turn.as_ref().unwrap().turn_id.clone());
                }
                told(begun)
            }
            Step::Finish(back, outcome, detail) => {
                let Some(turn_id) = self.granted.iter().rev().nth(back).cloned() else {
                    return String::new();
                };
                let is_settled = outcome == TurnOutcome::Succeeded;
                let request = FinishTurnRequest {
                    turn_id,
                    outcome: outcome.into(),
                    detail: if is_settled { String::new() } else { detail.into() },
                    result_type: if is_settled { detail.into() } else { String::new() },
                    ..Default::default()
                };
                told(self.turns.finish_turn(request).await)
            }
            Step::RenewTurn(back, ttl) => {
                let Some(turn_id) = self.granted.iter().rev().nth(back).cloned() else {
                    return String::new();
                };
                let claim_ttl = seconds(ttl);
                let request = RenewTurnRequest { turn_id, claim_ttl, ..Default::default() };
                told(self.turns.renew_turn(request).await)
            }
            Step::Acquire(request) => {
                let answer = self.client.acquire_session_lease(request).await;
                if let Ok(answer) = &answer
                    && let Some(acquire_session_lease_response::Outcome::Lease(lease)) =
                        &answer.get_ref().outcome
                {
                    self.leases.push(lease.clone());
                }
                told(answer)
            }
            Step::Release(back) => match self.leases.iter().rev().nth(back) {
                Some(lease) => told(self.client.release_session_lease(release(lease)).await),
                None => String::new(),
            },
            Step::Renew(back) => match self.leases.iter().rev().nth(back) {
                Some(lease) => told(self.client.renew_session_lease(renew(lease)).await),
                None => String::new(),
            },
            Step::Bind(request) => told(self.admin.bind_epic(request).await),
            Step::Force(request) => told(self.admin.force_release_session_lease(request).await),
            Step::Close(request) => told(self.admin.close_session(request).await),
            Step::Forget(request) => told(self.admin.forget_event(request).await),
            Step::Cleanup(request) => told(self.client.cleanup(request).await),
        }
    }

    /// What is on record.
    async fn rows(&mut self) -> Vec<String> {
        let stats = self.admin.get_stats(GetStatsRequest::default()).await;
        let events = self.admin.list_events(ListEventsRequest::default()).await;
        let sessions = self.admin.list_sessions(ListSessionsRequest::default()).await;
        let every = CleanupRequest { older_than: seconds(1), dry_run: true, ..Default::default() };
        let old = self.client.cleanup(every.clone()).await;
        let expired = self.client.cleanup(CleanupRequest { older_than: None, ..every }).await;
        vec![told(stats), told(events), told(sessions), told(old), told(expired)]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_sequences_leave_equal_rows() {
    for seed in SEEDS {
        let mut dice = Dice(StdRng::seed_from_u64(seed));
        let mut postgres = Side::new(Fixture::postgres().await).await;
        let mut sqlite = Side::new(Fixture::sqlite().await).await;
        let mut steps = Vec::new();
        for _ in 0..STEPS {
            let step = dice.step();
            steps.push(step.clone());
            let answers = (postgres.take(step.clone()).await, sqlite.take(step).await);
            assert_eq!(answers.0, answers.1, "seed {seed}: PostgreSQL, SQLite after {steps:#?}");
            let rows = (postgres.rows().await, sqlite.rows().await);
            assert_eq!(rows.0, rows.1, "seed {seed}: PostgreSQL, SQLite after {steps:#?}");
        }
        for side in [postgres, sqlite] {
            side.fixture.replica.server.stop().await.unwrap();
        }
    }
}
