//! The exporter of traces: OTLP over gRPC.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use http::Uri;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{Sampler, SdkTracerProvider, SpanData},
};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use uuid::Uuid;

use crate::{
    config::TraceConfig,
    telemetry::{LogThrottle, TraceMetrics, Traces},
};

/// How long the collector may take for one export, and for the last spans of a server that ends.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts to trace, if that is configured. It connects when there is something to send.
///
/// # Errors
/// When the system's CA certificates, or the headers in the environment, cannot be read.
pub(super) fn start(
    config: &TraceConfig,
    metrics: &TraceMetrics,
) -> anyhow::Result<Option<Traces>> {
    let Some(collector) = &config.otlp_endpoint else { return Ok(None) };
    let exporter = SpanExporter::builder().with_tonic().with_channel(channel(collector)?);
    let exporter = exporter.build().context("--otlp-endpoint")?;
    let exporter =
        ReportingExporter { exporter, metrics: metrics.clone(), throttle: Mutex::default() };
    let provider = SdkTracerProvider::builder()
        // Calls are sampled before they have a span.
        .with_sampler(Sampler::AlwaysOn)
        // A batch is linked to each of its calls, and is bounded itself.
        .with_max_links_per_span(u32::MAX)
        .with_resource(resource(config.otel_service_name.clone()))
        .with_batch_exporter(exporter)
        .build();
    Ok(Some(Traces::new(provider, config.trace_ratio)))
}

/// Sends what is left.
pub(super) async fn stop(traces: Traces) {
    // It blocks, and the channel's connection is driven by this runtime.
    let stopping = tokio::task::spawn_blocking(move || traces.shutdown(EXPORT_TIMEOUT));
    if let Ok(Err(error)) = stopping.await {
        tracing::warn!(%error, "cannot send the last traces");
    }
}

/// A channel to the collector that connects on first use.
fn channel(collector: &Uri) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from(collector.clone()).timeout(EXPORT_TIMEOUT);
    let endpoint = match collector.scheme_str() {
        Some("https") => {
            let roots = ClientTlsConfig::new().with_native_roots();
            endpoint.tls_config(roots).context("--otlp-endpoint")?
        }
        _ => endpoint,
    };
    Ok(endpoint.connect_timeout(EXPORT_TIMEOUT).connect_lazy())
}

/// What the spans say of this process, which is called `service`; `OTEL_RESOURCE_ATTRIBUTES` adds to
/// it.
fn resource(service: String) -> Resource {
    Resource::builder_empty()
        .with_detectors(&[
            Box::new(TelemetryResourceDetector),
            Box::new(EnvResourceDetector::new()),
        ])
        .with_attributes([
            KeyValue::new("service.name", service),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
        ])
        .build()
}

/// Sends spans to the collector, counts them, and logs why that fails.
#[derive(Debug)]
struct ReportingExporter {
    exporter: SpanExporter,
    metrics: TraceMetrics,
    throttle: Mutex<LogThrottle>,
}

impl opentelemetry_sdk::trace::SpanExporter for ReportingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        match self.exporter.export(batch).await {
            Ok(()) => self.metrics.exported(count),
            Err(error) => {
                self.metrics.failed(count);
                if self.throttle.lock().unwrap_or_else(PoisonError::into_inner).now() {
                    tracing::warn!(%error, "cannot send traces to --otlp-endpoint");
                }
            }
        }
        // Otherwise the SDK logs each failure.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
