//! Changes whose answer is lost, with their connection: the statement is run again, and finds what
//! its first run has changed.

use std::time::Duration;

use oncegate::{
    domain::{Begin, Begun, Enqueued, FencingToken, LeaseId, Obtained, ResumedBy},
    store::{
        Clock, Connection, SessionAnswer, SessionBatch, SessionOp, Store as _, Verdict, Work,
        postgres::Postgres,
    },
};

use crate::harness::{
    ops::{acquire, begin, enqueue, release},
    postgres::new_database,
    proxy::{Line, Proxy},
};

/// A connection whose answers can be lost, and that has run statements before.
struct Lossy<C> {
    proxy: Proxy,
    connection: C,
}

async fn lossy() -> Lossy<impl Connection> {
    let proxy = Proxy::start_for("oncegate", &new_database().await, Line::Open).await;
    let store = Postgres::new(&proxy.url, Duration::from_secs(5), Clock::Store).unwrap();
    store.migrate().await.unwrap();
    let mut lossy = Lossy { connection: store.connection(Work::Leases), proxy };
    let (before, other) = (acquire("before", 1), release("before", LeaseId::random()));
    lossy.change(SessionOp::Acquire(&before)).await;
    lossy.change(SessionOp::Release(&other)).await;
    lossy
}

impl<C: Connection> Lossy<C> {
    async fn change(&mut self, op: SessionOp<'_>) -> (SessionAnswer, SessionBatch) {
        let batch = self.connection.change_sessions(&[op]).await.unwrap();
        let [Verdict::Decided(answer)] = &batch.answers[..] else { panic!("{batch:?}") };
        (answer.clone(), batch)
    }

    /// The same; the answer is lost of the statement that comes after so many.
    async fn lose(&mut self, after: usize, op: SessionOp<'_>) -> (SessionAnswer, SessionBatch) {
        self.proxy.lose_answer_after(after);
        self.change(op).await
    }

    async fn begin(&mut self, asked: &Begin) -> Begun {
        let turned = self.connection.change_turns(&[asked], &[]).await.unwrap();
        let [Verdict::Decided(begun)] = &turned.begins[..] else { panic!("{turned:?}") };
        begun.clone()
    }

    /// Takes the session `s`, for which somebody waits then. Answers both leases.
    async fn awaited(&mut self) -> (LeaseId, LeaseId) {
        let first = acquire("s", 1);
        let (SessionAnswer::Acquired(held), _) = self.change(SessionOp::Acquire(&first)).await
        else {
            panic!("another answer")
        };
        let waiter = enqueue("s", 2);
        self.change(SessionOp::Enqueue(&waiter)).await;
        (held.row.lease.id, waiter.acquire.lease)
    }
}

#[tokio::test]
async fn a_lease_that_the_first_run_took_is_new_to_its_caller() {
    let mut lossy = lossy().await;
    let asked = acquire("s", 1);
    let (answer, _) = lossy.lose(0, SessionOp::Acquire(&asked)).await;
    let SessionAnswer::Acquired(acquired) = answer else { panic!("{answer:?}") };
    // Otherwise nobody gives it back if the caller has gone.
    assert!(acquired.obtained == Some(Obtained::Granted) && acquired.row.live, "{acquired:?}");
    let (again, _) = lossy.change(SessionOp::Acquire(&asked.anew(None))).await;
    let SessionAnswer::Acquired(again) = again else { panic!("{again:?}") };
    assert_eq!(again.row.lease.id, acquired.row.lease.id);
    assert_eq!(again.obtained, Some(Obtained::Found(ResumedBy::Nobody)));
}

#[tokio::test]
async fn a_place_that_the_first_run_took_keeps_its_ticket() {
    let mut lossy = lossy().await;
    lossy.awaited().await;
    let third = enqueue("s", 3);
    let (placed, _) = lossy.lose(1, SessionOp::Enqueue(&third)).await;
    assert!(matches!(placed, SessionAnswer::Enqueued(Enqueued::Waits(1..))), "{placed:?}");
    assert_eq!(lossy.change(SessionOp::Enqueue(&third)).await.0, placed);
}

#[tokio::test]
async fn a_hand_over_of_the_first_run_reaches_its_waiter() {
    let mut lossy = lossy().await;
    let (held, next) = lossy.awaited().await;
    let ending = release("s", held);
    // The short statement, the read, the write.
    let (answer, batch) = lossy.lose(2, SessionOp::Release(&ending)).await;
    assert_eq!(answer, SessionAnswer::Released(true));
    let handed: Vec<LeaseId> = batch.handovers.iter().map(|row| row.lease.id).collect();
    assert_eq!(handed, [next]);
}

#[tokio::test]
async fn a_turn_that_the_first_run_began_is_new_to_its_caller() {
    // By the short statement, and by a read and a write.
    for (reads, aliases) in [(0, &[][..]), (1, &["alias"])] {
        let mut lossy = lossy().await;
        // The statements are prepared.
        for aliases in [&[][..], &["before too"]] {
            let session = Some(acquire(&format!("{aliases:?}"), 7));
            let event = format!("before {aliases:?}");
            let begun = lossy.begin(&Begin { session, ..begin(&event, aliases) }).await;
            assert!(matches!(begun, Begun::Granted { .. }), "{begun:?}");
        }
        let asked = begin("Ev1", aliases);
        lossy.proxy.lose_answer_after(reads);
        let begun = lossy.begin(&asked).await;
        let Begun::Granted { claim, lease, obtained } = begun else { panic!("{begun:?}") };
        assert_eq!((obtained, claim.attempt), (Obtained::Granted, 1), "{claim:?}");
        assert!(lease.unwrap().token > FencingToken(0));
        let again = lossy.begin(&asked.anew(None)).await;
        let found = Obtained::Found(ResumedBy::Nobody);
        assert!(matches!(again, Begun::Granted { obtained, .. } if obtained == found), "{again:?}");
    }
}
