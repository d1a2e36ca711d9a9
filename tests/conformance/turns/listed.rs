//! Events, as those who look after the bots see them.

use oncegate::{
    domain::{
        Begin, Begun, Delivered, EventKey, EventRow, Finish, FinishAs, RequestId, Team, TeamFilter,
        Timestamp, Ttl, TurnId, limits,
    },
    grpc::pb::{ForgetEventRequest, ListEventsRequest, ListEventsResponse},
    store::{
        AdminStore as _, Clock, EventFilter, Page, Store, TurnStore, Verdict, Work,
        postgres::Postgres, sqlite::Sqlite,
    },
};

use super::*;
use crate::harness::{postgres::new_database, sqlite_url};

on_all_stores!(
    an_event_is_listed_as_it_stands,
    events_are_told_apart_by_how_they_stand,
    events_are_told_apart_by_their_age,
    events_are_listed_in_order_a_page_at_a_time,
    an_expired_event_is_not_listed,
    what_is_listed_can_be_forgotten,
);

type Admin = AdminServiceClient<Channel>;

async fn admin(f: &Fixture) -> Admin {
    Admin::new(connect(f.replica.server.address()).await)
}

async fn list(admin: &mut Admin, request: ListEventsRequest) -> ListEventsResponse {
    admin.list_events(request).await.unwrap().into_inner()
}

fn ids(listed: &ListEventsResponse) -> Vec<&str> {
    listed.events.iter().map(|event| event.event_id.as_str()).collect()
}

/// Asks for an event alone.
fn alone(event_id: &str) -> BeginTurnRequest {
    BeginTurnRequest { session: None, ..wish(event_id, "pod-1") }
}

/// Leaves an event of each kind: one that is claimed, one whose turn failed, one whose
/// claim lapsed, one that was given up, one that succeeded, one that was marked.
async fn one_of_each(f: &mut Fixture) {
    let mut turns = turns(f).await;
    let short = BeginTurnRequest { claim_ttl: seconds(1), ..alone("lapsed") };
    turn(begin(&mut turns, short).await);
    f.clock.advance(Duration::from_secs(2));
    for (id, max_attempts, outcome) in [
        ("failed", 5, TurnOutcome::Failed),
        ("given up", 1, TurnOutcome::Failed),
        ("succeeded", 5, TurnOutcome::Succeeded),
    ] {
        let mine = turn(begin(&mut turns, BeginTurnRequest { max_attempts, ..alone(id) }).await);
        finish(&mut turns, &mine, outcome).await.unwrap();
    }
    turn(begin(&mut turns, alone("claimed")).await);
    f.client.mark_processed(mark("T1", "marked")).await.unwrap();
}

#[expect(clippy::unnecessary_wraps, reason = "as a message's field has it")]
fn moment(f: &Fixture) -> Option<prost_types::Timestamp> {
    let micros = f.clock.micros();
    let nanos = i32::try_from(micros % 1_000_000 * 1_000).unwrap();
    Some(prost_types::Timestamp { seconds: micros / 1_000_000, nanos })
}

async fn an_event_is_listed_as_it_stands(mut f: Fixture) {
    let (mut turns, mut admin) = (turns(&f).await, admin(&f).await);
    let named = |state: EventState| ProcessedEvent {
        team_id: "T1".into(),
        event_id: "Ev1".into(),
        state: state.into(),
        ..Default::default()
    };
    let nothing = list(&mut admin, ListEventsRequest::default()).await;
    let read = ListEventsResponse { read_time: moment(&f), ..Default::default() };
    assert_eq!(nothing, read);

    let mut only = async |f: &Fixture| {
        let listed = list(&mut admin, ListEventsRequest::default()).await;
        assert_eq!((listed.events.len(), listed.read_time), (1, moment(f)));
        listed.events.into_iter().next().unwrap()
    };
    let begun = moment(&f);
    let short = BeginTurnRequest { claim_ttl: seconds(10), max_attempts: 2, ..alone("Ev1") };
    let mine = turn(begin(&mut turns, short.clone()).await);
    let claimed = only(&f).await;
    assert_eq!(claimed, look(&mut f, "Ev1").await);
    assert_eq!((claimed.state(), claimed.attempt), (EventState::InProgress, 1));
    f.clock.advance(Duration::from_secs(10));
    // Its claim lapses at this very moment.
    let lapsed = ProcessedEvent {
        process_time: begun,
        expire_time: mine.expire_time,
        holder: "pod-1".into(),
        attempt: 1,
        ..named(EventState::NotSeen)
    };
    assert_eq!(only(&f).await, lapsed);
    f.clock.advance(Duration::from_secs(1));
    assert_eq!(only(&f).await, lapsed);

    let patient = BeginTurnRequest { max_attempts: 3, holder: "pod-2".into(), ..short };
    let mine = turn(begin(&mut turns, patient.clone()).await);
    f.clock.advance(Duration::from_secs(1));
    finish(&mut turns, &mine, TurnOutcome::Failed).await.unwrap();
    let failed = ProcessedEvent {
        process_time: moment(&f),
        expire_time: moment(&f),
        holder: "pod-2".into(),
        attempt: 2,
        ..named(EventState::NotSeen)
    };
    f.clock.advance(Duration::from_secs(1));
    assert_eq!(only(&f).await, failed);

    let mine = turn(begin(&mut turns, patient).await);
    let given_up = finish(&mut turns, &mine, TurnOutcome::Failed).await.unwrap();
    assert_eq!((given_up.outcome(), given_up.attempt), (TurnOutcome::GaveUp, 3));
    assert_eq!(only(&f).await, given_up);
}

