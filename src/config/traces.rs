//! Traces: where they go, and of which calls.

use anyhow::ensure;
use clap::Args;
use http::Uri;

/// Where traces go, and of which calls.
#[derive(Debug, Clone, Args)]
pub struct TraceConfig {
    /// URL of an OpenTelemetry collector that takes OTLP over gRPC, such as
    /// `http://localhost:4317`; unset: no traces
    #[arg(long, env = "ONCEGATE_OTLP_ENDPOINT", value_name = "URL", value_parser = endpoint)]
    pub otlp_endpoint: Option<Uri>,
    /// Share of calls that are traced, 0 to 1. It applies to calls without `traceparent`; of the
    /// others those are traced whose caller records its own span. At most 1,000 calls are traced in a second
    #[arg(long, env = "ONCEGATE_TRACE_RATIO", default_value_t = 0.01, value_parser = ratio)]
    pub trace_ratio: f64,
    /// What the spans call the service.
    #[arg(long, env = "OTEL_SERVICE_NAME", hide = true)]
    pub otel_service_name: Option<String>,
}

impl TraceConfig {
    /// Checks what an error of the command line would show.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        let authority = self.otlp_endpoint.as_ref().and_then(Uri::authority);
        ensure!(
            !authority.is_some_and(|authority| authority.as_str().contains('@')),
            "--otlp-endpoint must not have credentials: set OTEL_EXPORTER_OTLP_HEADERS"
        );
        Ok(())
    }
}

fn endpoint(given: &str) -> Result<Uri, String> {
    let wrong = || "must be a URL such as http://localhost:4317 or https://collector:4317";
    let uri: Uri = given.parse().map_err(|_| wrong())?;
    let is_right = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri.port_u16().is_some()
        && uri.path_and_query().is_none_or(|rest| rest == "/");
    if is_right { Ok(uri) } else { Err(wrong().into()) }
}

fn ratio(given: &str) -> Result<f64, String> {
    let ratio = given.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "must be a number from 0 to 1, such as 0.01".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_of_a_host() {
        for good in ["http://localhost:4317", "https://collector.example:4317/", "http://[::1]:1"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "localhost:4317",
            "grpc://localhost:4317",
            "http://",
            "http://localhost",
            "http://localhost:4318/v1/traces",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        let with_credentials = TraceConfig {
            otlp_endpoint: endpoint("http://user:word@localhost:4317").ok(),
            trace_ratio: 0.01,
            otel_service_name: None,
        };
        let error = with_credentials.validate().unwrap_err().to_string();
        assert!(!error.contains("word"), "{error}");
    }

    #[test]
    fn a_ratio_is_a_share() {
        assert_eq!(ratio("0.25"), Ok(0.25));
        for bad in ["", "-0.1", "1.1", "NaN", "inf", "1%"] {
            assert!(ratio(bad).is_err(), "{bad}");
        }
    }
}
