//! Beginning, renewing and finishing turns.

use std::{collections::BTreeSet, time::Duration};

use oncegate::{
    domain::{
        Begin, Begun, EventKey, Finish, LeaseId, Release, RenewTurn, SessionKey, TurnId, TurnLost,
    },
    store::{Connection, SessionOp, StoreError, Verdict},
};

use super::{
    super::{
        names::handed,
        steps::{Grant, Of},
    },
    RUNS, Side, debug, decided, open,
};

/// All names of the events that are on record under some names.
const RECORDED: &str = "
SELECT p.team_id, u.name
FROM unnest($1::text[], $2::text[]) AS a (team_id, event_id)
JOIN processed_events p USING (team_id, event_id)
CROSS JOIN LATERAL unnest(COALESCE(p.names, ARRAY[p.event_id])) AS u (name)
";

impl<C: Connection> Side<C> {
    pub(super) async fn turns(
        &mut self,
        number: usize,
        begins: &[Begin],
        finishes: &[Of<Finish>],
    ) -> Result<String, StoreError> {
        for begin in begins {
            self.names.is_chosen(&begin.request.as_uuid());
            if let Some(acquire) = &begin.session {
                self.names.is_chosen(&acquire.request.as_uuid());
            }
        }
        let acquires = begins.iter().filter_map(|begin| begin.session.as_ref());
        let keys: Vec<&SessionKey> = acquires.map(|acquire| &acquire.key).collect();
        let mut text = self.hand_free_on(&keys).await?;
        let own = |Of(grant, finish): &Of<Finish>| {
            let turn = self.turn(*grant, &finish.turn)?;
            Some(Finish { turn, ..finish.clone() })
        };
        let finishes: Vec<Finish> = finishes.iter().filter_map(own).collect();
        let mut begun = vec![Verdict::Retry; begins.len()];
        let mut kept = vec![Verdict::Retry; finishes.len()];
        let (mut moved, mut idle, mut counts) = (Vec::new(), Vec::new(), (0, 0));
        for _ in 0..RUNS {
            let (own, open_begins) = open(&begun, begins);
            let (others, open_finishes) = open(&kept, &finishes);
            if own.is_empty() && others.is_empty() {
                break;
            }
            let turned = self.store.change_turns(&open_begins, &open_finishes).await?;
            own.into_iter().zip(turned.begins).for_each(|(place, one)| begun[place] = one);
            others.into_iter().zip(turned.finishes).for_each(|(place, one)| kept[place] = one);
            moved.extend(turned.handovers);
            idle.extend(turned.orphans);
            counts = (counts.0 + turned.lapsed, counts.1 + turned.gave_up);
        }
        for (item, (verdict, begin)) in begun.iter_mut().zip(begins).enumerate() {
            match verdict {
                Verdict::Decided(Begun::Granted { claim, lease, .. }) => {
                    let held = begin.session.as_ref().zip(lease.as_ref());
                    let lease = held.map(|(acquire, lease)| (acquire.key.clone(), lease.id));
                    self.leases.extend(lease.clone().map(|lease| ((number, item), lease)));
                    let turn = TurnId {
                        event: begin.event.key.clone(),
                        request: begin.request,
                        attempt: claim.attempt,
                        lease,
                        max_attempts: begin.max_attempts,
                    };
                    self.turns.insert((number, item), turn);
                }
                Verdict::Decided(Begun::Busy(row)) => *row = self.with_queue(row.clone()),
                _ => {}
            }
        }
        for (verdict, Finish { turn, unless_resumed, .. }) in kept.iter_mut().zip(&finishes) {
            if unless_resumed.is_some() {
                self.lose(turn, verdict).await?;
            }
            // No caller gets the digest of a turn that ends, and PostgreSQL's shortest statement
            // does not read it.
            if let Verdict::Decided(Ok(Some(row))) = verdict {
                *row = row.clone().with_digest(None);
            }
        }
        text += &debug((begun, kept, handed(moved), counts));
        text += &self.give_idle_back(idle, &finishes).await?;
        Ok(text)
    }

    /// Gives leases back that are of no use, as the service does.
    pub(super) async fn give_idle_back(
        &mut self,
        mut idle: Vec<(SessionKey, LeaseId)>,
        finishes: &[Finish],
    ) -> Result<String, StoreError> {
        // PostgreSQL names the lease of a turn that had ended before as well, in case that its
        // answer was lost half-way. It is given back already, which has no effect.
        let is_ended =
            |lease: &_| finishes.iter().any(|end| end.turn.lease.as_ref() == Some(lease));
        idle.retain(|lease| !is_ended(lease));
        idle.sort_by(|(one, _), (other, _)| one.cmp(other));
        idle.dedup();
        let mut text = String::new();
        for (key, lease) in idle {
            let release = Release { key, lease, unless_resumed: None };
            let batch = self.run(&[SessionOp::Release(&release)]).await?;
            text += &debug((&release, batch.answers, handed(batch.handovers)));
        }
        Ok(text)
    }

    pub(super) async fn prolong(
        &mut self,
        asked: &[Of<RenewTurn>],
        max_hold: Duration,
    ) -> Result<String, StoreError> {
        let own = |Of(grant, prolong): &Of<RenewTurn>| {
            let turn = self.turn(*grant, &prolong.turn)?;
            Some(RenewTurn { turn, ..prolong.clone() })
        };
        let asked: Vec<RenewTurn> = asked.iter().filter_map(own).collect();
        let asked: Vec<&RenewTurn> = asked.iter().collect();
        let store = &mut self.store;
        let mut kept =
            decided(&asked, async |open| store.renew_turns(open, max_hold).await).await?;
        for (verdict, RenewTurn { turn, stream, .. }) in kept.iter_mut().zip(&asked) {
            if stream.is_some() {
                self.lose(turn, verdict).await?;
            }
        }
        Ok(debug(kept))
    }

    /// A turn that has lost its lease, and that another call had carried on before: the rules say
    /// the first, since it does not run on, and PostgreSQL the second.
    pub(super) async fn lose<T>(
        &mut self,
        turn: &TurnId,
        verdict: &mut Verdict<Result<T, TurnLost>>,
    ) -> Result<(), StoreError> {
        if let (
            Verdict::Decided(kept @ Err(TurnLost::Replaced | TurnLost::Lease(_))),
            Some((key, lease)),
        ) = (verdict, &turn.lease)
        {
            let row = self.store.look_sessions(&[key]).await?.pop().flatten();
            if !row.is_some_and(|row| row.live && row.lease.id == *lease) {
                *kept = Err(TurnLost::Lease(None));
            }
        }
        Ok(())
    }

    /// This store's turn of a grant, as far as `like` does not differ from it on purpose.
    fn turn(&self, grant: Grant, like: &TurnId) -> Option<TurnId> {
        let own = self.turns.get(&grant)?;
        Some(TurnId { lease: own.lease.clone(), ..like.clone() })
    }

    /// These names, and the others of the events that are on record under them.
    pub async fn recorded(&mut self, names: Vec<EventKey>) -> BTreeSet<EventKey> {
        let database = self.database.as_mut().expect("PostgreSQL");
        let teams: Vec<&str> = names.iter().map(|key| key.team.as_str()).collect();
        let events: Vec<&str> = names.iter().map(|key| key.event.as_str()).collect();
        let found = sqlx::query_as(RECORDED).bind(teams).bind(events).fetch_all(database).await;
        let found: Vec<(String, String)> = found.expect("the names");
        let found = found.into_iter().map(|(team, event)| EventKey { team, event });
        names.into_iter().chain(found).collect()
    }
}