async fn events_are_told_apart_by_how_they_stand(mut f: Fixture) {
    one_of_each(&mut f).await;
    let mut admin = admin(&f).await;
    let any = (EventState::Unspecified, TurnOutcome::Unspecified);
    for ((state, outcome), expected) in [
        (any, &["claimed", "failed", "given up", "lapsed", "marked", "succeeded"][..]),
        ((EventState::InProgress, any.1), &["claimed"]),
        ((EventState::NotSeen, any.1), &["failed", "lapsed"]),
        ((EventState::Processed, any.1), &["given up", "marked", "succeeded"]),
        ((any.0, TurnOutcome::Succeeded), &["succeeded"]),
        ((any.0, TurnOutcome::GaveUp), &["given up"]),
        ((EventState::Processed, TurnOutcome::Succeeded), &["succeeded"]),
        ((EventState::Processed, TurnOutcome::GaveUp), &["given up"]),
    ] {
        let request = ListEventsRequest {
            state: state.into(),
            outcome: outcome.into(),
            ..Default::default()
        };
        let listed = list(&mut admin, request.clone()).await;
        assert_eq!(ids(&listed), expected, "{state:?} {outcome:?}");
        let other = ListEventsRequest { team_id: "T2".into(), ..request };
        assert_eq!(ids(&list(&mut admin, other).await), [""; 0]);
    }
}

async fn events_are_told_apart_by_their_age(mut f: Fixture) {
    let (mut turns, mut admin) = (turns(&f).await, admin(&f).await);
    turn(begin(&mut turns, alone("a")).await);
    f.clock.advance(Duration::from_secs(10));
    let mine = turn(begin(&mut turns, alone("b")).await);
    f.client.mark_processed(mark("T1", "c")).await.unwrap();
    f.clock.advance(Duration::from_secs(10));
    finish(&mut turns, &mine, TurnOutcome::Failed).await.unwrap();
    // By now a is 20 s old, c 10 s, and b, whose turn has failed, none.
    for (newer_than, older_than, expected) in [
        (seconds(21), None, &["a", "b", "c"][..]),
        (seconds(20), None, &["b", "c"]),
        (seconds(10), None, &["b"]),
        (seconds(0), None, &[]),
        (None, seconds(0), &["a", "b", "c"]),
        (None, seconds(10), &["a", "c"]),
        (None, seconds(20), &["a"]),
        (None, seconds(21), &[]),
        (seconds(20), seconds(10), &["c"]),
        (seconds(10), seconds(10), &[]),
    ] {
        let request = ListEventsRequest { newer_than, older_than, ..Default::default() };
        let listed = list(&mut admin, request).await;
        assert_eq!(ids(&listed), expected, "{newer_than:?} {older_than:?}");
    }
}

async fn events_are_listed_in_order_a_page_at_a_time(mut f: Fixture) {
    let (mut turns, mut admin) = (turns(&f).await, admin(&f).await);
    // Byte by byte: capitals come first, and a longer id after a shorter one.
    for id in ["é", "b", "a:1", "a", "B"] {
        turn(begin(&mut turns, alone(id)).await);
    }
    for (team, id) in [("T0", "z"), ("T1", "c"), ("T2", "a")] {
        f.client.mark_processed(mark(team, id)).await.unwrap();
    }
    let mut pages = async |team: &str, state: EventState, page_size| {
        let mut pages: Vec<Vec<String>> = Vec::new();
        let mut request = ListEventsRequest {
            team_id: team.into(),
            state: state.into(),
            page_size,
            ..Default::default()
        };
        loop {
            let page = list(&mut admin, request.clone()).await;
            pages.push(page.events.into_iter().map(|event| event.event_id).collect());
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return pages;
            }
        }
    };
    let all = ["z", "B", "a", "a:1", "b", "c", "é", "a"];
    assert_eq!(pages("", EventState::Unspecified, 0).await, [all]);
    assert_eq!(pages("T1", EventState::Unspecified, 6).await, [&all[1..7]]);
    let thirds = pages("", EventState::Unspecified, 3).await;
    assert_eq!(thirds, [vec!["z", "B", "a"], vec!["a:1", "b", "c"], vec!["é", "a"]]);
    let claimed = pages("T1", EventState::InProgress, 2).await;
    assert_eq!(claimed, [vec!["B", "a"], vec!["a:1", "b"], vec!["é"]]);
}

