//! Looking after sessions and events by hand.

use std::time::Duration;

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BindEpicRequest, CheckSessionLeaseRequest, CloseSessionRequest,
    EventState, ForceReleaseSessionLeaseRequest, ForgetEventRequest, GetSessionRequest,
    GetStatsRequest, GetStatsResponse, ListEventsRequest, ListSessionsRequest, Session,
    SessionLease, SessionState, TurnOutcome, admin_service_client::AdminServiceClient,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        Fixture, acquire, connect, event, granted, held, mark, release, renew, seconds, session,
    },
    on_all_stores,
};

on_all_stores!(
    a_session_is_told_as_it_is,
    sessions_are_listed_in_order_a_page_at_a_time,
    another_epic_is_bound_whatever_was_bound_before,
    a_lease_that_is_ended_by_force_is_lost_and_its_token_stale,
    a_closed_session_is_forgotten_but_for_its_fence,
    a_forgotten_event_is_new,
    what_there_is_is_counted,
    what_is_asked_wrongly_is_refused_by_name,
);

const DAY: i64 = 24 * 60 * 60;

type Admin = AdminServiceClient<Channel>;

async fn admin(f: &Fixture) -> Admin {
    Admin::new(connect(f.replica.server.address()).await)
}

async fn take(f: &mut Fixture, id: &str) -> SessionLease {
    granted(f.client.acquire_session_lease(acquire("T1", id, "a")).await.unwrap().into_inner())
}

async fn find(admin: &mut Admin, id: &str) -> Result<Session, Status> {
    let request = GetSessionRequest { session: session("T1", id) };
    Ok(admin.get_session(request).await?.into_inner().session.unwrap())
}

/// Whether the lease's token is current, and the highest on record.
async fn check(f: &mut Fixture, lease: &SessionLease) -> (bool, i64) {
    let check = CheckSessionLeaseRequest {
        session: session(&lease.team_id, &lease.session_id),
        fencing_token: lease.fencing_token,
    };
    let answer = f.client.check_session_lease(check).await.unwrap().into_inner();
    (answer.current, answer.fencing_token)
}

async fn is_lost(f: &mut Fixture, lease: &SessionLease) -> bool {
    let refused = f.client.renew_session_lease(renew(lease)).await.unwrap_err();
    let released = f.client.release_session_lease(release(lease)).await.unwrap();
    refused.get_details_error_info().unwrap().reason == "LEASE_LOST"
        && !released.into_inner().released
}

fn close(id: &str) -> CloseSessionRequest {
    CloseSessionRequest { session: session("T1", id), actor: "ops".into(), reason: String::new() }
}

fn force(id: &str) -> ForceReleaseSessionLeaseRequest {
    ForceReleaseSessionLeaseRequest {
        session: session("T1", id),
        actor: "ops".into(),
        reason: "stuck".into(),
    }
}

fn bind(id: &str, epic: &str) -> BindEpicRequest {
    BindEpicRequest {
        session: session("T1", id),
        epic_id: epic.into(),
        actor: "ops".into(),
        reason: String::new(),
    }
}

async fn a_session_is_told_as_it_is(mut f: Fixture) {
    let mut admin = admin(&f).await;
    assert_eq!(find(&mut admin, "s").await.unwrap_err().code(), Code::NotFound);
    let asked = AcquireSessionLeaseRequest {
        epic_id: "PROJ-50".into(),
        labels: [("run".to_owned(), "7".to_owned())].into(),
        ..acquire("T1", "s", "pod-1")
    };
    let lease = f.client.acquire_session_lease(asked).await.unwrap().into_inner();
    let lease = granted(lease);
    f.clock.advance(Duration::from_secs(10));
    let mut expected = Session {
        team_id: "T1".into(),
        session_id: "s".into(),
        state: SessionState::Held.into(),
        holder: "pod-1".into(),
        fencing_token: lease.fencing_token,
        acquire_time: lease.acquire_time,
        expire_time: lease.expire_time,
        remaining: seconds(20),
        epic_id: "PROJ-50".into(),
        labels: lease.labels.clone(),
        waiters: 0,
        ..Default::default()
    };
    assert_eq!(find(&mut admin, "s").await.unwrap(), expected);
    f.clock.advance(Duration::from_secs(20));
    expected.state = SessionState::Free.into();
    expected.remaining = None;
    assert_eq!(find(&mut admin, "s").await.unwrap(), expected);
}

