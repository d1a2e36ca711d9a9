//! Changes whose answer is lost, with their connection: the statement is run again, and finds what
//! its first run has changed.

use std::time::Duration;

use oncegate::{
    domain::{
        Begin, Begun, Enqueued, FencingToken, Finish, FinishAs, LeaseId, Obtained, ResumedBy,
        TurnId,
    },
    store::{
        Clock, Connection, SessionAnswer, SessionBatch, SessionOp, Store as _, StoreError, Verdict,
        Work, postgres::Postgres,
    },
};

use crate::harness::{
    ops::{acquire, begin, enqueue, key, release},
    postgres::new_database,
    proxy::{Line, Proxy},
};

/// A connection whose answers can be lost, and that has run statements before; beside it, one of
/// another replica.
struct Lossy<C> {
    proxy: Proxy,
    connection: C,
    other: C,
}

async fn lossy() -> Lossy<impl Connection> {
    let url = new_database().await;
    let proxy = Proxy::start_for("oncegate", &url, Line::Open).await;
    let connect = |url: &str| {
        let store = Postgres::new(url, Duration::from_secs(5), Clock::Store).unwrap();
        (store.connection(Work::Leases), store)
    };
    let ((connection, store), (other, _)) = (connect(&proxy.url), connect(&url));
    store.migrate().await.unwrap();
    let mut lossy = Lossy { proxy, connection, other };
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

    /// Runs `change`. The answer is lost of the statement that comes after so many, and before the
    /// next one, `meanwhile` is done by the other replica.
    async fn lose_before<T>(
        &mut self,
        after: i64,
        change: impl AsyncFnOnce(&mut C) -> T,
        meanwhile: impl AsyncFnOnce(&Proxy, &mut C),
    ) -> T {
        let Self { proxy, connection, other } = self;
        proxy.lose_answer_after(usize::try_from(after).unwrap());
        proxy.hold_after(after + 1);
        let meanwhile = async {
            proxy.holds().await;
            meanwhile(proxy, other).await;
            proxy.let_pass();
        };
        tokio::join!(change(connection), meanwhile).0
    }

    async fn begin(&mut self, asked: &Begin) -> Begun {
        let turned = self.connection.change_turns(&[asked], &[]).await.unwrap();
        let [Verdict::Decided(begun)] = &turned.begins[..] else { panic!("{turned:?}") };
        begun.clone()
    }

    /// The statements on turns are prepared.
    async fn prepare_turns(&mut self) {
        for aliases in [&[][..], &["before too"]] {
            let session = Some(acquire(&format!("{aliases:?}"), 7));
            let event = format!("before {aliases:?}");
            let begun = self.begin(&Begin { session, ..begin(&event, aliases) }).await;
            assert!(matches!(begun, Begun::Granted { .. }), "{begun:?}");
        }
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
        (held.row.lease.id, waiter.acquire.lease.id())
    }
}

async fn run<C: Connection>(connection: &mut C, op: SessionOp<'_>) -> Verdict<SessionAnswer> {
    connection.change_sessions(&[op]).await.unwrap().answers.remove(0)
}