async fn an_expired_event_is_not_listed(mut f: Fixture) {
    one_of_each(&mut f).await;
    let mut admin = admin(&f).await;
    let mut all = async || list(&mut admin, ListEventsRequest::default()).await;
    // The lapsed one is two seconds older than the others.
    f.clock.advance(Duration::from_secs(24 * 60 * 60 - 3));
    let each = ["claimed", "failed", "given up", "lapsed", "marked", "succeeded"];
    assert_eq!(ids(&all().await), each);
    f.clock.advance(Duration::from_secs(1));
    assert_eq!(ids(&all().await), ["claimed", "failed", "given up", "marked", "succeeded"]);
    f.clock.advance(Duration::from_secs(2));
    assert_eq!(ids(&all().await), [""; 0]);
}

/// As it is listed: an event whose claim has lapsed or failed is on record too.
async fn what_is_listed_can_be_forgotten(mut f: Fixture) {
    one_of_each(&mut f).await;
    let mut admin = admin(&f).await;
    let listed = list(&mut admin, ListEventsRequest::default()).await.events;
    assert_eq!(listed.len(), 6);
    for expected in listed {
        let id = expected.event_id.clone();
        let forget = || ForgetEventRequest {
            event: event("T1", &id),
            actor: "ops".into(),
            ..Default::default()
        };
        let forgotten = admin.forget_event(forget()).await.unwrap().into_inner();
        assert_eq!(forgotten.event.unwrap(), expected);
        assert_eq!(admin.forget_event(forget()).await.unwrap_err().code(), Code::NotFound);
    }
    assert_eq!(ids(&list(&mut admin, ListEventsRequest::default()).await), [""; 0]);
}

/// Begins a turn of an event, and ends it.
async fn begin_and_end(
    store: &mut impl TurnStore,
    event: &str,
    ending: impl Fn(Timestamp) -> FinishAs,
) {
    let event = EventKey { team: Team::stored("T1"), event: event.into() };
    let request = RequestId::for_event(&event, None);
    let claim_ttl = Ttl::parse(None, limits::DEFAULT_CLAIM_TTL, &limits::CLAIM_TTL).unwrap();
    let wish = Begin {
        event: Delivered::new(event.clone(), Vec::new(), None, None),
        request,
        holder: "pod-1".into(),
        claim_ttl,
        max_attempts: 5,
        session: None,
        stream: None,
        resumes: None,
        grace: Duration::ZERO,
    };
    let begun = store.change_turns(&[&wish], &[]).await.unwrap().begins.pop();
    let Some(Verdict::Decided(Begun::Granted { claim, .. })) = begun else { panic!("{begun:?}") };
    let turn = TurnId { event, request, attempt: claim.attempt, lease: None, max_attempts: 5 };
    let ending = ending(claim.claim_time);
    store.change_turns(&[], &[&Finish::new(turn, ending, None)]).await.unwrap();
}

async fn what_nobody_was_told_of(store: &impl Store) {
    let mut store = store.connection(Work::Turns);
    begin_and_end(&mut store, "never", FinishAs::Abandoned).await;
    begin_and_end(&mut store, "once", |_| FinishAs::Failed(None)).await;
    begin_and_end(&mut store, "once", FinishAs::Abandoned).await;
    let page = Page { team: TeamFilter::stored(None), after: Default::default(), limit: 9 };
    let listed = store.list_events(&page, &EventFilter::default()).await.unwrap().rows;
    let [(key, EventRow::Claimed(claim))] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((key.event.as_str(), claim.attempt), ("once", 1));
}

#[tokio::test]
async fn a_turn_that_nobody_was_told_of_is_not_listed() {
    let url = new_database().await;
    let store = Postgres::new(&url, Duration::from_secs(5), Clock::Store).unwrap();
    store.migrate().await.unwrap();
    what_nobody_was_told_of(&store).await;

    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&sqlite_url(&directory), Clock::Store).await.unwrap();
    store.migrate().await.unwrap();
    what_nobody_was_told_of(&store).await;
}
