//! What becomes of a lease that is given back.

use super::*;
use crate::{
    domain::{Labels, OwnLease, RequestId, Team, Ttl, limits::LEASE_TTL},
    store::{Clock, memory::Memory},
};

async fn granted(sessions: &Sessions, acquire: &Acquire) -> Option<LeaseId> {
    match sessions.acquire(acquire, Duration::ZERO).await.unwrap() {
        AcquireOutcome::Granted(grant) => Some(grant.accept().value.id),
        AcquireOutcome::Held(_) => None,
    }
}

#[tokio::test]
async fn a_lease_of_a_turn_that_failed_is_given_back_unless_its_request_was_repeated() {
    let (stop, metrics) = (CancellationToken::new(), Metrics::new());
    let max_hold = Duration::from_hours(1);
    let bounds = Bounds { writers: 1, capacity: 8, waiters: 8, max_hold };
    let store = Memory::new(Clock::Store);
    let sessions = Sessions::start(&store, &[Handle::current()], bounds, &stop, &metrics);
    for is_repeated in [false, true] {
        let key =
            SessionKey { team: Team::stored("T1"), session: format!("repeated: {is_repeated}") };
        let acquire = |request| Acquire {
            key: key.clone(),
            holder: "bot".into(),
            request,
            lease: OwnLease::random(),
            ttl: Ttl::parse(None, *LEASE_TTL.end(), &LEASE_TTL).unwrap(),
            epic: None,
            labels: Labels::default(),
            stream: None,
            resumes: None,
            digest: None,
        };
        let [asked, other] = [(); 2].map(|()| RequestId::for_session(&key, None));
        let lease = granted(&sessions[0], &acquire(asked)).await.unwrap();
        if is_repeated {
            assert_eq!(granted(&sessions[0], &acquire(asked)).await, Some(lease));
        }
        sessions[0].give_back(&key, lease);
        assert_eq!(granted(&sessions[0], &acquire(other)).await.is_some(), !is_repeated);
    }
}
