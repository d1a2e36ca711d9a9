//! Streams that break, and what becomes of the turn or lease that they kept: it ends only if
//! its holder has not carried it on.

use std::time::{Duration, Instant};

use oncegate::{
    config::Address,
    grpc::pb::{
        BeginTurnRequest, FinishTurnRequest, RenewTurnRequest, RunTurnRequest, RunTurnResponse,
        Turn, TurnEnd, TurnOutcome, begin_turn_response::Outcome, run_turn_request::Step,
        run_turn_response::News, turn_service_client::TurnServiceClient,
    },
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use crate::harness::{connect, event, seconds, session};

mod alive;
mod attempts;
mod events;
mod leases;
mod replicas;
mod turns;

/// How long nothing may happen: for longer than the grace of [`wish`], and than it takes to
/// find a break.
const QUIET: Duration = Duration::from_secs(1);
/// How long anything that is to happen may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
fn millis(count: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: 0, nanos: count * 1_000_000 })
}

/// A request by whose id the turn can be begun again.
fn wish(event_id: &str, holder: &str) -> BeginTurnRequest {
    BeginTurnRequest {
        event: event("T1", event_id),
        session: session("T1", &format!("thread of {event_id}")),
        holder: holder.into(),
        request_id: holder.into(),
        claim_ttl: seconds(60),
        grace: millis(200),
        ..Default::default()
    }
}

#[track_caller]
fn reason(status: &Status) -> String {
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    status.get_details_error_info().unwrap().reason
}

/// A turn that a stream keeps.
struct Run {
    steps: mpsc::Sender<RunTurnRequest>,
    events: Streaming<RunTurnResponse>,
    turn: Turn,
}

impl Run {
    async fn begin(channel: Channel, request: BeginTurnRequest) -> Self {
        let (steps, sent) = mpsc::channel(4);
        steps.send(RunTurnRequest { step: Some(Step::Begin(request)) }).await.unwrap();
        let call = TurnServiceClient::new(channel).run_turn(ReceiverStream::new(sent)).await;
        let mut events = call.unwrap().into_inner();
        let first = timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap();
        let Some(News::Granted(granted)) = first.news else { panic!("not granted: {first:?}") };
        Self { steps, events, turn: granted.turn.unwrap() }
    }

    async fn end(&self, outcome: TurnOutcome) {
        let end = TurnEnd { outcome: outcome.into(), ..Default::default() };
        self.steps.send(RunTurnRequest { step: Some(Step::End(end)) }).await.unwrap();
    }

    fn half_close(&mut self) {
        let (closed, _) = mpsc::channel(1);
        self.steps = closed;
    }

    async fn renewed(&mut self) {
        let renewed = async {
            loop {
                match self.events.message().await.unwrap().unwrap().news.unwrap() {
                    News::Renewed(_) => return,
                    News::Waiting(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        timeout(PATIENCE, renewed).await.expect("a renewal");
    }

    /// The last that it is told, renewals aside.
    async fn last(&mut self) -> Result<News, Status> {
        let last = async {
            loop {
                match self.events.message().await?.unwrap().news.unwrap() {
                    News::Renewed(_) | News::Waiting(_) | News::Alive(_) => {}
                    last => return Ok(last),
                }
            }
        };
        timeout(PATIENCE, last).await.expect("a last word")
    }
}

async fn renew_turn(channel: Channel, turn: &Turn) -> Result<Turn, Status> {
    let request =
        RenewTurnRequest { turn_id: turn.turn_id.clone(), claim_ttl: seconds(60), lease_ttl: None };
    let renewed = TurnServiceClient::new(channel).renew_turn(request).await?;
    Ok(renewed.into_inner().turn.unwrap())
}

async fn succeed(channel: Channel, turn: &Turn) {
    let request = FinishTurnRequest {
        turn_id: turn.turn_id.clone(),
        outcome: TurnOutcome::Succeeded.into(),
        ..Default::default()
    };
    TurnServiceClient::new(channel).finish_turn(request).await.unwrap();
}

/// A delivery of an event that waits for its turn: it is made again until a run has it, or
/// has handled it.
struct Second(JoinHandle<(Outcome, Instant)>);

impl Second {
    /// It waits by the time that this is answered.
    async fn waits(address: &Address, event_id: &str) -> Self {
        let mut turns = TurnServiceClient::new(connect(address).await);
        let request = BeginTurnRequest { wait: seconds(60), ..wish(event_id, "second") };
        let (first_answer, mut answered) = mpsc::channel(1);
        let delivery = tokio::spawn(async move {
            loop {
                let answer = turns.begin_turn(request.clone()).await.unwrap().into_inner();
                match answer.outcome.unwrap() {
                    Outcome::InProgress(_) => {
                        let _ = first_answer.try_send(());
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    outcome => return (outcome, Instant::now()),
                }
            }
        });
        answered.recv().await.expect("another run has the event");
        Self(delivery)
    }

    /// Another run goes on: nothing comes of the delivery.
    async fn gets_nothing(&mut self) {
        self.gets_nothing_for(QUIET).await;
    }

    async fn gets_nothing_for(&mut self, span: Duration) {
        if let Ok(came) = timeout(span, &mut self.0).await {
            panic!("two runs at once: {:?}", came.unwrap());
        }
    }

    async fn finds_it_handled(self) {
        match timeout(PATIENCE, self.0).await.unwrap().unwrap() {
            (Outcome::Duplicate(_), _) => {}
            (other, _) => panic!("not handled: {other:?}"),
        }
    }

    /// The turn is granted; answers when.
    async fn gets_the_turn(self) -> Instant {
        match timeout(PATIENCE, self.0).await.unwrap().unwrap() {
            (Outcome::Granted(granted), at) => {
                assert_eq!(granted.turn.unwrap().attempt, 2);
                at
            }
            (other, _) => panic!("not granted: {other:?}"),
        }
    }
}
