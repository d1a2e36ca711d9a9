//! How long the server had worked on a call when it measured what is left: a caller counts
//! from when it sent the request.

use std::time::{Duration, Instant};

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BeginTurnRequest, HoldSessionLeaseRequest, RunTurnRequest,
    SessionLease, begin_turn_response::Outcome, hold_session_lease_response::News as HoldNews,
    run_turn_request::Step, run_turn_response::News as RunNews,
    turn_service_client::TurnServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{
    harness::{
        Client, Fixture, acquire, connect, event, granted, held, release, renew, seconds, session,
    },
    on_all_stores,
};

on_all_stores!(
    a_lease_that_was_waited_for_counts_from_the_request,
    a_turn_that_was_waited_for_counts_from_the_request,
    a_wait_in_vain_is_counted,
    answers_without_a_wait_took_little,
    renewals_count_from_the_start_of_the_stream,
);

/// How long the holder keeps the session: longer than the lease of the next runs.
const HELD: Duration = Duration::from_millis(2_500);
/// How much of that a call that waits spends at the server, at least.
const MOST_OF_IT: Duration = Duration::from_secs(2);

fn span(span: Option<prost_types::Duration>) -> Duration {
    span.expect("a duration").try_into().unwrap()
}

/// A request that is sent now.
struct Sent(Instant);

impl Sent {
    fn now() -> Self {
        Self(Instant::now())
    }

    /// What is left has not ended by the caller's clock, and the server counted no more time
    /// than there was.
    #[track_caller]
    fn covers(
        &self,
        elapsed: Option<prost_types::Duration>,
        remaining: Option<prost_types::Duration>,
    ) -> Duration {
        let (elapsed, since) = (span(elapsed), self.0.elapsed());
        assert!(elapsed <= since, "{elapsed:?} of {since:?}");
        assert!(elapsed + span(remaining) >= since, "it has ended: {elapsed:?} of {since:?}");
        elapsed
    }
}

async fn turns(f: &Fixture) -> TurnServiceClient<Channel> {
    TurnServiceClient::new(connect(f.replica.server.address()).await)
}

/// A holder of the session that releases it after [`HELD`].
async fn holder(client: &Client) -> impl Future<Output = ()> + Send + 'static {
    let mut client = client.clone();
    let lease = client.acquire_session_lease(acquire("T1", "s", "holder")).await.unwrap();
    let lease = granted(lease.into_inner());
    async move {
        tokio::time::sleep(HELD).await;
        client.release_session_lease(release(&lease)).await.unwrap();
    }
}

async fn a_lease_that_was_waited_for_counts_from_the_request(mut f: Fixture) {
    tokio::spawn(holder(&f.client).await);
    let request = AcquireSessionLeaseRequest {
        request_id: "r".into(),
        ttl: seconds(2),
        wait: seconds(60),
        ..acquire("T1", "s", "waiter")
    };
    let sent = Sent::now();
    let answer = f.client.acquire_session_lease(request.clone()).await.unwrap();
    let lease = granted(answer.into_inner());
    assert_eq!(lease.remaining, seconds(2));
    assert!(sent.covers(lease.elapsed, lease.remaining) >= MOST_OF_IT);
    // The answer is repeated to a call of its own.
    let sent = Sent::now();
    let answer = f.client.acquire_session_lease(request).await.unwrap();
    let again = granted(answer.into_inner());
    assert_eq!(again.lease_id, lease.lease_id);
    sent.covers(again.elapsed, again.remaining);
}

async fn a_turn_that_was_waited_for_counts_from_the_request(f: Fixture) {
    tokio::spawn(holder(&f.client).await);
    let request = BeginTurnRequest {
        event: event("T1", "Ev1"),
        session: session("T1", "s"),
        holder: "waiter".into(),
        claim_ttl: seconds(2),
        lease_ttl: seconds(2),
        wait: seconds(60),
        ..Default::default()
    };
    let sent = Sent::now();
    let answer = turns(&f).await.begin_turn(request).await.unwrap().into_inner();
    let Some(Outcome::Granted(granted)) = answer.outcome else { panic!("{answer:?}") };
    let turn = granted.turn.unwrap();
    let lease = turn.lease.unwrap();
    for elapsed in
        [sent.covers(turn.elapsed, turn.remaining), sent.covers(lease.elapsed, lease.remaining)]
    {
        assert!(elapsed >= MOST_OF_IT, "{elapsed:?}");
    }
}