async fn sessions_are_listed_in_order_a_page_at_a_time(mut f: Fixture) {
    let mut admin = admin(&f).await;
    // Byte by byte: capitals come first, and a longer id after a shorter one.
    let ids = ["B", "a", "a:1", "b", "é"];
    for id in ids.iter().rev() {
        take(&mut f, id).await;
    }
    let other = acquire("T0", "z", "a");
    f.client.acquire_session_lease(other).await.unwrap();
    let freed = take(&mut f, "freed").await;
    f.client.release_session_lease(release(&freed)).await.unwrap();

    let mut list = async |team: &str, state: SessionState, page_size| {
        let mut pages: Vec<Vec<String>> = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListSessionsRequest {
                team_id: team.into(),
                state: state.into(),
                page_size,
                page_token,
            };
            let page = admin.list_sessions(request).await.unwrap().into_inner();
            pages.push(page.sessions.into_iter().map(|session| session.session_id).collect());
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return pages;
            }
        }
    };
    let all = ["z", "B", "a", "a:1", "b", "freed", "é"];
    assert_eq!(list("", SessionState::Unspecified, 0).await, [all]);
    assert_eq!(list("T1", SessionState::Held, 0).await, [ids]);
    assert_eq!(list("T1", SessionState::Free, 0).await, [["freed"]]);
    let pages = list("", SessionState::Held, 2).await;
    assert_eq!(pages, [vec!["z", "B"], vec!["a", "a:1"], vec!["b", "é"]]);
    assert_eq!(list("none", SessionState::Unspecified, 1).await, [Vec::<String>::new()]);
}

async fn another_epic_is_bound_whatever_was_bound_before(mut f: Fixture) {
    let mut admin = admin(&f).await;
    let asked =
        |epic: &str| AcquireSessionLeaseRequest { epic_id: epic.into(), ..acquire("T1", "s", "a") };
    let lease = f.client.acquire_session_lease(asked("PROJ-50")).await.unwrap().into_inner();
    let lease = granted(lease);
    let bound = admin.bind_epic(bind("s", "PROJ-51")).await.unwrap().into_inner();
    let bound = bound.session.unwrap();
    assert_eq!((bound.epic_id.as_str(), bound.state()), ("PROJ-51", SessionState::Held));
    // The holder goes on.
    let renewed = f.client.renew_session_lease(renew(&lease)).await.unwrap().into_inner();
    assert_eq!(renewed.lease.unwrap().epic_id, "PROJ-51");
    assert!(f.client.release_session_lease(release(&lease)).await.unwrap().into_inner().released);
    let refused = f.client.acquire_session_lease(asked("PROJ-50")).await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "EPIC_MISMATCH");

    admin.bind_epic(bind("s", "")).await.unwrap();
    let lease =
        granted(f.client.acquire_session_lease(asked("PROJ-52")).await.unwrap().into_inner());
    assert_eq!(lease.epic_id, "PROJ-52");

    // One that nobody has used yet.
    let made = admin.bind_epic(bind("new", "PROJ-1")).await.unwrap().into_inner();
    let made = made.session.unwrap();
    assert_eq!((made.epic_id.as_str(), made.holder.as_str()), ("PROJ-1", ""));
    assert_eq!(made.state(), SessionState::Free);
    let first = take(&mut f, "new").await;
    assert_eq!(first.epic_id, "PROJ-1");
    assert!(first.fencing_token > made.fencing_token);
}

