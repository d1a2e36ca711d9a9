use super::*;
use crate::{
    domain::{
        Begin, Begun, Delivered, Mark, RequestId, Team, Ttl,
        limits::{CLAIM_TTL, EVENT_TTL},
    },
    store::{
        Clock, EventStore, Store as _, TurnStore, Work,
        memory::{Handle, Memory},
    },
};

/// A store that can be written to, and not read.
struct Unreadable(Handle);

impl Decided for Unreadable {}

impl Records for Unreadable {
    async fn read(&mut self, _wanted: &Wanted) -> Result<Snapshot, StoreError> {
        Err(StoreError::unavailable("unreadable"))
    }

    async fn apply(&mut self, plans: Vec<Plan>) -> Result<Vec<Applied>, StoreError> {
        self.0.apply(plans).await
    }

    fn known_time(&self) -> Option<Timestamp> {
        self.0.known_time()
    }

    fn ids(&mut self) -> &mut Ids {
        self.0.ids()
    }
}

fn mark(event: &str, request: u128) -> Mark {
    let key = EventKey { team: Team::stored("T"), event: event.to_owned() };
    Mark {
        event: Delivered::new(key, Vec::new(), None, None),
        ttl: Ttl::parse(None, *EVENT_TTL.end(), &EVENT_TTL).unwrap(),
        request: RequestId::from_uuid(uuid::Uuid::from_u128(request)),
    }
}

#[tokio::test]
async fn what_is_committed_is_answered_though_the_rest_fails() {
    let mut store = Unreadable(Memory::new(Clock::Store).connection(Work::Marks));
    let (first, other, new) = (mark("known", 1), mark("known", 2), mark("new", 3));
    assert!(matches!(&store.mark(&[&first]).await.unwrap()[..], [Verdict::Decided(_)]));
    let answers = store.mark(&[&other, &new]).await.unwrap();
    let [Verdict::Failed(StoreError::Unavailable(_)), Verdict::Decided(_)] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert!(store.mark(&[&other]).await.is_err(), "nothing of it is decided");
}

/// A store whose writes are committed, while their answers are lost.
struct Mute(Handle);

impl Decided for Mute {}

impl Records for Mute {
    async fn read(&mut self, wanted: &Wanted) -> Result<Snapshot, StoreError> {
        self.0.read(wanted).await
    }

    async fn apply(&mut self, plans: Vec<Plan>) -> Result<Vec<Applied>, StoreError> {
        self.0.apply(plans).await?;
        Err(StoreError::unknown("mute"))
    }

    fn known_time(&self) -> Option<Timestamp> {
        self.0.known_time()
    }

    fn ids(&mut self) -> &mut Ids {
        self.0.ids()
    }
}

fn turn(event: &str, request: u128) -> Begin {
    Begin {
        event: mark(event, request).event,
        request: RequestId::from_uuid(uuid::Uuid::from_u128(request)),
        holder: String::new(),
        claim_ttl: Ttl::parse(None, *CLAIM_TTL.end(), &CLAIM_TTL).unwrap(),
        max_attempts: 1,
        session: None,
        stream: None,
        resumes: None,
        grace: std::time::Duration::ZERO,
    }
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_unknown_beside_one_that_is_decided() {
    let memory = Memory::new(Clock::Store);
    let mut store = memory.connection(Work::Turns);
    store.change_turns(&[&turn("claimed", 1)], &[]).await.unwrap();
    let mut mute = Mute(store);
    let turned = mute.change_turns(&[&turn("claimed", 2), &turn("new", 3)], &[]).await.unwrap();
    assert!(matches!(turned.begins[0], Verdict::Decided(Begun::NotAvailable(..))), "{turned:?}");
    let lost = &turned.begins[1];
    assert!(matches!(lost, Verdict::Failed(StoreError::OutcomeUnknown(_))), "{lost:?}");
}
