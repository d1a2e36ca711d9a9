//! What is just inside the bounds is taken.

use super::*;

on_all_stores!(the_longest_ids_are_kept, the_ends_of_every_range_are_taken,);

/// An id of 512 bytes that no index can compress.
fn longest(seed: u64) -> String {
    let mut state = seed;
    let letter = |_| {
        // https://en.wikipedia.org/wiki/Linear_congruential_generator, Knuth's numbers.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + u8::try_from(state >> 58).unwrap())
    };
    let id: String = (0..512).map(letter).map(|c| if c == ':' { 'z' } else { c }).collect();
    assert_eq!(id.len(), 512);
    id
}

async fn the_longest_ids_are_kept(mut f: Fixture) {
    let slack_key = |slack| EventKey {
        team_id: longest(0),
        key: Some(event_key::Key::Slack(slack)),
        aliases: Vec::new(),
        ..Default::default()
    };
    let events = [
        event(&longest(0), &longest(1)).unwrap(),
        slack_key(SlackEvent { event_id: longest(2), ..slack() }),
        slack_key(SlackEvent { client_msg_id: longest(3), ..slack() }),
        slack_key(SlackEvent { action_id: longest(4), ..interaction(&longest(5), &longest(6)) }),
        slack_key(SlackEvent { channel: longest(7), ts: longest(8), ..Default::default() }),
    ];
    for (event, seed) in events.into_iter().zip((100..).step_by(8)) {
        let aliases = (seed..seed + 8).map(longest).collect();
        let event = EventKey { aliases, ..event };
        let request = MarkProcessedRequest {
            event: Some(event.clone()),
            request_id: longest(9),
            ttl: None,
            payload_digest: vec![7; 32],
        };
        for _ in 0..2 {
            let marked = f.client.mark_processed(request.clone()).await.unwrap().into_inner();
            assert!(marked.first, "{event:?}");
        }
        let again = MarkProcessedRequest { request_id: String::new(), ..request };
        assert!(!f.client.mark_processed(again).await.unwrap().into_inner().first);
        let ask = IsProcessedRequest { event: Some(event), ..Default::default() };
        assert!(f.client.is_processed(ask).await.unwrap().into_inner().processed);
    }

    let thread = ThreadKey { channel_id: longest(2), thread_ts: longest(3) };
    let of_thread = SessionKey {
        team_id: longest(0),
        key: Some(session_key::Key::Thread(thread)),
        ..Default::default()
    };
    let labels: HashMap<_, _> = (10..18).map(|seed| (longest(seed), longest(seed + 8))).collect();
    for session in [session(&longest(0), &longest(1)), Some(of_thread)] {
        let request = AcquireSessionLeaseRequest {
            session: session.clone(),
            holder: longest(4),
            request_id: longest(5),
            epic_id: longest(6),
            labels: labels.clone(),
            ..Default::default()
        };
        let lease = f.client.acquire_session_lease(request.clone()).await.unwrap();
        let lease = granted(lease.into_inner());
        assert_eq!(lease.holder, longest(4));
        assert_eq!(lease.epic_id, longest(6));
        assert_eq!(lease.labels, labels);
        let again = f.client.acquire_session_lease(request).await.unwrap();
        assert_eq!(granted(again.into_inner()).lease_id, lease.lease_id);
        let renew = RenewSessionLeaseRequest { session, lease_id: lease.lease_id, ttl: None };
        let renewed = f.client.renew_session_lease(renew).await.unwrap().into_inner();
        assert_eq!(renewed.lease.unwrap().labels, labels);
    }
}

async fn the_ends_of_every_range_are_taken(mut f: Fixture) {
    for ttl in [1, 30 * DAY] {
        let request = MarkProcessedRequest { ttl: seconds(ttl), ..mark("T", &ttl.to_string()) };
        assert!(f.client.mark_processed(request).await.unwrap().into_inner().first);
    }
    for (ttl, wait) in [(1, 0), (15 * 60, 10 * 60)] {
        let request = AcquireSessionLeaseRequest {
            ttl: seconds(ttl),
            wait: seconds(wait),
            labels: (0..8).map(|n| (n.to_string(), n.to_string())).collect(),
            ..acquire("T", &ttl.to_string(), "h")
        };
        let lease = granted(f.client.acquire_session_lease(request).await.unwrap().into_inner());
        assert_eq!(lease.remaining, seconds(ttl));
        assert_eq!(lease.labels.len(), 8);
        let renew = RenewSessionLeaseRequest {
            session: session("T", &lease.session_id),
            lease_id: lease.lease_id,
            ttl: seconds(ttl),
        };
        f.client.renew_session_lease(renew).await.unwrap();
    }
    for fencing_token in [1, i64::MAX] {
        let check = CheckSessionLeaseRequest { session: session("T", "x"), fencing_token };
        assert!(!f.client.check_session_lease(check).await.unwrap().into_inner().current);
    }
    let requests = (0..1_000).map(|n| mark("T", &format!("batch {n}"))).collect();
    let batch = BatchMarkProcessedRequest { requests };
    let results = f.client.batch_mark_processed(batch).await.unwrap().into_inner().results;
    assert_eq!(results.len(), 1_000);
    for result in results {
        assert!(matches!(result.result, Some(Item::Response(answer)) if answer.first));
    }
    for (older_than, max_rows, deleted) in
        [(None, 1, 0), (Some(3_650 * DAY), 1_000_000, 0), (Some(0), 1, 1)]
    {
        let cleanup = CleanupRequest {
            team_id: "T".into(),
            older_than: older_than.and_then(seconds),
            max_rows,
            dry_run: false,
        };
        let cleaned = f.client.cleanup(cleanup).await.unwrap().into_inner();
        assert_eq!(cleaned.deleted_events, deleted);
    }
}