async fn a_lease_that_is_ended_by_force_is_lost_and_its_token_stale(mut f: Fixture) {
    let mut admin = admin(&f).await;
    let lease = take(&mut f, "s").await;
    let answer = admin.force_release_session_lease(force("s")).await.unwrap().into_inner();
    assert!(answer.released);
    let ended = answer.session.unwrap();
    assert_eq!(ended.state(), SessionState::Free);
    assert!(ended.fencing_token > lease.fencing_token, "the fence is raised");
    assert_eq!(check(&mut f, &lease).await, (false, ended.fencing_token));
    assert!(is_lost(&mut f, &lease).await);

    let next = take(&mut f, "s").await;
    assert!(next.fencing_token > ended.fencing_token);
    assert!(is_lost(&mut f, &lease).await);
    assert_eq!(check(&mut f, &next).await, (true, next.fencing_token));

    // What has ended cannot be ended, nor what never was.
    f.clock.advance(Duration::from_secs(30));
    let late = admin.force_release_session_lease(force("s")).await.unwrap().into_inner();
    assert!(!late.released);
    assert_eq!(late.session.unwrap().fencing_token, next.fencing_token);
    let none = admin.force_release_session_lease(force("none")).await.unwrap().into_inner();
    assert!(!none.released);
    assert_eq!(none.session, None);
}

