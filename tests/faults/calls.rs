//! One call of each kind.

use std::time::Duration;

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BeginTurnRequest, BindEpicRequest, CheckSessionLeaseRequest,
    CleanupRequest, CloseSessionRequest, FinishTurnRequest, ForceReleaseSessionLeaseRequest,
    ForgetEventRequest, GetSessionRequest, GetStatsRequest, IsProcessedRequest, ListEventsRequest,
    ListSessionsRequest, RenewTurnRequest, TurnOutcome, admin_service_client::AdminServiceClient,
    begin_turn_response::Outcome, turn_service_client::TurnServiceClient,
};
use tonic::Status;

use crate::harness::{
    Client, Replica, acquire, connect, event, granted, mark, release, renew, session,
};

/// Makes one call of each kind, about events and sessions of this name. Answers the first
/// error, and of which call.
pub(super) async fn call_all(replica: &Replica, name: &str) -> Result<(), (&'static str, Status)> {
    let channel = connect(replica.server.address()).await;
    leases(Client::new(channel.clone()), name).await?;
    turns(TurnServiceClient::new(channel.clone()), name).await?;
    administer(AdminServiceClient::new(channel), name).await
}

async fn leases(mut client: Client, name: &str) -> Result<(), (&'static str, Status)> {
    let of = |call| move |status| (call, status);
    client.mark_processed(mark("T1", name)).await.map_err(of("mark"))?;
    let look = IsProcessedRequest { event: event("T1", name), ..Default::default() };
    client.is_processed(look).await.map_err(of("look"))?;
    let taken = client.acquire_session_lease(acquire("T1", name, "a")).await;
    let lease = granted(taken.map_err(of("acquire"))?.into_inner());
    client.renew_session_lease(renew(&lease)).await.map_err(of("renew"))?;
    let check = CheckSessionLeaseRequest {
        session: session("T1", name),
        fencing_token: lease.fencing_token,
    };
    client.check_session_lease(check).await.map_err(of("check"))?;
    let waits = AcquireSessionLeaseRequest {
        wait: Some(Duration::from_millis(20).try_into().unwrap()),
        ..acquire("T1", name, "b")
    };
    client.acquire_session_lease(waits).await.map_err(of("wait"))?;
    client.release_session_lease(release(&lease)).await.map_err(of("release"))?;
    client.cleanup(CleanupRequest::default()).await.map_err(of("cleanup"))?;
    Ok(())
}

async fn turns(
    mut turns: TurnServiceClient<tonic::transport::Channel>,
    name: &str,
) -> Result<(), (&'static str, Status)> {
    let of = |call| move |status| (call, status);
    let begin = BeginTurnRequest {
        event: event("T1", &format!("{name} in a turn")),
        session: session("T1", &format!("{name} in a turn")),
        holder: "a".to_owned(),
        ..Default::default()
    };
    let outcome = turns.begin_turn(begin).await.map_err(of("begin"))?.into_inner().outcome;
    let Some(Outcome::Granted(granted)) = outcome else { panic!("{outcome:?}") };
    let turn_id = granted.turn.unwrap().turn_id;
    let renew = RenewTurnRequest { turn_id: turn_id.clone(), ..Default::default() };
    turns.renew_turn(renew).await.map_err(of("renew turn"))?;
    let outcome = TurnOutcome::Succeeded.into();
    let finish = FinishTurnRequest { turn_id, outcome, ..Default::default() };
    turns.finish_turn(finish).await.map_err(of("finish"))?;
    Ok(())
}

/// Looks at and puts right what the others left.
async fn administer(
    mut admin: AdminServiceClient<tonic::transport::Channel>,
    name: &str,
) -> Result<(), (&'static str, Status)> {
    let of = |call| move |status| (call, status);
    let session = || session("T1", name);
    let (actor, reason) = (|| "operator".to_owned(), || "to test".to_owned());
    let bind = BindEpicRequest {
        session: session(),
        epic_id: "E1".into(),
        actor: actor(),
        reason: reason(),
    };
    admin.bind_epic(bind).await.map_err(of("bind"))?;
    let get = GetSessionRequest { session: session() };
    admin.get_session(get).await.map_err(of("get"))?;
    let force =
        ForceReleaseSessionLeaseRequest { session: session(), actor: actor(), reason: reason() };
    admin.force_release_session_lease(force).await.map_err(of("force release"))?;
    let close = CloseSessionRequest { session: session(), actor: actor(), reason: reason() };
    admin.close_session(close).await.map_err(of("close"))?;
    admin.list_sessions(ListSessionsRequest::default()).await.map_err(of("sessions"))?;
    admin.list_events(ListEventsRequest::default()).await.map_err(of("events"))?;
    admin.get_stats(GetStatsRequest::default()).await.map_err(of("stats"))?;
    let forget = ForgetEventRequest { event: event("T1", name), actor: actor(), reason: reason() };
    admin.forget_event(forget).await.map_err(of("forget"))?;
    Ok(())
}
