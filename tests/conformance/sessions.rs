//! Sessions: at most one live lease, tokens that only rise.

use std::{collections::HashMap, time::Duration};

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, CheckSessionLeaseRequest, CleanupRequest, RenewSessionLeaseRequest,
    SessionLease,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    harness::{Client, Fixture, acquire, granted, held, release, renew, seconds, session},
    on_all_stores,
};

on_all_stores!(
    a_held_session_is_told_not_given,
    only_the_exact_holder_renews_and_releases,
    a_request_id_gets_its_lease_again,
    the_first_epic_stays_with_the_session,
    tokens_rise_whatever_ends_the_lease,
    a_lease_carries_what_it_was_given,
    no_lease_is_held_for_longer_than_an_hour;
    kept: tokens_rise_over_a_restart,
);

async fn take(client: &mut Client, request: AcquireSessionLeaseRequest) -> SessionLease {
    granted(client.acquire_session_lease(request).await.unwrap().into_inner())
}

async fn is_current(client: &mut Client, lease: &SessionLease) -> bool {
    let check = CheckSessionLeaseRequest {
        session: session(&lease.team_id, &lease.session_id),
        fencing_token: lease.fencing_token,
    };
    client.check_session_lease(check).await.unwrap().into_inner().current
}

async fn a_held_session_is_told_not_given(mut f: Fixture) {
    let lease = take(&mut f.client, acquire("T1", "s", "a")).await;
    assert_eq!(lease.remaining, seconds(30));
    f.clock.advance(Duration::from_secs(10));
    let answer = f.client.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap();
    let held = held(answer.into_inner());
    assert_eq!((held.holder.as_str(), held.remaining), ("a", seconds(20)));
    assert_eq!(held.expire_time, lease.expire_time);
    assert!(held.retry_after.is_some());
    // The holder's own name does not make it the holder.
    let answer = f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
    crate::harness::held(answer.into_inner());
}

async fn only_the_exact_holder_renews_and_releases(mut f: Fixture) {
    let lease = take(&mut f.client, acquire("T1", "s", "a")).await;
    let stranger =
        SessionLease { lease_id: "6f2c4a52-8d5d-4a4e-9b0b-0f5c2f1f7a11".into(), ..lease.clone() };
    let refused = f.client.renew_session_lease(renew(&stranger)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "LEASE_LOST");
    assert!(
        !f.client.release_session_lease(release(&stranger)).await.unwrap().into_inner().released
    );

    f.clock.advance(Duration::from_secs(29));
    let renewed = f.client.renew_session_lease(renew(&lease)).await.unwrap().into_inner();
    let renewed = renewed.lease.unwrap();
    assert_eq!(renewed.lease_id, lease.lease_id);
    assert_eq!(renewed.fencing_token, lease.fencing_token);
    assert_eq!(renewed.remaining, seconds(30));

    // Past its end, a lease is nobody's, whether or not somebody took it since.
    f.clock.advance(Duration::from_secs(30));
    assert!(!is_current(&mut f.client, &lease).await);
    let late = f.client.renew_session_lease(renew(&lease)).await.unwrap_err();
    assert_eq!(late.get_details_error_info().unwrap().reason, "LEASE_LOST");
    assert!(!f.client.release_session_lease(release(&lease)).await.unwrap().into_inner().released);
    let next = take(&mut f.client, acquire("T1", "s", "b")).await;
    assert!(!f.client.release_session_lease(release(&lease)).await.unwrap().into_inner().released);
    assert!(is_current(&mut f.client, &next).await, "a stale release changed nothing");

    for _ in 0..2 {
        let answer = f.client.release_session_lease(release(&next)).await.unwrap();
        assert!(answer.into_inner().released, "releasing is idempotent");
    }
}

async fn a_request_id_gets_its_lease_again(mut f: Fixture) {
    let named = AcquireSessionLeaseRequest { request_id: "r1".into(), ..acquire("T1", "s", "a") };
    let lease = take(&mut f.client, named.clone()).await;
    f.clock.advance(Duration::from_secs(10));
    let again = take(&mut f.client, named.clone()).await;
    assert_eq!(again.lease_id, lease.lease_id);
    assert_eq!(again.remaining, seconds(20), "repeating an answer does not renew");
    f.client.release_session_lease(release(&lease)).await.unwrap();
    let anew = take(&mut f.client, named).await;
    assert!(anew.fencing_token > lease.fencing_token);
}

