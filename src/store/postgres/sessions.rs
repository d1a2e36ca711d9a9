//! Sessions in PostgreSQL: the row decides, the advisory lock orders.
//!
//! Each statement first tries the transaction-scoped advisory lock of every
//! session it is asked about, and leaves alone those that another replica is
//! deciding on: batches never wait for each other. Safety does not rest on the
//! lock: every write checks the row again, as it is when it is written.

use std::time::Duration;

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    Link, Locks,
    answers::{fail, fill, left, place, slot},
    events::interval,
    link::Statement,
    steps::{is_overlong, lease_end},
    timestamp::PgTimestamp,
};
use crate::{
    domain::{
        Acquire, Acquired, Enqueue, Enqueued, FencingToken, Labels, Lease, LeaseId, Release, Renew,
        Renewed, RequestId, SessionKey, SessionRow, limits::MAX_WAITERS_PER_SESSION,
    },
    rules::queue::PLACE_KEPT,
    store::{Changed, PRESENCE, SessionStore, StoreError, Verdict},
};

mod acquire;
mod places;
mod release;
pub(super) mod sql;

use acquire::{Asked, Places};
use places::Left;
pub(super) use places::{BEAT, ENQUEUE, KEEP, LEAVE};
use release::unless_resumed;
pub(super) use sql::{ACQUIRE, END, GIVE_BACK, HAND_ON, LOOK, RELEASE, RENEW, TAKE, TAKE_AND_END};

impl Link {
    /// Reports that this replica is there, and returns the places of callers that wait on it.
    pub(super) async fn report_presence(
        &mut self,
    ) -> Result<Vec<(SessionKey, LeaseId)>, StoreError> {
        let (now, replica) = (self.now(), self.replica);
        let rows = self
            .fetch(|| {
                sqlx::query(BEAT)
                    .bind(now)
                    .bind(replica)
                    .bind(interval(PRESENCE))
                    .bind(interval(PLACE_KEPT))
            })
            .await?;
        let place = |row: &PgRow| {
            let key =
                SessionKey { team: row.try_get("team_id")?, session: row.try_get("session_id")? };
            Ok((key, LeaseId::from_uuid(row.try_get("lease_id")?)))
        };
        let places: Result<_, sqlx::Error> = rows.iter().map(place).collect();
        places.map_err(StoreError::fault)
    }
}

impl SessionStore for Link {
    async fn change(
        &mut self,
        acquires: &[&Acquire],
        releases: &[&Release],
    ) -> Result<Changed, StoreError> {
        let acquires: Vec<Asked<'_>> =
            acquires.iter().map(|&acquire| (acquire, LeaseId::random().as_uuid())).collect();
        let (taken, ended) = self.take_and_end(&acquires, releases).await?;
        let mut changed = Changed { taken, ended, handed: Vec::new() };
        match self.change_rest(&acquires, releases, &mut changed).await {
            Err(error) if changed.is_nothing() => Err(error),
            // What is decided has been committed.
            Err(error) => {
                fail(&mut changed.taken, &error);
                fail(&mut changed.ended, &error);
                Ok(changed)
            }
            Ok(()) => Ok(changed),
        }
    }

