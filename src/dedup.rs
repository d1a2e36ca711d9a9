//! Has this event been handled already?

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::runtime::Handle;

use crate::{
    domain::{Delivered, EventKey, EventRow, KeySet, Mark, MarkOutcome, ProcessedBy, StoredEvent},
    lane::{CallError, Executes, Lane, Lanes, MAX_BATCH, Op},
    store::{Connection, Look, Looked, Store, StoreError, Verdict, Work},
    telemetry::Metrics,
};

mod duplicate_cache;

pub use duplicate_cache::DuplicateCache;
use duplicate_cache::{CacheTicket, Lookup};

/// How often what is remembered is tidied and counted.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);

impl Op for Mark {
    type Key<'a> = (&'a EventKey, &'a [String]);
    type Row = EventRow;
    type Answer = MarkOutcome;

    fn key(&self) -> Self::Key<'_> {
        (&self.event.key, &self.event.aliases)
    }

    fn team(&self) -> &str {
        &self.event.key.team
    }

    fn answer(&self, row: &EventRow) -> Verdict<MarkOutcome> {
        Verdict::Decided(row.outcome(self))
    }
}

impl<S: Connection> Executes<Mark> for S {
    async fn execute(&mut self, ops: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        if ops.iter().all(|mark| mark.event.aliases.is_empty()) {
            return self.mark(ops).await;
        }
        let mut names = KeySet::default();
        let now: Vec<bool> = ops.iter().map(|mark| names.take_of(&mark.event)).collect();
        let marks: Vec<&Mark> =
            ops.iter().zip(&now).filter(|(_, now)| **now).map(|(mark, _)| *mark).collect();
        let mut verdicts = self.mark(&marks).await?.into_iter();
        let verdict = |now| if now { verdicts.next() } else { Some(Verdict::Retry) };
        // Where the store answered for fewer, so does this.
        Ok(now.into_iter().map_while(verdict).collect())
    }
}

impl Op for Look {
    type Key<'a> = (&'a EventKey, bool);
    type Row = Option<Looked>;
    type Answer = Option<Looked>;

    fn key(&self) -> (&EventKey, bool) {
        (&self.key, self.with_result)
    }

    fn team(&self) -> &str {
        &self.key.team
    }

    fn is_read(&self) -> bool {
        true
    }

    fn answer(&self, row: &Option<Looked>) -> Verdict<Option<Looked>> {
        Verdict::Decided(row.clone())
    }
}

impl<S: Connection> Executes<Look> for S {
    async fn execute(&mut self, ops: &[&Look]) -> Result<Vec<Verdict<Option<Looked>>>, StoreError> {
        Ok(self.look_events(ops).await?.into_iter().map(Verdict::Decided).collect())
    }
}

/// Marks and looks events up, in batches. Cheap to clone.
#[derive(Clone)]
pub struct Dedup {
    marks: Lanes<Mark>,
    looks: Lane<Look>,
    known: Option<Arc<DuplicateCache>>,
    metrics: Metrics,
}

impl Dedup {
    /// Starts the lanes: `writers` for marks, at most, each with a queue of
    /// `capacity` events. Known duplicates are answered without them. There is one
    /// answer for each of `runtimes`: to be used there, where its lanes are near.
    pub fn start(
        store: &impl Store,
        runtimes: &[Handle],
        writers: usize,
        capacity: usize,
        known: Option<DuplicateCache>,
        metrics: &Metrics,
    ) -> Vec<Self> {
        let lane = metrics.write_lane("mark");
        let marks = Lanes::start(store.writers(writers), runtimes, |runtime| {
            Lane::start(runtime, store.connection(Work::Marks), capacity, MAX_BATCH, lane.clone())
        });
        let look = metrics.lane("look");
        let looks =
            Lane::start(&runtimes[0], store.connection(Work::Short), capacity, MAX_BATCH, look);
        let known = known.map(Arc::new);
        if let Some(known) = &known {
            runtimes[0].spawn(tidy(Arc::downgrade(known), metrics.clone()));
        }
        let of = |worker| Self {
            marks: marks.near(worker, runtimes.len()),
            looks: looks.clone(),
            known: known.clone(),
            metrics: metrics.clone(),
        };
        (0..runtimes.len()).map(of).collect()
    }

    /// Marks one event.
    ///
    /// # Errors
    /// [`CallError`]; then it is not known whether the event was marked.
    pub async fn mark(&self, mark: Mark) -> Result<MarkOutcome, CallError> {
        let outcome = match self.recall(&mark.event) {
            Lookup::Found(event) => event.outcome(&mark),
            Lookup::NotFound(question) => {
                let is_plain = mark.event.aliases.is_empty();
                let outcome = self.marks.of(mark.event.key.shard()).call(mark).await?;
                self.remember(question, own(&outcome, is_plain));
                outcome
            }
        };
        self.count(&outcome);
        Ok(outcome)
    }

    /// Whether there may be room for `count` new marks of a team. If not, [`Dedup::read_known`] reads
    /// them.
    #[must_use]
    pub fn may_have_room(&self, team: &str, count: usize) -> bool {
        self.marks.may_have_room(team, count)
    }

