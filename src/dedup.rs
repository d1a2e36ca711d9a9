//! Has this event been handled already?

use futures_util::future::join_all;
use tokio::runtime::Handle;

use crate::{
    domain::{EventKey, Mark, MarkOutcome, StoredEvent},
    lane::{CallError, Executes, Lane, Lanes, MAX_BATCH, Op},
    store::{Connection, Store, StoreError, Verdict},
    telemetry::Metrics,
};

impl Op for Mark {
    type Key<'a> = &'a EventKey;
    type Row = StoredEvent;
    type Answer = MarkOutcome;

    fn key(&self) -> &EventKey {
        &self.key
    }

    fn answer(&self, row: &StoredEvent) -> Verdict<MarkOutcome> {
        Verdict::Decided(row.outcome(self.request))
    }
}

impl<S: Connection> Executes<Mark> for S {
    async fn execute(&mut self, ops: &[&Mark]) -> Result<Vec<Verdict<StoredEvent>>, StoreError> {
        self.mark(ops).await
    }
}

/// Asks after one event.
pub struct Look(EventKey);

impl Op for Look {
    type Key<'a> = &'a EventKey;
    type Row = Option<StoredEvent>;
    type Answer = Option<StoredEvent>;

    fn key(&self) -> &EventKey {
        &self.0
    }

    fn answer(&self, row: &Option<StoredEvent>) -> Verdict<Option<StoredEvent>> {
        Verdict::Decided(*row)
    }
}

impl<S: Connection> Executes<Look> for S {
    async fn execute(
        &mut self,
        ops: &[&Look],
    ) -> Result<Vec<Verdict<Option<StoredEvent>>>, StoreError> {
        let keys: Vec<&EventKey> = ops.iter().map(|look| &look.0).collect();
        Ok(self.look_events(&keys).await?.into_iter().map(Verdict::Decided).collect())
    }
}

/// Marks and looks events up, in batches. Cheap to clone.
#[derive(Clone)]
pub struct Dedup {
    marks: Lanes<Mark>,
    looks: Lane<Look>,
    metrics: Metrics,
}

impl Dedup {
    /// Starts the lanes: `writers` for marks, at most, each with a queue of
    /// `capacity` events. There is one answer for each of `runtimes`: to be used
    /// there, where its lanes are near.
    pub fn start(
        store: &impl Store,
        runtimes: &[Handle],
        writers: usize,
        capacity: usize,
        metrics: &Metrics,
    ) -> Vec<Self> {
        let lane = metrics.lane("mark");
        let marks = Lanes::start(store.writers(writers), runtimes, |runtime| {
            Lane::start(runtime, store.connection(), capacity, MAX_BATCH, lane.clone())
        });
        let look = metrics.lane("look");
        let looks = Lane::start(&runtimes[0], store.connection(), capacity, MAX_BATCH, look);
        let near = |worker| marks.near(worker, runtimes.len());
        let of = |marks| Self { marks, looks: looks.clone(), metrics: metrics.clone() };
        (0..runtimes.len()).map(near).map(of).collect()
    }

    /// Marks one event.
    ///
    /// # Errors
    /// [`CallError`]; then it is not known whether the event was marked.
    pub async fn mark(&self, mark: Mark) -> Result<MarkOutcome, CallError> {
        let outcome = self.marks.of(mark.key.shard()).call(mark).await?;
        self.count(outcome);
        Ok(outcome)
    }

    /// Marks several events, each as [`Dedup::mark`] does. Answers in order.
    pub async fn mark_all(&self, marks: Vec<Mark>) -> Vec<Result<MarkOutcome, CallError>> {
        let lane_of: Vec<usize> =
            marks.iter().map(|mark| self.marks.index(mark.key.shard())).collect();
        let mut shares: Vec<Vec<Mark>> = (0..self.marks.count()).map(|_| Vec::new()).collect();
        for (mark, &lane) in marks.into_iter().zip(&lane_of) {
            shares[lane].push(mark);
        }

        let calls = shares.into_iter().enumerate().map(async |(lane, share)| {
            let count = share.len();
            let answers = if count == 0 {
                Vec::new()
            } else {
                match self.marks.at(lane).call_all(share).await {
                    Ok(answers) => answers.into_iter().map(|a| a.map_err(Into::into)).collect(),
                    Err(error) => vec![Err(error); count],
                }
            };
            answers.into_iter()
        });
        let mut answers = join_all(calls).await;

        // Each lane answered its share in order.
        let outcomes = lane_of.into_iter().map(|lane| {
            let outcome = answers[lane].next();
            outcome.unwrap_or_else(|| Err(StoreError::fault("a lane gave no answer").into()))
        });
        outcomes
            .inspect(|outcome| outcome.iter().for_each(|outcome| self.count(*outcome)))
            .collect()
    }

    /// The live row of an event.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn look(&self, key: EventKey) -> Result<Option<StoredEvent>, CallError> {
        self.looks.call(Look(key)).await
    }

    fn count(&self, outcome: MarkOutcome) {
        match outcome {
            MarkOutcome::First(_) => self.metrics.first.inc(),
            MarkOutcome::Duplicate(_) => self.metrics.duplicate.inc(),
        };
    }
}
