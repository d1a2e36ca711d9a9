//! What the system says of this process, by the names that every Prometheus client uses:
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>.

use std::fmt;

use procfs::process::{LimitValue, Process};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Reads `/proc/self` for each page. What cannot be read is left out.
#[derive(Debug)]
pub(super) struct ProcessCollector;

/// Seconds of a count of the kernel's clock ticks.
#[expect(clippy::cast_precision_loss, reason = "exact for 2 million years")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

/// Puts down one metric of the process.
fn put(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<Unit>),
    metric: &impl EncodeMetric,
) -> fmt::Result {
    let metric_encoder =
        encoder.encode_descriptor(name, help, unit.as_ref(), metric.metric_type())?;
    metric.encode(metric_encoder)
}

fn gauge(count: impl TryInto<i64>) -> ConstGauge<i64> {
    ConstGauge::new(count.try_into().unwrap_or(i64::MAX))
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(process) = Process::myself() else { return Ok(()) };
        let e = &mut encoder;
        if let Ok(stat) = process.stat() {
            let cpu = ConstCounter::new(seconds(stat.utime + stat.stime));
            let name =
                ("process_cpu", "CPU time, of the user and of the system", Some(Unit::Seconds));
            put(e, name, &cpu)?;
            let name = ("process_resident_memory", "Resident memory", Some(Unit::Bytes));
            put(e, name, &gauge(stat.rss.saturating_mul(procfs::page_size())))?;
            if let Ok(boot) = procfs::boot_time_secs() {
                #[expect(clippy::cast_precision_loss, reason = "exact for 100 million years")]
                let start = ConstGauge::new(boot as f64 + seconds(stat.starttime));
                let name =
                    ("process_start_time", "Start of the process, since 1970", Some(Unit::Seconds));
                put(e, name, &start)?;
            }
        }
        if let Ok(open) = process.fd_count() {
            put(e, ("process_open_fds", "Open file descriptors", None), &gauge(open))?;
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(most) = limits.max_open_files.soft_limit
        {
            let name = ("process_max_fds", "Maximum number of open file descriptors", None);
            put(e, name, &gauge(most))?;
        }
        Ok(())
    }
}