    /// Reads `items`, marks of a team for which there is no room: refuses them unless they are known
    /// duplicates, which need none, or few enough are not. It reads at most twice as many new ones as
    /// there is room for, so that a refusal stays cheap.
    ///
    /// # Errors
    /// [`CallError::Overloaded`].
    pub fn read_known<E>(
        &self,
        team: &str,
        items: impl ExactSizeIterator<Item = Result<Mark, E>>,
    ) -> Result<Vec<Result<Mark, E>>, CallError> {
        let Some(known) = self.known.as_ref().filter(|known| known.is_in_use()) else {
            self.marks.check_room(team, items.len())?;
            return Ok(items.collect());
        };
        let mut read = Vec::with_capacity(items.len());
        let mut new: usize = 0;
        for item in items {
            let is_known = item.as_ref().is_ok_and(|Mark { event, .. }| {
                matches!(known.recall(&event.key), Lookup::Found(_))
            });
            read.push(item);
            if !is_known {
                new += 1;
                if new.is_power_of_two() {
                    self.marks.check_room(team, new)?;
                }
            }
        }
        self.marks.check_room(team, new)?;
        Ok(read)
    }

    /// Marks several events, each as [`Dedup::mark`] does. Answers in order.
    pub async fn mark_all(&self, marks: Vec<Mark>) -> Vec<Result<MarkOutcome, CallError>> {
        enum Route {
            Cache(MarkOutcome),
            Lane(usize, Option<CacheTicket>, bool),
        }

        let mut shares: Vec<Vec<Mark>> = (0..self.marks.count()).map(|_| Vec::new()).collect();
        let route = |mark: Mark| match self.recall(&mark.event) {
            Lookup::Found(event) => Route::Cache(event.outcome(&mark)),
            Lookup::NotFound(ticket) => {
                let lane = self.marks.index(mark.event.key.shard());
                let is_plain = mark.event.aliases.is_empty();
                shares[lane].push(mark);
                Route::Lane(lane, ticket, is_plain)
            }
        };
        let routes: Vec<Route> = marks.into_iter().map(route).collect();

        let calls = shares.into_iter().enumerate().map(async |(lane, share)| {
            let answers = if share.is_empty() {
                Vec::new()
            } else {
                self.marks.at(lane).call_all(share).await
            };
            answers.into_iter()
        });
        let mut answers = join_all(calls).await;

        // Each lane answered its share in order.
        let outcomes = routes.into_iter().map(|route| match route {
            Route::Cache(outcome) => Ok(outcome),
            Route::Lane(lane, ticket, is_plain) => {
                let missing = || Err(StoreError::internal("a lane returned no answer").into());
                let outcome: MarkOutcome = answers[lane].next().unwrap_or_else(missing)?;
                self.remember(ticket, own(&outcome, is_plain));
                Ok(outcome)
            }
        });
        outcomes.inspect(|outcome| outcome.iter().for_each(|outcome| self.count(outcome))).collect()
    }

    /// The live row of an event, under whichever of its names; and what its turn left, if
    /// that is asked for by `with_result`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn look(
        &self,
        event: Delivered,
        with_result: bool,
    ) -> Result<Option<Looked>, CallError> {
        let question = match self.recall(&event) {
            // Results are not remembered.
            Lookup::Found(event) if with_result && matches!(event.by, ProcessedBy::Turn(_)) => None,
            Lookup::Found(event) => return Ok(Some((EventRow::Processed(event), None))),
            Lookup::NotFound(question) => question,
        };
        let team = &event.key.team;
        let key = |name: &str| EventKey { team: team.clone(), event: name.to_owned() };
        let looks = event.names().map(|name| Look { key: key(name), with_result }).collect();
        let found: Vec<_> =
            self.looks.call_all(looks).await.into_iter().collect::<Result<_, _>>()?;
        let found = found.into_iter().flatten().next();
        match &found {
            Some((EventRow::Processed(row), _)) if event.aliases.is_empty() => {
                self.remember(question, Some(row));
            }
            _ => {}
        }
        Ok(found)
    }

    /// What is known of the event, by its own name.
    fn recall(&self, event: &Delivered) -> Lookup {
        let known = self.known.as_ref();
        let recall = known.map_or(Lookup::NotFound(None), |known| known.recall(&event.key));
        if matches!(recall, Lookup::Found(_)) {
            self.metrics.duplicate_cache_hits.inc();
        }
        recall
    }

    fn remember(&self, question: Option<CacheTicket>, event: Option<&StoredEvent>) {
        if let (Some(known), Some(question), Some(event)) = (&self.known, question, event)
            // An entry's size is what the cache is bounded by.
            && event.detail.is_none()
        {
            known.remember(question, event.clone());
        }
    }

    fn count(&self, outcome: &MarkOutcome) {
        match outcome {
            MarkOutcome::First(_) => self.metrics.first.inc(),
            MarkOutcome::Duplicate(_) | MarkOutcome::Claimed(_) => self.metrics.duplicate.inc(),
            MarkOutcome::Mismatch => self.metrics.mismatch.inc(),
        };
    }
}

/// The row that an outcome comes from, if it is that of the event's own name: a duplicate of an
/// event with aliases may be found under one of those.
fn own(outcome: &MarkOutcome, is_plain: bool) -> Option<&StoredEvent> {
    match outcome {
        MarkOutcome::First(event) => Some(event),
        _ => outcome.event().filter(|_| is_plain),
    }
}

/// Evicts what no longer counts from the cache and updates its metrics, while the cache is used.
async fn tidy(known: Weak<DuplicateCache>, metrics: Metrics) {
    let mut beat = tokio::time::interval(TIDY_INTERVAL);
    loop {
        beat.tick().await;
        let Some(known) = known.upgrade() else {
            return;
        };
        known.tidy();
        metrics.duplicate_cache_entries.set(i64::try_from(known.count()).unwrap_or(i64::MAX));
        metrics.duplicate_cache_in_use.set(known.is_in_use().into());
    }
}
