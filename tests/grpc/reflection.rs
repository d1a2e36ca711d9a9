//! The services around ours: reflection and health.

use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{SERVICE, channel};
use crate::harness::Fixture;

/// What a caller of ours may want to know the shape of: its messages, the
/// details of its errors, and health.
const SYMBOLS: [&str; 10] = [
    SERVICE,
    "oncegate.v1.IdempotencyService.MarkProcessed",
    "oncegate.v1.MarkProcessedRequest",
    "oncegate.v1.SessionLease",
    "google.rpc.Status",
    "google.rpc.ErrorInfo",
    "google.rpc.BadRequest",
    "google.rpc.RetryInfo",
    "grpc.health.v1.Health",
    "grpc.health.v1.HealthCheckResponse",
];

/// A client of one version of reflection, which differ in name only.
macro_rules! reflection_client {
    ($version:ident) => {
        mod $version {
            use prost::Message as _;
            use prost_types::FileDescriptorProto;
            use tokio_stream::once;
            use tonic::transport::Channel;
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };

            async fn ask(channel: &Channel, question: MessageRequest) -> MessageResponse {
                let request = ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(question),
                };
                let mut client = ServerReflectionClient::new(channel.clone());
                let answers = client.server_reflection_info(once(request)).await.unwrap();
                let answer = answers.into_inner().message().await.unwrap().unwrap();
                answer.message_response.unwrap()
            }

            pub(super) async fn services(channel: &Channel) -> Vec<String> {
                let question = MessageRequest::ListServices(String::new());
                match ask(channel, question).await {
                    MessageResponse::ListServicesResponse(list) => {
                        list.service.into_iter().map(|service| service.name).collect()
                    }
                    other => panic!("{other:?}"),
                }
            }

            pub(super) async fn file_of(channel: &Channel, symbol: &str) -> FileDescriptorProto {
                let question = MessageRequest::FileContainingSymbol(symbol.to_owned());
                match ask(channel, question).await {
                    MessageResponse::FileDescriptorResponse(files) => {
                        let file = files.file_descriptor_proto.first().unwrap();
                        FileDescriptorProto::decode(file.as_slice()).unwrap()
                    }
                    other => panic!("{symbol}: {other:?}"),
                }
            }
        }
    };
}

reflection_client!(v1);
reflection_client!(v1alpha);

#[tokio::test]
async fn reflection_of_both_versions_knows_every_service_and_message() {
    let f = Fixture::sqlite().await;
    let channel = channel(&f).await;
    for services in [v1::services(&channel).await, v1alpha::services(&channel).await] {
        for name in [SERVICE, "grpc.health.v1.Health"] {
            assert!(services.iter().any(|service| service == name), "{name} in {services:?}");
        }
    }
    for symbol in SYMBOLS {
        let file = v1::file_of(&channel, symbol).await;
        assert!(symbol.starts_with(file.package()), "{symbol} in {}", file.name());
        assert_eq!(v1alpha::file_of(&channel, symbol).await, file);
    }
}

#[tokio::test]
async fn reflection_carries_the_contracts_comments() {
    let f = Fixture::sqlite().await;
    let file = v1::file_of(&channel(&f).await, SERVICE).await;
    let comments = file.source_code_info.unwrap().location;
    assert!(comments.iter().any(|place| place.leading_comments().contains("first = true")));
}

#[tokio::test]
async fn health_tells_of_each_service_and_of_no_other() {
    let f = Fixture::sqlite().await;
    let mut health = HealthClient::new(channel(&f).await);
    let mut check = async |service: &str| {
        let request = HealthCheckRequest { service: service.into() };
        health.check(request).await.map(|answer| answer.into_inner().status())
    };
    for service in ["", "liveness", "readiness", SERVICE] {
        assert_eq!(check(service).await.unwrap(), ServingStatus::Serving, "{service:?}");
    }
    let unknown = check("oncegate.v1.NoService").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}