async fn try_to<C: Connection>(
    connection: &mut C,
    ops: &[SessionOp<'_>],
) -> Vec<Verdict<SessionAnswer>> {
    connection.change_sessions(ops).await.unwrap().answers
}

async fn try_to_begin<C: Connection>(connection: &mut C, asked: &[&Begin]) -> Vec<Verdict<Begun>> {
    connection.change_turns(asked, &[]).await.unwrap().begins
}

async fn end<C: Connection>(connection: &mut C, session: &str, lease: LeaseId) {
    let ended = run(connection, SessionOp::Release(&release(session, lease))).await;
    assert!(matches!(ended, Verdict::Decided(SessionAnswer::Released(true))), "{ended:?}");
}

/// Runs it again after a conflict, as a lane does.
async fn begin_at_last<C: Connection>(connection: &mut C, asked: &Begin) -> Begun {
    loop {
        let mut turned = connection.change_turns(&[asked], &[]).await.unwrap();
        match turned.begins.remove(0) {
            Verdict::Retry => {}
            Verdict::Decided(begun) => break begun,
            Verdict::Failed(error) => panic!("{error}"),
        }
    }
}

async fn fail<C: Connection>(connection: &mut C, finish: &Finish) {
    let failed = connection.change_turns(&[], &[finish]).await.unwrap().finishes.remove(0);
    assert!(matches!(failed, Verdict::Decided(Ok(_))), "{failed:?}");
}

/// Another caller has the session, and ends its lease.
async fn pass<C: Connection>(connection: &mut C, session: &str) {
    let next = acquire(session, 4);
    let next_has = run(connection, SessionOp::Acquire(&next)).await;
    assert!(matches!(next_has, Verdict::Decided(SessionAnswer::Acquired(_))), "{next_has:?}");
    end(connection, session, next.lease.id()).await;
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
        lossy.prepare_turns().await;
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

/// Otherwise a release of the first one that is sent again would end the second.
#[tokio::test]
async fn a_lease_that_has_ended_since_is_followed_by_another() {
    let mut lossy = lossy().await;
    let asked = acquire("s", 1);
    let own = asked.lease.id();
    let taking = async |to: &mut _| run(to, SessionOp::Acquire(&asked)).await;
    let taken = lossy.lose_before(0, taking, async |_, other| {
        end(other, "s", own).await;
        pass(other, "s").await;
    });
    let taken = taken.await;
    let Verdict::Decided(SessionAnswer::Acquired(taken)) = taken else { panic!("{taken:?}") };
    assert_eq!(taken.obtained, Some(Obtained::Granted));
    assert_ne!(taken.row.lease.id, own);
}

#[tokio::test]
async fn a_lease_of_a_turn_that_has_ended_since_is_followed_by_another() {
    // By the short statement, and by a read and a write.
    for (reads, aliases) in [(0, &[][..]), (1, &["alias"])] {
        let mut lossy = lossy().await;
        lossy.prepare_turns().await;
        let asked = begin("Ev1", aliases);
        let own = asked.session.as_ref().unwrap().lease.id();
        let turn = TurnId {
            event: asked.event.key.clone(),
            request: asked.request,
            attempt: 1,
            lease: Some((key("turn"), own)),
            max_attempts: asked.max_attempts,
        };
        let finish = Finish::new(turn, FinishAs::Failed(None), None);
        let beginning = async |to: &mut _| begin_at_last(to, &asked).await;
        let begun = lossy.lose_before(reads, beginning, async |_, other| {
            fail(other, &finish).await;
            pass(other, "turn").await;
        });
        let begun = begun.await;
        let Begun::Granted { claim, lease: Some(lease), .. } = begun else { panic!("{begun:?}") };
        assert_eq!(claim.attempt, 2);
        assert_ne!(lease.id, own);
    }
}

/// It may have ended the lease, or found it ended: the session of another caller shows neither.
#[tokio::test]
async fn a_release_is_in_doubt_if_another_caller_has_the_session_since() {
    let mut lossy = lossy().await;
    let asked = acquire("s", 1);
    lossy.change(SessionOp::Acquire(&asked)).await;
    let own = release("s", asked.lease.id());
    let ending = async |to: &mut _| try_to(to, &[SessionOp::Release(&own)]).await;
    let ended = lossy.lose_before(0, ending, async |_, other| {
        run(other, SessionOp::Acquire(&acquire("s", 2))).await;
    });
    let ended = ended.await;
    assert!(may_be_done(&ended[0]), "{ended:?}");
    assert_eq!(lossy.change(SessionOp::Release(&own)).await.0, SessionAnswer::Released(false));
}

#[tokio::test]
async fn a_place_whose_lease_has_ended_since_is_not_taken_again() {
    let mut lossy = lossy().await;
    let (held, next) = lossy.awaited().await;
    let third = enqueue("s", 3);
    let waiting = async |to: &mut _| run(to, SessionOp::Enqueue(&third)).await;
    // The read, the write.
    let placed = lossy.lose_before(1, waiting, async |_, other| {
        for lease in [held, next, third.acquire.lease.id()] {
            end(other, "s", lease).await;
        }
        run(other, SessionOp::Acquire(&acquire("s", 5))).await;
    });
    let placed = placed.await;
    assert!(matches!(placed, Verdict::Retry), "{placed:?}");
    let again = lossy.change(SessionOp::Enqueue(&third)).await.0;
    assert_eq!(again, SessionAnswer::Enqueued(Enqueued::Spent));
}

fn may_be_done<T>(verdict: &Verdict<T>) -> bool {
    matches!(verdict, Verdict::Failed(StoreError::OutcomeUnknown(_)))
}

fn is_undone<T>(verdict: &Verdict<T>) -> bool {
    matches!(verdict, Verdict::Failed(StoreError::Unavailable(_)))
}

/// The database is away by then. What the lost statement was not about is not in doubt.
#[tokio::test]
async fn what_cannot_be_found_may_have_been_done() {
    let cut = async |proxy: &Proxy, _: &mut _| proxy.set(Line::Cut);
    let (mut to_take, taking, waiting) = (lossy().await, acquire("s", 1), enqueue("t", 2));
    let ops = [SessionOp::Acquire(&taking), SessionOp::Enqueue(&waiting)];
    let take = async |to: &mut _| try_to(to, &ops).await;
    let taken = to_take.lose_before(0, take, cut).await;
    assert!(may_be_done(&taken[0]) && is_undone(&taken[1]), "{taken:?}");

    let (mut to_begin, beginning) = (lossy().await, begin("Ev1", &[]));
    to_begin.prepare_turns().await;
    // One of several names is left to the rules.
    let other = Begin { session: None, ..begin("Ev2", &["alias"]) };
    let try_it = async |to: &mut _| try_to_begin(to, &[&beginning, &other]).await;
    let begun = to_begin.lose_before(0, try_it, cut).await;
    assert!(may_be_done(&begun[0]) && is_undone(&begun[1]), "{begun:?}");
}
