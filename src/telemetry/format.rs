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
const TEXT_VERSION: &str = "0.0.4";

/// How a range of `Accept` names a media type, and how much it is wanted. Of several the most
/// specific one counts: <https://www.rfc-editor.org/rfc/rfc9110.html#section-12.5.1>.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
struct Preference {
    /// The whole type with a version, the whole type, a part of it, or none.
    specificity: u8,
    quality: f32,
}

/// One range of an `Accept` header.
struct Range<'a> {
    kind: &'a str,
    quality: f32,
    version: Option<&'a str>,
}

impl<'a> Range<'a> {
    fn of(text: &'a str) -> Self {
        let mut parts = split(text, b';');
        let kind = parts.next().unwrap_or_default();
        let mut range = Self { kind, quality: 1.0, version: None };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            // No value that matters here has a quote in it.
            let value = value.trim().trim_matches('"');
            match name.trim() {
                name if name.eq_ignore_ascii_case("q") => {
                    range.quality = value.parse().unwrap_or(0.0);
                }
                name if name.eq_ignore_ascii_case("version") => range.version = Some(value),
                _ => {}
            }
        }
        range
    }

    /// What it says of `kind` in this version, if that is in it, which `wildcards` may name too.
    fn prefers(&self, kind: &str, version: &str, wildcards: &[&str]) -> Option<Preference> {
        let wildcard =
            wildcards.iter().position(|wildcard| self.kind.eq_ignore_ascii_case(wildcard));
        let specificity = match (self.version, wildcard) {
            (None, Some(place)) => u8::try_from(place).unwrap_or(u8::MAX),
            _ if !self.kind.eq_ignore_ascii_case(kind) => return None,
            (None, None) => 2,
            (Some(named), _) if named == version => 3,
            _ => return None,
        };
        Some(Preference { specificity, quality: self.quality })
    }
}

/// The parts of a header between separators that are not quoted, without the space around them.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let is_end = move |byte: char| {
        let ends = !is_quoted && byte == char::from(separator);
        is_quoted ^= byte == '"' && !is_escaped;
        is_escaped = is_quoted && byte == '\\' && !is_escaped;
        ends
    };
    text.split(is_end).map(str::trim)
}

impl TextFormat {
    /// The one that a request prefers whose `Accept` header has these values, by their `q`:
    /// `OpenMetrics` only if it is named.
    pub fn of_accept<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let (mut text, mut open_metrics) = (Preference::default(), Preference::default());
        for range in values.flat_map(|value| split(value, b',')).map(Range::of) {
            let of_text = range.prefers("text/plain", TEXT_VERSION, &["*/*", "text/*"]);
            let of_open_metrics = range.prefers(OPEN_METRICS, OPEN_METRICS_VERSION, &[]);
            for (kept, found) in [(&mut text, of_text), (&mut open_metrics, of_open_metrics)] {
                *kept = found.filter(|found| *found > *kept).unwrap_or(*kept);
            }
        }
        if open_metrics.quality > 0.0 && open_metrics.quality >= text.quality {
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
