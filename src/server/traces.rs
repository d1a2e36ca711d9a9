//! The exporter of traces: OTLP over gRPC.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use http::Uri;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData,
        SpanProcessor,
    },
};
use tokio::{runtime::Handle, time::timeout};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use uuid::Uuid;

use crate::{
    config::TraceConfig,
    telemetry::{LogThrottle, TraceMetrics, Traces},
};

/// How long the collector may take for one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server that ends may send its last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval of pings on the connection to the collector, and how long their answers may take:
/// a collector's machine may be gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The most spans that are to be sent.
const MAX_SPANS: usize = 8_192;

/// Starts to trace, if that is configured. It connects when there is something to send.
///
/// # Errors
/// When the system's CA certificates cannot be read.
pub(super) fn start(
    config: &TraceConfig,
    metrics: &TraceMetrics,
) -> anyhow::Result<Option<Traces>> {
    let Some(collector) = &config.otlp_endpoint else { return Ok(None) };
    let exporter = SpanExporter::builder().with_tonic().with_channel(channel(collector)?);
    let exporter = exporter.with_timeout(EXPORT_TIMEOUT).build().context("--otlp-endpoint")?;
    let waiting = Arc::new(AtomicUsize::new(0));
    let exporter = CountingExporter {
        exporter: Arc::new(exporter),
        runtime: Handle::current(),
        waiting: Arc::clone(&waiting),
        metrics: metrics.clone(),
        throttle: Mutex::default(),
    };
    let queue = BatchConfigBuilder::default().with_max_queue_size(MAX_SPANS).build();
    let queue = BatchSpanProcessor::builder(exporter).with_batch_config(queue).build();
    let provider = SdkTracerProvider::builder()
        // Calls are sampled before they have a span.
        .with_sampler(Sampler::AlwaysOn)
        // A batch is linked to each of its calls, and is bounded itself.
        .with_max_links_per_span(u32::MAX)
        .with_resource(resource(config.otel_service_name.as_deref()))
        .with_span_processor(BoundedQueue { queue, waiting, metrics: metrics.clone() })
        .build();
    Ok(Some(Traces::new(provider, config.trace_ratio, metrics.clone())))
}

/// Sends what is left.
pub(super) async fn stop(traces: Traces) {
    // It blocks, and this runtime has the connection to the collector.
    let stopping = tokio::task::spawn_blocking(move || traces.shutdown(FLUSH_TIMEOUT));
    if let Ok(Err(error)) = stopping.await {
        tracing::warn!(%error, "cannot send the last traces to --otlp-endpoint; spans are lost");
    }
}

/// A channel to the collector that connects on first use.
fn channel(collector: &Uri) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from(collector.clone())
        .timeout(EXPORT_TIMEOUT)
        .connect_timeout(EXPORT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let endpoint = match collector.scheme_str() {
        Some("https") => {
            let roots = ClientTlsConfig::new().with_native_roots();
            endpoint.tls_config(roots).context("--otlp-endpoint")?
        }
        _ => endpoint,
    };
    Ok(endpoint.connect_lazy())
}

/// What the spans say of this process. `OTEL_RESOURCE_ATTRIBUTES` goes before the defaults, and
/// the name of the service before both.
fn resource(service: Option<&str>) -> Resource {
    let service = service.filter(|name| !name.is_empty());
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "oncegate"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
        ])
        .with_detectors(&[
            Box::new(TelemetryResourceDetector),
            Box::new(EnvResourceDetector::new()),
        ])
        .with_attributes(service.map(|name| KeyValue::new("service.name", name.to_owned())))
        .build()
}

/// The spans that are to be sent. Counts those for which there is no room.
#[derive(Debug)]
struct BoundedQueue {
    queue: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    metrics: TraceMetrics,
}

impl SpanProcessor for BoundedQueue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.queue.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let more = |waiting| (waiting < MAX_SPANS).then_some(waiting + 1);
        match self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => self.queue.on_end(span),
            Err(_) => self.metrics.dropped(),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.queue.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.queue.set_resource(resource);
    }
}

/// Sends spans to the collector, counts them, and logs why that fails.
#[derive(Debug)]
struct CountingExporter {
    exporter: Arc<SpanExporter>,
    /// Which has the connection, and timers.
    runtime: Handle,
    waiting: Arc<AtomicUsize>,
    metrics: TraceMetrics,
    throttle: Mutex<LogThrottle>,
}

impl opentelemetry_sdk::trace::SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let exporter = Arc::clone(&self.exporter);
        let sending = async move { timeout(EXPORT_TIMEOUT, exporter.export(batch)).await };
        let error = match self.runtime.spawn(sending).await {
            Ok(Ok(sent)) => sent.err().map(|error| error.to_string()),
            Ok(Err(late)) => Some(late.to_string()),
            Err(ended) => Some(ended.to_string()),
        };
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let spans = u64::try_from(count).unwrap_or(u64::MAX);
        match error {
            None => self.metrics.exported(spans),
            Some(error) => {
                self.metrics.failed(spans);
                if self.throttle.lock().unwrap_or_else(PoisonError::into_inner).now() {
                    tracing::warn!(
                        error,
                        spans,
                        "cannot send traces to --otlp-endpoint; spans are lost"
                    );
                }
            }
        }
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}