async fn the_first_epic_stays_with_the_session(mut f: Fixture) {
    let bound =
        |epic: &str| AcquireSessionLeaseRequest { epic_id: epic.into(), ..acquire("T1", "s", "a") };
    let lease = take(&mut f.client, bound("PROJ-50")).await;
    assert_eq!(lease.epic_id, "PROJ-50");
    f.client.release_session_lease(release(&lease)).await.unwrap();

    let refused = f.client.acquire_session_lease(bound("PROJ-51")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let info = refused.get_details_error_info().unwrap();
    assert_eq!(info.reason, "EPIC_MISMATCH");
    assert_eq!(info.metadata, HashMap::from([("epic_id".into(), "PROJ-50".into())]));

    // Bound sessions outlive their leases, idle unbound ones go.
    let other = take(&mut f.client, acquire("T1", "unbound", "a")).await;
    f.clock.advance(Duration::from_hours(1));
    let cleaned = f.client.cleanup(CleanupRequest::default()).await.unwrap().into_inner();
    assert_eq!(cleaned.deleted_sessions, 1);
    let lease = take(&mut f.client, acquire("T1", "s", "b")).await;
    assert_eq!(lease.epic_id, "PROJ-50");
    assert!(
        take(&mut f.client, acquire("T1", "unbound", "b")).await.fencing_token
            > other.fencing_token
    );
}

async fn tokens_rise_whatever_ends_the_lease(mut f: Fixture) {
    let mut last = 0;
    for round in 0..12 {
        let lease = take(&mut f.client, acquire("T1", "s", "a")).await;
        assert!(lease.fencing_token > last, "round {round}");
        last = lease.fencing_token;
        match round % 3 {
            0 => drop(f.client.release_session_lease(release(&lease)).await.unwrap()),
            1 => f.clock.advance(Duration::from_secs(31)),
            _ => {
                f.clock.advance(Duration::from_secs(31));
                let cleaned = f.client.cleanup(CleanupRequest::default()).await.unwrap();
                assert_eq!(cleaned.into_inner().deleted_sessions, 1);
            }
        }
        assert!(!is_current(&mut f.client, &lease).await);
    }
}

async fn tokens_rise_over_a_restart(mut f: Fixture) {
    let mut last = 0;
    for _ in 0..3 {
        let lease = take(&mut f.client, acquire("T1", "s", "a")).await;
        assert!(lease.fencing_token > last);
        last = lease.fencing_token;
        f.client.release_session_lease(release(&lease)).await.unwrap();
        f = f.restarted(&[]).await;
    }
}

async fn a_lease_carries_what_it_was_given(mut f: Fixture) {
    let labels =
        HashMap::from([("run".into(), "42".into()), ("naïve \"q\"".into(), String::new())]);
    let request = AcquireSessionLeaseRequest {
        labels: labels.clone(),
        ttl: seconds(900),
        ..acquire("T1", "s", "pod-1 🤖")
    };
    let lease = take(&mut f.client, request).await;
    assert_eq!(lease.labels, labels);
    assert_eq!(lease.holder, "pod-1 🤖");
    assert_eq!(lease.remaining, seconds(900));
    let renewed = f.client.renew_session_lease(renew(&lease)).await.unwrap().into_inner();
    assert_eq!(renewed.lease.unwrap().labels, labels);
}

async fn no_lease_is_held_for_longer_than_an_hour(mut f: Fixture) {
    let minutes = |count: u64| Duration::from_mins(count);
    let long = AcquireSessionLeaseRequest { ttl: seconds(900), ..acquire("T1", "s", "a") };
    let lease = take(&mut f.client, long.clone()).await;
    let again = RenewSessionLeaseRequest { ttl: seconds(900), ..renew(&lease) };
    // The last of them ends with the hour.
    for remaining in [900, 900, 900, 240] {
        f.clock.advance(minutes(14));
        let renewed = f.client.renew_session_lease(again.clone()).await.unwrap().into_inner();
        assert_eq!(renewed.lease.unwrap().remaining, seconds(remaining));
    }
    f.clock.advance(minutes(4));
    let refused = f.client.renew_session_lease(again).await.unwrap_err();
    let info = refused.get_details_error_info().unwrap();
    assert_eq!(info.reason, "MAX_HOLD");
    assert_eq!(info.metadata, HashMap::from([("max_hold".into(), "3600s".into())]));

    // The next holder has an hour of its own; and one that ended earlier is just lost.
    let next = take(&mut f.client, long).await;
    f.clock.advance(minutes(15));
    let lost = f.client.renew_session_lease(renew(&next)).await.unwrap_err();
    assert_eq!(lost.get_details_error_info().unwrap().metadata, HashMap::new());
}