    async fn enqueue(&mut self, asked: &[&Enqueue]) -> Result<Vec<Verdict<Enqueued>>, StoreError> {
        let wanted: Vec<Asked<'_>> =
            asked.iter().map(|enqueue| (&enqueue.acquire, enqueue.lease.as_uuid())).collect();
        let arrays = acquire::Arrays::of(self.locks, &wanted);
        let most = i64::try_from(MAX_WAITERS_PER_SESSION).map_err(StoreError::fault)?;
        let digests: Vec<Option<Uuid>> =
            asked.iter().map(|enqueue| Some(enqueue.acquire.digest?.as_uuid())).collect();
        let takes_over: Vec<bool> = asked.iter().map(|enqueue| enqueue.takes_over).collect();
        let (now, replica) = (self.now(), self.replica);
        let rows = self
            .fetch(|| {
                arrays
                    .bind(sqlx::query(ENQUEUE).bind(now))
                    .bind(replica)
                    .bind(interval(PRESENCE))
                    .bind(most)
                    .bind(&takes_over)
                    .bind(interval(PLACE_KEPT))
                    .bind(&digests)
            })
            .await?;
        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let read = || {
                let earlier: Option<Uuid> = row.try_get("earlier")?;
                let earlier = earlier.map(LeaseId::from_uuid);
                let (own, held) = (row.try_get("own")?, row.try_get("held")?);
                Ok(match (row.try_get("ticket")?, earlier, own, held) {
                    (Some(ticket), Some(earlier), ..) => Enqueued::TookOver(ticket, earlier),
                    (Some(ticket), None, ..) => Enqueued::Waits(ticket),
                    (None, Some(_), ..) => Enqueued::Replaced,
                    (None, None, true, _) => Enqueued::Given,
                    (None, None, false, true) => Enqueued::Full,
                    (None, None, false, false) => Enqueued::Free,
                })
            };
            let enqueued = read().map_err(|error: sqlx::Error| StoreError::fault(error))?;
            *slot(&mut verdicts, row.try_get("ord"))? = Verdict::Decided(enqueued);
        }
        Ok(verdicts)
    }

    async fn hand_on(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Verdict<Option<SessionRow>>>, StoreError> {
        let (leases, spared) = (vec![None; keys.len()], vec![None; keys.len()]);
        let asked = Keys::of(self.locks, keys.iter().copied());
        let mut verdicts = vec![Verdict::Again; keys.len()];
        let mut overlong = Vec::new();
        for row in self.run_hand_on(HAND_ON, &asked, &leases, &spared).await? {
            let found = any_session_row(&row)?;
            let place = place(keys.len(), row.try_get("ord"))?;
            if let Some(found) = found.as_ref().filter(|_| is_overlong(&row, "expires_at")) {
                overlong.push((keys[place], found.lease.id));
            }
            verdicts[place] = Verdict::Decided(found);
        }
        self.shorten(&overlong).await;
        Ok(verdicts)
    }

    async fn leave(&mut self, places: &[(&SessionKey, LeaseId)]) -> Result<Vec<bool>, StoreError> {
        let (left, replica) = (Left::of(self.locks, places), self.replica);
        left.found(self.fetch(|| left.bind(sqlx::query(LEAVE)).bind(replica)).await?)
    }

    async fn keep_places(
        &mut self,
        places: &[(&SessionKey, LeaseId)],
    ) -> Result<Vec<bool>, StoreError> {
        let (now, replica) = (self.now(), self.replica);
        let left = Left::of(self.locks, places);
        left.found(self.fetch(|| left.bind(sqlx::query(KEEP)).bind(replica).bind(now)).await?)
    }

    async fn renew(
        &mut self,
        asked: &[&Renew],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Renewed>>, StoreError> {
        let keys = Keys::of(self.locks, asked.iter().map(|renew| &renew.key));
        let leases: Vec<Uuid> = asked.iter().map(|renew| renew.lease.as_uuid()).collect();
        let ttls: Vec<i64> = asked.iter().map(|renew| renew.ttl.as_micros()).collect();
        let streams: Vec<Option<Uuid>> =
            asked.iter().map(|renew| Some(renew.stream?.as_uuid())).collect();
        let most = interval(max_hold);
        let now = self.now();
        let rows = self
            .fetch(|| {
                keys.bind(sqlx::query(RENEW).bind(now))
                    .bind(&leases)
                    .bind(&ttls)
                    .bind(most)
                    .bind(&streams)
            })
            .await?;

        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let resumed: Option<bool> = row.try_get("resumed").map_err(StoreError::fault)?;
            let renewed = match any_session_row(&row)? {
                Some(_) if resumed == Some(true) => Renewed::Resumed,
                Some(row) => Renewed::Found(row),
                None => Renewed::Gone,
            };
            *slot(&mut verdicts, row.try_get("ord"))? = Verdict::Decided(renewed);
        }
        Ok(verdicts)
    }

    async fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> Result<Vec<Option<SessionRow>>, StoreError> {
        let teams: Vec<&str> = keys.iter().map(|key| key.team.as_str()).collect();
        let sessions: Vec<&str> = keys.iter().map(|key| key.session.as_str()).collect();
        let now = self.now();
        let rows = self.fetch(|| sqlx::query(LOOK).bind(&teams).bind(&sessions).bind(now)).await?;
        let mut found = vec![None; keys.len()];
        for row in rows {
            *slot(&mut found, row.try_get("ord"))? = Some(session_row(&row)?);
        }
        Ok(found)
    }
}

