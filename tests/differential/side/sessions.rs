//! Taking sessions, giving them back, and waiting for them.

use std::time::Duration;

use oncegate::{
    domain::{
        Acquire, Decision, Enqueue, Enqueued, LeaseId, Release, Renew, Renewed, SessionKey,
        SessionRow,
    },
    store::{Connection, SessionAnswer, SessionBatch, SessionOp, StoreError, Verdict},
};

use super::{
    super::{
        names::{handed, without_queue},
        steps::{Of, lease, request},
    },
    RUNS, Side, debug, open,
};

/// Sets `waiting` exactly. When the last waiter leaves, PostgreSQL keeps the flag set until the
/// next hand-over. When a hand-over passes over waiters of another epic, it clears the flag until
/// they poll. The rules look at the queue when a session is bound or closed: a session with
/// waiters is freed, not deleted.
const AWAITED: &str = "
UPDATE oncegate_sessions s SET waiting = EXISTS (
    SELECT FROM oncegate_waiters w
    WHERE w.team_id = s.team_id AND w.session_id = s.session_id AND w.left_at IS NULL)
WHERE team_id = $1 AND session_id = $2
";

impl<C: Connection> Side<C> {
    /// Runs operations on sessions until all is decided.
    pub(super) async fn run(
        &mut self,
        asked: &[SessionOp<'_>],
    ) -> Result<SessionBatch, StoreError> {
        let mut batch = SessionBatch::open(asked.len());
        for _ in 0..RUNS {
            let (places, open) = open(&batch.answers, asked);
            if places.is_empty() {
                break;
            }
            let open: Vec<SessionOp<'_>> = open.into_iter().copied().collect();
            let SessionBatch { answers, handovers } = self.store.change_sessions(&open).await?;
            places.into_iter().zip(answers).for_each(|(place, one)| batch.answers[place] = one);
            batch.handovers.extend(handovers);
        }
        Ok(batch)
    }

    /// A row that was read with its queue, without the waiters of another epic than the session
    /// is bound to: they are passed over, and leave when they poll. Until then the rules do not
    /// show them once they were passed over, and PostgreSQL may. `waiting` says only that there
    /// may be waiters: PostgreSQL keeps it set when the last of them leaves.
    pub(super) fn with_queue(&self, mut row: SessionRow) -> SessionRow {
        let bound = row.lease.epic.as_ref();
        row.queue.retain(|lease| {
            let epic = self.epics.get(lease).and_then(Option::as_ref);
            epic.zip(bound).is_none_or(|(own, of)| own == of)
        });
        row.waiting = !row.queue.is_empty();
        row
    }

    pub(super) async fn change(
        &mut self,
        number: usize,
        acquires: &[Acquire],
        releases: &[Of<Release>],
    ) -> Result<String, StoreError> {
        for acquire in acquires {
            self.names.is_chosen(&acquire.request.as_uuid());
        }
        let mut keys: Vec<&SessionKey> = acquires.iter().map(|acquire| &acquire.key).collect();
        keys.extend(releases.iter().map(|Of(_, release)| &release.key));
        keys.sort();
        let mut text = self.hand_free_on(&keys).await?;
        let own = |Of(grant, release): &Of<Release>| Release {
            lease: self.lease(*grant),
            ..release.clone()
        };
        let releases: Vec<Release> = releases.iter().map(own).collect();
        let ops: Vec<SessionOp<'_>> = (acquires.iter().map(SessionOp::Acquire))
            .chain(releases.iter().map(SessionOp::Release))
            .collect();
        let SessionBatch { mut answers, handovers: moved } = self.run(&ops).await?;
        for (item, (verdict, acquire)) in answers.iter_mut().zip(acquires).enumerate() {
            if let Verdict::Decided(SessionAnswer::Acquired(acquired)) = verdict {
                if let Decision::Granted(lease) = acquired.row.decision(acquire) {
                    self.leases.insert((number, item), (acquire.key.clone(), lease.id));
                }
                // PostgreSQL reads the queue of a session only where it is another's.
                acquired.row = match acquired.row.decision(acquire) {
                    Decision::Held(_) => self.with_queue(acquired.row.clone()),
                    _ => without_queue(acquired.row.clone()),
                };
            }
        }
        text += &debug((answers, handed(moved)));
        Ok(text)
    }

    /// Hands on those of `keys` that are free. With the rules an acquire and a begin do so
    /// themselves, and a release of a lease that has ended leaves it to the next hand-over; with
    /// PostgreSQL's statements it is the other way round.
    pub(super) async fn hand_free_on(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<String, StoreError> {
        let rows = self.store.look_sessions(keys).await?;
        let free =
            keys.iter().zip(rows).filter(|(_, row)| row.as_ref().is_some_and(|row| !row.live));
        let free: Vec<SessionKey> = free.map(|(key, _)| (*key).clone()).collect();
        if free.is_empty() { Ok(String::new()) } else { self.hand_on(&free).await }
    }

    pub(super) async fn hand_on(&mut self, keys: &[SessionKey]) -> Result<String, StoreError> {
        let ops: Vec<SessionOp<'_>> = keys.iter().map(SessionOp::HandOn).collect();
        let SessionBatch { answers, handovers: moved } = self.run(&ops).await?;
        let with_queue = |answer| match answer {
            SessionAnswer::HandedOn(Some(row)) => {
                SessionAnswer::HandedOn(Some(self.with_queue(row)))
            }
            answer => answer,
        };
        let answers: Vec<_> = answers.into_iter().map(|verdict| verdict.map(with_queue)).collect();
        Ok(format!("handed on: {}", debug((answers, handed(moved)))))
    }

    pub(super) async fn enqueue(
        &mut self,
        number: usize,
        asked: &[Enqueue],
    ) -> Result<String, StoreError> {
        for (item, Enqueue { acquire, lease, .. }) in asked.iter().enumerate() {
            self.epics.insert(*lease, acquire.epic.clone());
            self.names.is_chosen(&acquire.request.as_uuid());
            self.names.is_chosen(&lease.as_uuid());
            self.leases.insert((number, item), (acquire.key.clone(), *lease));
        }
        // PostgreSQL may still have `waiting` set on a free session without waiters.
        let keys: Vec<&SessionKey> = asked.iter().map(|enqueue| &enqueue.acquire.key).collect();
        let rows = self.store.look_sessions(&keys).await?;
        let is_idle = |row: &SessionRow| !row.live && !self.with_queue(row.clone()).waiting;
        let idle = keys.iter().zip(rows).filter(|(_, row)| row.as_ref().is_some_and(is_idle));
        let idle: Vec<SessionKey> = idle.map(|(key, _)| (*key).clone()).collect();
        let mut text = if idle.is_empty() { String::new() } else { self.hand_on(&idle).await? };
        let ops: Vec<SessionOp<'_>> = asked.iter().map(SessionOp::Enqueue).collect();
        let enqueued = self.run(&ops).await?.answers;
        for (Enqueue { acquire, .. }, verdict) in asked.iter().zip(enqueued) {
            let tickets = self.tickets.entry(acquire.key.clone()).or_default();
            text += &match verdict {
                Verdict::Decided(SessionAnswer::Enqueued(Enqueued::Waits(ticket))) => {
                    tickets.waits(ticket)
                }
                Verdict::Decided(SessionAnswer::Enqueued(Enqueued::TookOver(ticket, was))) => {
                    tickets.took_over(ticket, was)
                }
                other => debug(other),
            };
        }
        Ok(text)
    }

    pub(super) async fn crowd(
        &mut self,
        number: usize,
        first: &Enqueue,
        count: usize,
    ) -> Result<String, StoreError> {
        let mut text = String::new();
        for item in 0..count {
            let mut enqueue = Enqueue { lease: lease((number, item)), ..first.clone() };
            enqueue.acquire.request = request((number, item));
            text += &self.enqueue(number, &[enqueue]).await?;
        }
        Ok(text)
    }

    pub(super) async fn leave(
        &mut self,
        places: &[Of<SessionKey>],
        keep: bool,
    ) -> Result<String, StoreError> {
        let places: Vec<(&SessionKey, LeaseId)> =
            places.iter().map(|Of(grant, key)| (key, self.lease(*grant))).collect();
        let ops: Vec<SessionOp<'_>> =
            places.iter().map(|&(key, lease)| SessionOp::Leave { key, lease, keep }).collect();
        Ok(debug(self.run(&ops).await?.answers))
    }

    pub(super) async fn renew(
        &mut self,
        asked: &[Of<Renew>],
        max_hold: Duration,
    ) -> Result<String, StoreError> {
        let own =
            |Of(grant, renew): &Of<Renew>| Renew { lease: self.lease(*grant), ..renew.clone() };
        let asked: Vec<Renew> = asked.iter().map(own).collect();
        let ops: Vec<SessionOp<'_>> =
            asked.iter().map(|renew| SessionOp::Renew(renew, max_hold)).collect();
        let plain = |answer| match answer {
            SessionAnswer::Renewed(Renewed::Found(row)) => {
                SessionAnswer::Renewed(Renewed::Found(without_queue(row)))
            }
            other => other,
        };
        let renewed = self.run(&ops).await?.answers;
        Ok(debug(renewed.into_iter().map(|verdict| verdict.map(plain)).collect::<Vec<_>>()))
    }

    pub(super) async fn bind(
        &mut self,
        key: &SessionKey,
        epic: Option<&str>,
    ) -> Result<String, StoreError> {
        let bound = self.store.bind_epic(key, epic).await?;
        self.note_awaited(key).await;
        Ok(debug(bound))
    }

    pub(super) async fn close(&mut self, key: &SessionKey) -> Result<String, StoreError> {
        self.note_awaited(key).await;
        Ok(debug(self.store.close_session(key).await?))
    }

    /// See [`AWAITED`].
    pub(super) async fn note_awaited(&mut self, SessionKey { team, session }: &SessionKey) {
        if let Some(database) = &mut self.database {
            let note = sqlx::query(AWAITED).bind(team).bind(session);
            note.execute(database).await.expect("the flag is set");
        }
    }
}
