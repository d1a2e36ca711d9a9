//! The caller's span: <https://www.w3.org/TR/trace-context/#traceparent-header>.

use http::HeaderValue;
use opentelemetry::trace::{SpanId, TraceId};

/// The name of the header.
pub(super) const TRACEPARENT: &str = "traceparent";
/// The bit of the flags that says that the caller records its span.
const SAMPLED: u8 = 1;

/// A valid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceParent {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    /// Whether the caller records its span.
    pub(super) is_sampled: bool,
}

impl TraceParent {
    /// Reads the header; none if it is not valid.
    pub(super) fn of(header: &HeaderValue) -> Option<Self> {
        let mut parts = header.to_str().ok()?.splitn(5, '-');
        let (version, trace_id, span_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // Later versions may have more parts.
        let is_version =
            is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        if !(is_version && is_id(trace_id, 32) && is_id(span_id, 16) && is_hex(flags, 2)) {
            return None;
        }
        let flags = u8::from_str_radix(flags, 16).ok()?;
        Some(Self {
            trace_id: TraceId::from_hex(trace_id).ok()?,
            span_id: SpanId::from_hex(span_id).ok()?,
            is_sampled: flags & SAMPLED != 0,
        })
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_id(text: &str, length: usize) -> bool {
    is_hex(text, length) && text.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_only_if_it_is_one() {
        let (trace_id, span_id) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let is_sampled = |text: &str| {
            let header = text.parse().unwrap();
            let parent = TraceParent::of(&header)?;
            assert_eq!(parent.trace_id.to_string(), trace_id, "{text}");
            assert_eq!(parent.span_id.to_string(), span_id, "{text}");
            Some(parent.is_sampled)
        };
        for (good, sampled) in [
            ("00-T-P-01", true),
            ("00-T-P-00", false),
            ("00-T-P-02", false),
            ("01-T-P-03", true),
            ("cc-T-P-01-more", true),
        ] {
            let good = good.replace('T', trace_id).replace('P', span_id);
            assert_eq!(is_sampled(&good), Some(sampled), "{good}");
        }
        let (no_trace, no_span) = ("0".repeat(32), "0".repeat(16));
        for bad in [
            "",
            "00",
            "00-T-P",
            "00-T-P-1",
            "00-T-P-01-more",
            "ff-T-P-01",
            "0-T-P-01",
            "00-P-T-01",
            "00-T-P-0g",
            "00-Z-P-01",
            "00-T-Y-01",
            "00 T P 01",
        ] {
            let bad = bad
                .replace('T', trace_id)
                .replace('P', span_id)
                .replace('Z', &no_trace)
                .replace('Y', &no_span);
            assert_eq!(is_sampled(&bad), None, "{bad}");
        }
        let upper = format!("00-{}-{span_id}-01", trace_id.to_uppercase());
        assert_eq!(is_sampled(&upper), None);
    }
}
