//! How an error for each reason comes about.

use super::*;

/// An error for this reason; none if it cannot come about on this store.
#[expect(clippy::too_many_lines, reason = "one arm for each reason")]
pub(super) async fn provoke(store: Store, wanted: Reason) -> Option<Status> {
    let on_postgres = store == Store::Postgres;
    Some(match wanted {
        Reason::InvalidField => failed_mark(&store.serve(&[]).await, mark("", "Ev1")).await,
        Reason::NoKey => {
            let slack = SlackEvent { user_id: "U1".into(), ..Default::default() };
            let key = Some(event_key::Key::Slack(slack));
            let event = Some(EventKey { team_id: "T1".into(), key, ..Default::default() });
            let mark = MarkProcessedRequest { event, ..Default::default() };
            failed_mark(&store.serve(&[]).await, mark).await
        }
        Reason::UnreadableRequest => {
            let f = store.serve(&[]).await;
            sent(&f, &[], &[0, 0, 0, 0, 1, 0xff]).await.status().await
        }
        Reason::UnstorableText if on_postgres => {
            let options = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
            let url = new_database_with(options).await;
            let replica = Replica::start(&url, Clock::Store, &[]).await;
            replica.client().await.mark_processed(mark("T1", "🤖")).await.unwrap_err()
        }
        Reason::NotFound => {
            let f = store.serve(&[]).await;
            let ask = GetSessionRequest { session: session("T1", "s") };
            let channel = connect(f.replica.server.address()).await;
            AdminServiceClient::new(channel).get_session(ask).await.unwrap_err()
        }
        Reason::LeaseLost => {
            let mut f = store.serve(&[]).await;
            let lease = f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
            let lease = granted(lease.into_inner());
            f.client.release_session_lease(release(&lease)).await.unwrap();
            f.client.renew_session_lease(renew(&lease)).await.unwrap_err()
        }
        Reason::MaxHold => max_hold(store.serve(&["--max-hold", "15m"]).await).await,
        Reason::ClaimLost => {
            let mut f = store.serve(&[]).await;
            let turn = begun(&f, BeginTurnRequest { claim_ttl: seconds(1), ..wish("Ev1") }).await;
            f.clock.advance(Duration::from_secs(2));
            assert!(f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
            finished(&f, turn).await
        }
        Reason::StreamReplaced => {
            let f = store.serve(&[]).await;
            let hold = HoldSessionLeaseRequest {
                session: session("T1", "s"),
                holder: "a".into(),
                request_id: "1".into(),
                ..Default::default()
            };
            let hold = async || f.client.clone().hold_session_lease(hold.clone()).await.unwrap();
            let mut first = hold().await.into_inner();
            first.message().await.unwrap();
            let _second = hold().await;
            end(first).await
        }
        Reason::EpicMismatch => {
            let mut f = store.serve(&[]).await;
            let ask = |epic: &str| AcquireSessionLeaseRequest {
                epic_id: epic.to_owned(),
                ..acquire("T1", "s", "a")
            };
            f.client.acquire_session_lease(ask("PROJ-1")).await.unwrap();
            f.client.acquire_session_lease(ask("PROJ-2")).await.unwrap_err()
        }
        Reason::PayloadMismatch => {
            let mut f = store.serve(&[]).await;
            let digest = |digest: u8| MarkProcessedRequest {
                payload_digest: vec![digest],
                ..mark("T1", "Ev1")
            };
            f.client.mark_processed(digest(1)).await.unwrap();
            failed_mark(&f, digest(2)).await
        }
        Reason::QueueFull => {
            let mut f = store.serve(&[]).await;
            f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
            let waits = (0..65).map(|_| waiting(&f));
            let waits: Vec<_> = join_all(waits).await;
            any_refusal(waits).await
        }
        Reason::TooManyCalls => {
            let mut f = store.serve(&["--max-calls", "2"]).await;
            f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
            // Only half of the calls may wait.
            let waits: Vec<_> = join_all((0..2).map(|_| waiting(&f))).await;
            any_refusal(waits).await
        }
        Reason::TooManyConnections => {
            let mut f = store.serve(&["--max-connections", "1"]).await;
            f.client.mark_processed(mark("T1", "Ev0")).await.unwrap();
            let mut second = f.replica.client().await;
            second.mark_processed(mark("T1", "Ev1")).await.unwrap_err()
        }
        Reason::LaneFull if on_postgres => lane_full(store).await,
        Reason::MetadataTooLarge => {
            let f = store.serve(&[]).await;
            let long = "x".repeat(32 * 1024);
            sent(&f, &[("x-long", &long)], &framed(&mark("T1", "Ev1"))).await.status().await
        }
        Reason::MessageTooLarge => {
            let f = store.serve(&[]).await;
            let request_id = "x".repeat(2 * 1024 * 1024);
            failed_mark(&f, MarkProcessedRequest { request_id, ..mark("T1", "Ev1") }).await
        }
        Reason::Draining => {
            let f = store.serve(&[]).await;
            let step = RunTurnRequest { step: Some(Step::Begin(wish("Ev1"))) };
            let steps = stream::iter([step]).chain(stream::pending());
            let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
            let mut events = turns.run_turn(steps).await.unwrap().into_inner();
            let first = events.message().await.unwrap().unwrap().news;
            assert!(matches!(first, Some(run_turn_response::News::Granted(_))), "{first:?}");
            let (_, status) = tokio::join!(f.replica.server.stop(), end(events));
            status
        }
        Reason::StoreUnavailable => match store {
            Store::Postgres => stopped().await,
            Store::Sqlite => {
                let mut f = store.serve(&["--duplicate-cache-entries", "0"]).await;
                f.client.mark_processed(mark("T1", "Ev1")).await.unwrap();
                let file = f.url.strip_prefix("sqlite://").unwrap();
                std::fs::rename(file, format!("{file}.away")).unwrap();
                failed_mark(&f, mark("T1", "Ev2")).await
            }
        },
        Reason::OutcomeUnknown if on_postgres => unknown::outcome_unknown().await,
        Reason::Contended if on_postgres => {
            let f = store.serve(&["--store-timeout", "1s"]).await;
            let mut outside = PgConnection::connect(&f.url).await.unwrap();
            let insert = "BEGIN; INSERT INTO processed_events (team_id, event_id)
                VALUES ('T1', 'Ev1')";
            outside.execute(sqlx::raw_sql(insert)).await.unwrap();
            failed_mark(&f, mark("T1", "Ev1")).await
        }
        Reason::StoreUnusable => {
            let f = store.serve(&[]).await;
            execute(&f.url, "ALTER TABLE processed_events RENAME TO elsewhere").await;
            failed_mark(&f, mark("T1", "Ev1")).await
        }
        Reason::RejectedByDatabase => {
            let f = store.serve(&[]).await;
            execute(&f.url, rule(store)).await;
            failed_mark(&f, mark("T1", "Ev1")).await
        }
        Reason::CallTimeout => {
            let f = store.serve(&["--preface-timeout", "50ms"]).await;
            let mut raw = Raw::connect(f.replica.server.address()).await;
            raw.begin(MARK, &[]).await.status().await
        }
        Reason::Internal if on_postgres => {
            let f = store.serve(&[]).await;
            execute(&f.url, "ALTER TABLE processed_events RENAME COLUMN request_id TO other").await;
            failed_mark(&f, mark("T1", "Ev1")).await
        }
        // The embedded store has no encoding, no other client and no connection that breaks; it
        // cannot tell a column that is missing from a table; and a single writer is not held up.
        Reason::UnstorableText
        | Reason::LaneFull
        | Reason::OutcomeUnknown
        | Reason::Contended
        | Reason::Internal
        // The caller that ended a call gets no answer to it.
        | Reason::Cancelled
        // `tests/auth` provokes these.
        | Reason::Unauthenticated
        | Reason::TeamDenied
        | Reason::RoleDenied
        | Reason::Quota
        | Reason::Unspecified => return None,
    })
}

async fn failed_mark(f: &Fixture, mark: MarkProcessedRequest) -> Status {
    f.client.clone().mark_processed(mark).await.unwrap_err()
}

/// A call that carries these bytes.
async fn sent(f: &Fixture, metadata: &[(&'static str, &str)], bytes: &[u8]) -> RawCall {
    let mut raw = Raw::connect(f.replica.server.address()).await;
    let mut call = raw.begin(MARK, metadata).await;
    call.send(bytes.to_vec(), true);
    call
}

fn wish(event_id: &str) -> BeginTurnRequest {
    BeginTurnRequest {
        event: event("T1", event_id),
        session: session("T1", "s"),
        holder: "a".into(),
        ..Default::default()
    }
}

async fn begun(f: &Fixture, request: BeginTurnRequest) -> Turn {
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    match turns.begin_turn(request).await.unwrap().into_inner().outcome.unwrap() {
        begin_turn_response::Outcome::Granted(granted) => granted.turn.unwrap(),
        other => panic!("not granted: {other:?}"),
    }
}

/// How finishing a turn fails.
async fn finished(f: &Fixture, turn: Turn) -> Status {
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    let outcome = TurnOutcome::Succeeded.into();
    let finish = FinishTurnRequest { turn_id: turn.turn_id, outcome, ..Default::default() };
    turns.finish_turn(finish).await.unwrap_err()
}

/// How a lease and a turn end that were renewed for as long as may be.
async fn max_hold(mut f: Fixture) -> Status {
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    let lease = f.client.acquire_session_lease(acquire("T1", "other", "a")).await.unwrap();
    let lease = granted(lease.into_inner());
    let turn = begun(&f, BeginTurnRequest { claim_ttl: seconds(3_600), ..wish("Ev1") }).await;
    let renewal = RenewTurnRequest {
        turn_id: turn.turn_id.clone(),
        claim_ttl: seconds(3_600),
        lease_ttl: seconds(900),
    };
    let renew = RenewSessionLeaseRequest { ttl: seconds(900), ..renew(&lease) };
    for _ in 0..2 {
        turns.renew_turn(renewal.clone()).await.unwrap();
        f.client.renew_session_lease(renew.clone()).await.unwrap();
        f.clock.advance(Duration::from_mins(7));
    }
    f.clock.advance(Duration::from_mins(1));
    let status = turns.renew_turn(renewal).await.unwrap_err();
    for also in [finished(&f, turn).await, f.client.renew_session_lease(renew).await.unwrap_err()] {
        assert_eq!(reason(&also), Reason::MaxHold, "{also:?}");
    }
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert_eq!(metadata["max_hold"], "900s");
    status
}

type Waiting = tokio::task::JoinHandle<Result<(), Status>>;

/// A call that waits for the session, with a connection of its own.
async fn waiting(f: &Fixture) -> Waiting {
    let mut client = f.replica.client().await;
    let request = AcquireSessionLeaseRequest { wait: seconds(600), ..acquire("T1", "s", "b") };
    tokio::spawn(async move { client.acquire_session_lease(request).await.map(drop) })
}

/// The first of several calls that is refused.
async fn any_refusal(calls: Vec<Waiting>) -> Status {
    let (first, _, others) = futures_util::future::select_all(calls).await;
    others.iter().for_each(Waiting::abort);
    first.unwrap().unwrap_err()
}

/// Of two batches that fill the queue, one is refused while the other waits for a lock.
async fn lane_full(store: Store) -> Status {
    let flags = ["--queue-capacity", "1000", "--writers", "1", "--workers", "1"];
    let f = store.serve(&flags).await;
    let mut outside = PgConnection::connect(&f.url).await.unwrap();
    outside.execute(sqlx::raw_sql("BEGIN; LOCK TABLE processed_events")).await.unwrap();
    let batch = |_| {
        let mut client = f.client.clone();
        let requests = (0..1_000).map(|number| mark("T1", &format!("Ev{number}"))).collect();
        let request = BatchMarkProcessedRequest { requests };
        tokio::spawn(async move { client.batch_mark_processed(request).await.map(drop) })
    };
    any_refusal((0..2).map(batch).collect()).await
}

/// A call to a server whose database was stopped before.
async fn stopped() -> Status {
    let mut cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let replica = Replica::start(&cluster.url(), Clock::Store, &[]).await;
    let mut client = replica.client().await;
    client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    tokio::task::spawn_blocking(move || cluster.stop()).await.unwrap();
    // The first call may have been sent to a backend that was ending.
    let first = client.mark_processed(mark("T1", "Ev2")).await.unwrap_err();
    assert!(matches!(reason(&first), Reason::OutcomeUnknown | Reason::StoreUnavailable));
    client.mark_processed(mark("T1", "Ev2")).await.unwrap_err()
}

/// How a stream ends.
async fn end<T>(mut stream: Streaming<T>) -> Status {
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok(""),
            Err(status) => return status,
        }
    }
}