async fn a_closed_session_is_forgotten_but_for_its_fence(mut f: Fixture) {
    let mut admin = admin(&f).await;
    let bound = AcquireSessionLeaseRequest { epic_id: "PROJ-50".into(), ..acquire("T1", "s", "a") };
    let lease = granted(f.client.acquire_session_lease(bound).await.unwrap().into_inner());
    assert!(admin.close_session(close("s")).await.unwrap().into_inner().closed);
    assert!(!admin.close_session(close("s")).await.unwrap().into_inner().closed);
    assert_eq!(find(&mut admin, "s").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(check(&mut f, &lease).await, (false, 0));
    assert!(is_lost(&mut f, &lease).await);

    let next = take(&mut f, "s").await;
    assert_eq!(next.epic_id, "");
    assert!(next.fencing_token > lease.fencing_token);
    assert!(is_lost(&mut f, &lease).await);
    held(f.client.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap().into_inner());
}

async fn a_forgotten_event_is_new(mut f: Fixture) {
    let mut admin = admin(&f).await;
    let forget = || ForgetEventRequest {
        event: event("T1", "e"),
        actor: "ops".into(),
        reason: "a run failed".into(),
    };
    assert_eq!(admin.forget_event(forget()).await.unwrap_err().code(), Code::NotFound);
    let first = f.client.mark_processed(mark("T1", "e")).await.unwrap().into_inner();
    // Whoever remembers it must forget it as well.
    assert!(!f.client.mark_processed(mark("T1", "e")).await.unwrap().into_inner().first);
    let forgotten = admin.forget_event(forget()).await.unwrap().into_inner();
    assert_eq!(forgotten.event, first.event);
    assert!(f.client.mark_processed(mark("T1", "e")).await.unwrap().into_inner().first);

    f.clock.advance(Duration::from_hours(24));
    let expired = admin.forget_event(forget()).await.unwrap_err();
    assert_eq!(expired.code(), Code::NotFound);
}

async fn what_there_is_is_counted(mut f: Fixture) {
    let mut admin = admin(&f).await;
    let mut stats = async |team: &str| {
        let request = GetStatsRequest { team_id: team.into() };
        admin.get_stats(request).await.unwrap().into_inner()
    };
    assert_eq!(stats("").await, GetStatsResponse::default());
    for (team, id) in [("T1", "a"), ("T1", "b"), ("T2", "a")] {
        f.client.mark_processed(mark(team, id)).await.unwrap();
    }
    f.clock.advance(Duration::from_hours(24));
    f.client.mark_processed(mark("T1", "c")).await.unwrap();
    take(&mut f, "held").await;
    let lease = take(&mut f, "freed").await;
    f.client.release_session_lease(release(&lease)).await.unwrap();
    let expected = GetStatsResponse {
        events: 1,
        expired_events: 2,
        sessions: 2,
        held_sessions: 1,
        waiters: 0,
    };
    assert_eq!(stats("T1").await, expected);
    assert_eq!(stats("").await, GetStatsResponse { expired_events: 3, ..expected });
}

async fn what_is_asked_wrongly_is_refused_by_name(f: Fixture) {
    let mut admin = admin(&f).await;
    let field = |status: Status| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        status.get_details_bad_request().unwrap().field_violations[0].field.clone()
    };
    let list = ListSessionsRequest::default;
    for (request, named) in [
        (ListSessionsRequest { page_size: -1, ..list() }, "page_size"),
        (ListSessionsRequest { page_size: 251, ..list() }, "page_size"),
        (ListSessionsRequest { page_token: "2".into(), ..list() }, "page_token"),
        (ListSessionsRequest { page_token: "T\u{1f}s\0".into(), ..list() }, "page_token"),
        (ListSessionsRequest { state: 9, ..list() }, "state"),
        (ListSessionsRequest { team_id: "a\nb".into(), ..list() }, "team_id"),
    ] {
        assert_eq!(field(admin.list_sessions(request).await.unwrap_err()), named);
    }
    let list = ListEventsRequest::default;
    for (request, named) in [
        (ListEventsRequest { page_size: -1, ..list() }, "page_size"),
        (ListEventsRequest { page_size: 251, ..list() }, "page_size"),
        (ListEventsRequest { page_token: "2".into(), ..list() }, "page_token"),
        (ListEventsRequest { state: 9, ..list() }, "state"),
        (ListEventsRequest { outcome: 9, ..list() }, "outcome"),
        (ListEventsRequest { outcome: TurnOutcome::Failed.into(), ..list() }, "outcome"),
        (ListEventsRequest { outcome: 1, state: EventState::NotSeen.into(), ..list() }, "outcome"),
        (
            ListEventsRequest { outcome: 3, state: EventState::InProgress.into(), ..list() },
            "outcome",
        ),
        (ListEventsRequest { newer_than: seconds(-1), ..list() }, "newer_than"),
        (ListEventsRequest { newer_than: seconds(3_650 * DAY + 1), ..list() }, "newer_than"),
        (ListEventsRequest { older_than: seconds(-1), ..list() }, "older_than"),
        (ListEventsRequest { older_than: seconds(3_650 * DAY + 1), ..list() }, "older_than"),
        (ListEventsRequest { team_id: "a\nb".into(), ..list() }, "team_id"),
    ] {
        assert_eq!(field(admin.list_events(request).await.unwrap_err()), named);
    }
    let widest = ListEventsRequest {
        state: EventState::Processed.into(),
        outcome: TurnOutcome::GaveUp.into(),
        newer_than: seconds(3_650 * DAY),
        older_than: seconds(3_650 * DAY),
        page_size: 250,
        ..list()
    };
    admin.list_events(widest).await.unwrap();
    let get = GetSessionRequest { session: None };
    assert_eq!(field(admin.get_session(get).await.unwrap_err()), "session");
    let nobody = CloseSessionRequest { actor: String::new(), ..close("s") };
    assert_eq!(field(admin.close_session(nobody).await.unwrap_err()), "actor");
    let why = ForceReleaseSessionLeaseRequest { reason: String::new(), ..force("s") };
    assert_eq!(field(admin.force_release_session_lease(why).await.unwrap_err()), "reason");
    let epic = bind("s", &"x".repeat(513));
    assert_eq!(field(admin.bind_epic(epic).await.unwrap_err()), "epic_id");
    let forget =
        ForgetEventRequest { event: event("", "e"), actor: "ops".into(), reason: String::new() };
    assert_eq!(field(admin.forget_event(forget).await.unwrap_err()), "event.team_id");
    let stats = GetStatsRequest { team_id: "x".repeat(513) };
    assert_eq!(field(admin.get_stats(stats).await.unwrap_err()), "team_id");
}