impl Link {
    /// Decides what is not decided in `changed` yet.
    async fn change_rest(
        &mut self,
        acquires: &[Asked<'_>],
        releases: &[&Release],
        changed: &mut Changed,
    ) -> Result<(), StoreError> {
        let (places, held) = left(&changed.taken, acquires);
        if !held.is_empty() {
            fill(&mut changed.taken, places, self.acquire(&held).await?);
        }
        // Somebody waits for it, or it is not the asker's any more.
        let (places, waited) = left(&changed.ended, releases);
        if !waited.is_empty() {
            let verdicts = self.give_back(&waited, &mut changed.handed).await?;
            fill(&mut changed.ended, places, verdicts);
        }
        let (places, lost) = left(&changed.ended, releases);
        if !lost.is_empty() {
            fill(&mut changed.ended, places, self.release(&lost).await?);
        }
        Ok(())
    }

    /// Takes free sessions, and ends live leases.
    async fn take_and_end(
        &mut self,
        acquires: &[Asked<'_>],
        releases: &[&Release],
    ) -> Result<(Vec<Verdict<Acquired>>, Vec<Verdict<bool>>), StoreError> {
        let (taking, ending) =
            (acquire::Arrays::of(self.locks, acquires), release::Arrays::of(self.locks, releases));
        let now = self.now();
        let rows = self
            .fetch(|| match (acquires, releases) {
                (_, []) => taking.bind(sqlx::query(TAKE).bind(now)),
                ([], _) => ending.bind(sqlx::query(END).bind(now)),
                _ => ending.bind(taking.bind(sqlx::query(TAKE_AND_END).bind(now))),
            })
            .await?;

        let places = Places::of(acquires);
        let mut taken = vec![Verdict::Again; acquires.len()];
        let mut ended = vec![Verdict::Again; releases.len()];
        for row in rows {
            match row.try_get("ord") {
                Ok(Some(ord)) => *slot(&mut ended, Ok(ord))? = Verdict::Decided(true),
                // [`TAKE`] has no such column.
                Ok(None) | Err(sqlx::Error::ColumnNotFound(_)) => {
                    let (place, outcome) = places.taken(&row)?;
                    taken[place] = Verdict::Decided(outcome);
                }
                Err(error) => return Err(StoreError::fault(error)),
            }
        }
        Ok((taken, ended))
    }

    /// Ends live leases, and hands their sessions on; `handed` are those that went to
    /// somebody.
    async fn give_back(
        &mut self,
        asked: &[&Release],
        handed: &mut Vec<SessionRow>,
    ) -> Result<Vec<Verdict<bool>>, StoreError> {
        let keys = Keys::of(self.locks, asked.iter().map(|release| &release.key));
        let leases: Vec<_> = asked.iter().map(|release| Some(release.lease.as_uuid())).collect();
        let spared: Vec<_> = asked.iter().map(|release| unless_resumed(release)).collect();
        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in self.run_hand_on(GIVE_BACK, &keys, &leases, &spared).await? {
            if row.try_get("given_back").map_err(StoreError::fault)? {
                *slot(&mut verdicts, row.try_get("ord"))? = Verdict::Decided(true);
                handed.extend(any_session_row(&row)?.filter(|row| row.live));
            }
        }
        Ok(verdicts)
    }

    async fn run_hand_on(
        &mut self,
        statement: &'static str,
        keys: &Keys<'_>,
        leases: &[Option<Uuid>],
        spared: &[Option<Uuid>],
    ) -> Result<Vec<PgRow>, StoreError> {
        let (now, replica) = (self.now(), self.replica);
        self.fetch(|| {
            keys.bind(sqlx::query(statement).bind(now)).bind(leases).bind(spared).bind(replica)
        })
        .await
    }
}

/// The arrays that every statement has which changes a session.
pub(super) struct Keys<'a> {
    teams: Vec<&'a str>,
    sessions: Vec<&'a str>,
    locks: Vec<i64>,
}

impl<'a> Keys<'a> {
    pub(super) fn of(locks: Locks, keys: impl Iterator<Item = &'a SessionKey> + Clone) -> Self {
        Self {
            teams: keys.clone().map(|key| key.team.as_str()).collect(),
            sessions: keys.clone().map(|key| key.session.as_str()).collect(),
            locks: keys.map(|key| locks.session(key)).collect(),
        }
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement.bind(&self.teams).bind(&self.sessions).bind(&self.locks)
    }
}

pub(super) fn session_row(row: &PgRow) -> Result<SessionRow, StoreError> {
    named_session_row(row, ["request_id", "holder", "expires_at"])
}

/// The same, of a row that has these three under other names.
pub(super) fn named_session_row(
    row: &PgRow,
    [request, holder, expires]: [&str; 3],
) -> Result<SessionRow, StoreError> {
    let read = || {
        let at = row.try_get::<PgTimestamp, _>("at")?.0;
        let (_, expire_time) = lease_end(row, expires)?;
        let lease = Lease {
            id: LeaseId::from_uuid(row.try_get("lease_id")?),
            token: FencingToken(row.try_get("fencing_token")?),
            holder: row.try_get(holder)?,
            acquire_time: row.try_get::<PgTimestamp, _>("acquired_at")?.0,
            expire_time,
            remaining: expire_time.since(at),
            epic: row.try_get("epic_id")?,
            labels: Labels::from_json(row.try_get("labels")?),
        };
        let request = RequestId::from_uuid(row.try_get(request)?);
        let queue: Option<Vec<Uuid>> = row.try_get("queue")?;
        let queue = queue.unwrap_or_default().into_iter().map(LeaseId::from_uuid).collect();
        let (live, waiting) = (row.try_get("live")?, row.try_get("waiting")?);
        Ok(SessionRow { lease, request, live, waiting, queue })
    };
    read().map_err(|error: sqlx::Error| StoreError::fault(error))
}

/// The same, where there may be none: then all is null.
fn any_session_row(row: &PgRow) -> Result<Option<SessionRow>, StoreError> {
    let lease: Option<Uuid> = row.try_get("lease_id").map_err(StoreError::fault)?;
    lease.map(|_| session_row(row)).transpose()
}
