//! The formats of the metrics page, and which one a request asks for.

use prometheus_client::encoding::prometheus_text;

/// A text format for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// Prometheus's own, which its tools read as well:
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
    Prometheus,
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
    OpenMetrics,
}

const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_VERSION: &str = "1.0.0";

impl TextFormat {
    /// The one that a request prefers whose `Accept` header has these values, by their `q`:
    /// `OpenMetrics` only if it is named.
    pub fn of_accept<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let (mut text, mut open_metrics) = (0.0_f32, 0.0_f32);
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut quality, mut version) = (1.0_f32, OPEN_METRICS_VERSION);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim() {
                    name if name.eq_ignore_ascii_case("q") => {
                        quality = value.trim().parse().unwrap_or(0.0);
                    }
                    name if name.eq_ignore_ascii_case("version") => version = value.trim(),
                    _ => {}
                }
            }
            if kind.eq_ignore_ascii_case(OPEN_METRICS) {
                if version == OPEN_METRICS_VERSION {
                    open_metrics = quality.max(open_metrics);
                }
            } else if ["text/plain", "text/*", "*/*"].iter().any(|it| kind.eq_ignore_ascii_case(it))
            {
                text = quality.max(text);
            }
        }
        if open_metrics > 0.0 && open_metrics >= text {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// Its media type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}
