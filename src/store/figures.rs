//! What a store says of its own state, for metrics.

use std::time::Duration;

use super::StoreError;
use crate::{domain::Timestamp, telemetry::TableFigures};

/// The state of a store, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// What the store's clock showed, and how long it took to read it.
    pub clock: Option<(Timestamp, Duration)>,
    /// How long the oldest expired event has been due for deletion.
    pub sweep_lag: Option<Duration>,
    /// The newest migration.
    pub schema_version: Option<i64>,
    /// The age of the oldest transaction id of all databases of the server.
    pub xid_age: Option<i64>,
    /// The tables.
    pub tables: Vec<TableFigures>,
    /// Why something of this could not be read, the last time that it was tried.
    pub error: Option<StoreError>,
}
