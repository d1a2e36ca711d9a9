//! What may have been changed, and what was not.

use oncegate::grpc::pb::{
    BindEpicRequest, CheckSessionLeaseRequest, GetStatsRequest, IsProcessedRequest,
};

use super::*;

const FLAGS: [&str; 2] = ["--store-timeout", "2s"];

/// A server whose statements reach the database, while the answers can be lost.
async fn behind_proxy() -> (Proxy, Replica) {
    let url = postgres::new_database().await;
    let proxy = Proxy::start_for("oncegate", &url, Line::Open).await;
    let replica = Replica::start(&proxy.url, Clock::Store, &FLAGS).await;
    (proxy, replica)
}

/// A mark whose answer is lost: it was committed.
pub(super) async fn outcome_unknown() -> Status {
    let (proxy, replica) = behind_proxy().await;
    let mut client = replica.client().await;
    client.mark_processed(mark("T1", "Ev0")).await.unwrap();
    let marked = MarkProcessedRequest { request_id: "1".into(), ..mark("T1", "Ev1") };
    proxy.set(Line::Mute);
    let status = client.mark_processed(marked.clone()).await.unwrap_err();
    // The next one finds no connection, and is not sent.
    let next = client.mark_processed(mark("T1", "Ev2")).await.unwrap_err();
    assert_eq!(reason(&next), Reason::StoreUnavailable, "{next:?}");
    proxy.set(Line::Open);
    let again = async {
        loop {
            if let Ok(answer) = client.mark_processed(marked.clone()).await {
                return answer.into_inner().first;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, again).await.unwrap(), "the same attempt has the same answer");
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outcome_of_a_read_is_never_unknown() {
    let (proxy, replica) = behind_proxy().await;
    let mut client = replica.client().await;
    let mut admin = AdminServiceClient::new(connect(replica.server.address()).await);
    let look = IsProcessedRequest { event: event("T1", "Ev1"), ..Default::default() };
    let check = CheckSessionLeaseRequest { session: session("T1", "s"), fencing_token: 1 };
    client.is_processed(look.clone()).await.unwrap();
    client.check_session_lease(check.clone()).await.unwrap();
    admin.get_stats(GetStatsRequest::default()).await.unwrap();
    proxy.set(Line::Mute);
    let looked = client.is_processed(look).await.unwrap_err();
    let checked = client.check_session_lease(check).await.unwrap_err();
    for status in [looked, checked] {
        assert_eq!(reason(&status), Reason::StoreUnavailable, "{status:?}");
    }
}

/// A change that was made before a look at what it left failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_before_a_failed_look_is_not_denied() {
    let url = postgres::new_database().await;
    let mut outside = PgConnection::connect(&url).await.unwrap();
    // The change reads first, the look second, and that waits.
    let second = "current_query() LIKE '%json_agg%' AND nextval('public.reads') = 2";
    execute(&url, "CREATE SEQUENCE reads").await;
    execute(&url, &postgres::gate(second)).await;
    outside.execute(sqlx::raw_sql("BEGIN; SELECT FROM gate FOR UPDATE")).await.unwrap();
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let mut admin = AdminServiceClient::new(connect(replica.server.address()).await);
    let bind = BindEpicRequest {
        session: session("T1", "s"),
        epic_id: "PROJ-1".into(),
        actor: "a".into(),
        ..Default::default()
    };
    let refused = admin.bind_epic(bind).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::OutcomeUnknown, "{refused:?}");
    outside.execute("ROLLBACK").await.unwrap();
    let ask = GetSessionRequest { session: session("T1", "s") };
    let bound = admin.get_session(ask).await.unwrap().into_inner().session.unwrap();
    assert_eq!(bound.epic_id, "PROJ-1");
}

/// New events of a batch are marked by a statement of their own, before the one for the others:
/// if that waits for locks until no further part is tried, the new ones are marked all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_was_marked_is_not_denied_for_its_neighbours() {
    let url = postgres::new_database().await;
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let expired = "INSERT INTO processed_events (team_id, event_id, processed_at, expires_at)
        SELECT 'T1', 'Ev' || n, '2020-01-01', '2020-01-02' FROM generate_series(0, 198, 2) n";
    execute(&url, expired).await;
    let mut outside = PgConnection::connect(&url).await.unwrap();
    let lock = "BEGIN; SELECT FROM processed_events FOR UPDATE";
    outside.execute(sqlx::raw_sql(lock)).await.unwrap();
    let requests = (0..200).map(|number| mark("T1", &format!("Ev{number}"))).collect();
    let request = BatchMarkProcessedRequest { requests };
    let answer = replica.client().await.batch_mark_processed(request).await.unwrap();
    for (number, result) in answer.into_inner().results.into_iter().enumerate() {
        let outcome = match result.result.unwrap() {
            Item::Response(response) => Ok(response.first),
            Item::Error(error) => Err(error.reason),
        };
        let expected = if number % 2 == 0 { Err("CONTENDED".to_owned()) } else { Ok(true) };
        assert_eq!(outcome, expected, "Ev{number}");
    }
}