async fn a_wait_in_vain_is_counted(mut f: Fixture) {
    let first = f.client.acquire_session_lease(acquire("T1", "s", "holder")).await.unwrap();
    granted(first.into_inner());
    let request = AcquireSessionLeaseRequest { wait: seconds(1), ..acquire("T1", "s", "waiter") };
    let sent = Sent::now();
    let held = held(f.client.acquire_session_lease(request).await.unwrap().into_inner());
    assert!(!sent.covers(held.elapsed, held.remaining).is_zero());
}

async fn answers_without_a_wait_took_little(mut f: Fixture) {
    let sent = Sent::now();
    let lease = f.client.acquire_session_lease(acquire("T1", "s", "holder")).await.unwrap();
    let lease = granted(lease.into_inner());
    sent.covers(lease.elapsed, lease.remaining);
    let sent = Sent::now();
    let renewed = f.client.renew_session_lease(renew(&lease)).await.unwrap().into_inner();
    let renewed = renewed.lease.unwrap();
    sent.covers(renewed.elapsed, renewed.remaining);
    let request =
        BeginTurnRequest { event: event("T1", "Ev1"), holder: "a".into(), ..Default::default() };
    turns(&f).await.begin_turn(request.clone()).await.unwrap();
    let sent = Sent::now();
    let answer = turns(&f).await.begin_turn(request).await.unwrap().into_inner();
    let Some(Outcome::InProgress(other)) = answer.outcome else { panic!("{answer:?}") };
    sent.covers(other.elapsed, other.remaining);
}

async fn renewals_count_from_the_start_of_the_stream(f: Fixture) {
    let hold = HoldSessionLeaseRequest {
        session: session("T1", "held"),
        holder: "a".into(),
        ttl: seconds(3),
        ..Default::default()
    };
    let run = BeginTurnRequest {
        event: event("T1", "Ev1"),
        session: session("T1", "run"),
        holder: "a".into(),
        claim_ttl: seconds(3),
        ..Default::default()
    };
    let sent = Sent::now();
    let mut holding = f.client.clone().hold_session_lease(hold).await.unwrap().into_inner();
    let (steps, requests) = mpsc::channel(1);
    steps.send(RunTurnRequest { step: Some(Step::Begin(run)) }).await.unwrap();
    let call = turns(&f).await.run_turn(ReceiverStream::new(requests)).await;
    let mut running = call.unwrap().into_inner();
    let (mut of_lease, mut of_turn) = (Duration::ZERO, Duration::ZERO);
    for round in 0..4 {
        let lease: SessionLease = match holding.message().await.unwrap().unwrap().news.unwrap() {
            HoldNews::Granted(granted) => granted.lease.unwrap(),
            HoldNews::Renewed(renewed) => renewed.lease.unwrap(),
            other => panic!("{other:?}"),
        };
        let turn = match running.message().await.unwrap().unwrap().news.unwrap() {
            RunNews::Granted(granted) => granted.turn.unwrap(),
            RunNews::Renewed(renewed) => renewed.turn.unwrap(),
            other => panic!("{other:?}"),
        };
        let next = sent.covers(lease.elapsed, lease.remaining);
        assert!(round == 0 || next > of_lease, "{next:?} after {of_lease:?}");
        of_lease = next;
        let next = sent.covers(turn.elapsed, turn.remaining);
        assert!(round == 0 || next > of_turn, "{next:?} after {of_turn:?}");
        of_turn = next;
        assert_eq!(turn.lease.unwrap().elapsed, turn.elapsed);
    }
}
