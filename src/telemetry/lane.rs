//! The metrics of lanes.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::{WriteHealth, method::Histograms, metrics::seconds};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: &'static str,
}

/// 1 to 1,024, a factor of two apart.
fn rows() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

/// The metrics of all lanes.
#[derive(Clone)]
pub(super) struct LaneFamilies {
    rows: Histograms<LaneLabel>,
    seconds: Histograms<LaneLabel>,
    queue: Family<LaneLabel, Gauge>,
    capacity: Family<LaneLabel, Gauge>,
    shed: Family<LaneLabel, Counter>,
}

impl LaneFamilies {
    pub(super) fn registered(r: &mut Registry) -> Self {
        let families = Self {
            rows: Family::new_with_constructor(rows),
            seconds: Family::new_with_constructor(seconds),
            queue: Family::default(),
            capacity: Family::default(),
            shed: Family::default(),
        };
        r.register("lane_batch_rows", "Rows per batch", families.rows.clone());
        r.register_with_unit(
            "lane_batch",
            "Store time per batch, including its commit",
            Unit::Seconds,
            families.seconds.clone(),
        );
        r.register(
            "lane_queue_depth",
            "Operations queued or in a batch, of all lanes of a kind; a call may have several",
            families.queue.clone(),
        );
        r.register(
            "lane_queue_capacity",
            "Room for such operations; beyond it calls are rejected",
            families.capacity.clone(),
        );
        r.register(
            "lane_shed",
            "Calls rejected because the queue of the lane was full",
            families.shed.clone(),
        );
        families
    }

    /// The metrics of one kind of lane.
    pub(super) fn lane(
        &self,
        lane: &'static str,
        unknown_outcomes: Counter,
        writes: Option<WriteHealth>,
    ) -> LaneMetrics {
        let label = LaneLabel { lane };
        LaneMetrics {
            queue: self.queue.get_or_create_owned(&label),
            capacity: self.capacity.get_or_create_owned(&label),
            shed: self.shed.get_or_create_owned(&label),
            batches: Arc::default(),
            families: self.clone(),
            label,
            unknown_outcomes,
            writes,
        }
    }
}

/// The metrics of one kind of lane.
#[derive(Clone)]
pub struct LaneMetrics {
    /// Rows and seconds: without a series until the first batch.
    batches: Arc<OnceLock<(Histogram, Histogram)>>,
    families: LaneFamilies,
    label: LaneLabel,
    queue: Gauge,
    capacity: Gauge,
    shed: Counter,
    /// Operations whose caller is answered that their outcome is unknown.
    pub unknown_outcomes: Counter,
    /// Of a lane that writes.
    pub writes: Option<WriteHealth>,
}

impl LaneMetrics {
    /// The kind of lane.
    #[must_use]
    pub const fn lane(&self) -> &'static str {
        self.label.lane
    }

    /// A lane has room for so many operations.
    pub fn started(&self, capacity: usize) {
        self.capacity.inc_by(signed(capacity));
    }

    /// A lane with so much room has ended.
    pub fn ended(&self, capacity: usize) {
        self.capacity.dec_by(signed(capacity));
    }

    /// Operations took room.
    pub fn took(&self, operations: usize) {
        self.queue.inc_by(signed(operations));
    }

    /// The room of operations is free.
    pub fn freed(&self, operations: usize) {
        self.queue.dec_by(signed(operations));
    }

    /// A call was refused.
    pub fn shed(&self) {
        self.shed.inc();
    }

    /// A batch of `rows` was run.
    pub fn batch(&self, rows: usize, took: Duration) {
        let (of_rows, seconds) = self.batches.get_or_init(|| {
            let LaneFamilies { rows, seconds, .. } = &self.families;
            (rows.get_or_create_owned(&self.label), seconds.get_or_create_owned(&self.label))
        });
        of_rows.observe(f64::from(u32::try_from(rows).unwrap_or(u32::MAX)));
        seconds.observe(took.as_secs_f64());
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
