//! A collector of traces, for one test.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, status::StatusCode},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, metadata::MetadataMap, transport::Server};

/// What it has been sent.
#[derive(Clone, Default)]
pub struct Collector {
    spans: Arc<Mutex<Vec<ResourceSpans>>>,
    headers: Arc<Mutex<MetadataMap>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        *self.headers.lock().unwrap() = request.metadata().clone();
        self.spans.lock().unwrap().extend(request.into_inner().resource_spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts one, and answers its URL as well.
    pub async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let serving = Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, url)
    }

    /// Every span, in the order of their beginnings.
    pub fn spans(&self) -> Vec<Span> {
        let sent = self.spans.lock().unwrap();
        let scopes = sent.iter().flat_map(|resource| &resource.scope_spans);
        let mut spans: Vec<Span> = scopes.flat_map(|scope| scope.spans.clone()).collect();
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }

    /// The spans of a name.
    pub fn named(&self, name: &str) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| span.name == name);
        spans
    }

    /// What the process that sent the spans says of itself.
    pub fn resource(&self) -> HashMap<String, String> {
        let sent = self.spans.lock().unwrap();
        attributes(&sent[0].resource.as_ref().unwrap().attributes)
    }

    /// A header that spans were sent with.
    pub fn header(&self, name: &str) -> Option<String> {
        let headers = self.headers.lock().unwrap();
        headers.get(name).map(|value| value.to_str().unwrap().to_owned())
    }
}

/// Attributes by their names.
pub fn attributes(attributes: &[KeyValue]) -> HashMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("unexpected {other:?}"),
    };
    let value = |of: &KeyValue| text(of.value.as_ref().unwrap().value.as_ref().unwrap());
    let by_name: HashMap<_, _> = attributes.iter().map(|of| (of.key.clone(), value(of))).collect();
    assert_eq!(by_name.len(), attributes.len(), "{attributes:?}");
    by_name
}

/// Whether a span says that it failed.
pub fn has_failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}
