//! Bytes that no client of ours would send.

use http::StatusCode;
use oncegate::grpc::pb::{self, IsProcessedRequest, MarkProcessedRequest};
use prost::{Message as _, length_delimiter_len};
use prost_types::FileDescriptorSet;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{SERVICE, channel, post, refusal};
use crate::harness::{Fixture, event, mark};

const MARK: &str = "/oncegate.v1.IdempotencyService/MarkProcessed";

/// The path of every method in the contract.
fn methods() -> Vec<String> {
    let contract = FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    let paths = contract.file.iter().flat_map(|file| {
        file.service.iter().flat_map(|service| {
            let name = format!("{}.{}", file.package(), service.name());
            service.method.iter().map(move |method| format!("/{name}/{}", method.name()))
        })
    });
    paths.collect()
}

/// A length-delimited field, its payload short.
fn field(number: u8, payload: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(payload.len()).unwrap()], payload].concat()
}

#[tokio::test]
async fn a_message_that_is_not_protobuf_is_its_senders_fault() {
    let f = Fixture::sqlite().await;
    let channel = channel(&f).await;
    let methods = methods();
    assert!(methods.len() >= 8, "{methods:?}");
    for path in methods {
        for (case, message) in [
            ("noise", vec![0xff; 20]),
            ("cut short", vec![0x0a, 5, 1]),
            ("of another wire type", vec![0x08, 1]),
            ("with field number zero", vec![0x00, 1]),
        ] {
            // Its message has no fields: that one is not known, and so passed over.
            if path.ends_with("/GetServerInfo") && case == "of another wire type" {
                continue;
            }
            let status = refusal(&channel, &path, &message).await;
            assert_eq!(status.code(), Code::InvalidArgument, "{path} {case}: {status:?}");
        }
    }
}

#[tokio::test]
async fn text_that_is_not_utf8_is_its_senders_fault() {
    let f = Fixture::sqlite().await;
    let channel = channel(&f).await;
    for text in [[0xff, 0xfe].as_slice(), &[0xc3], &[0xed, 0xa0, 0x80]] {
        let key = [field(1, b"T"), field(2, text)].concat();
        for message in [field(1, &key), [field(1, &field(1, b"T")), field(3, text)].concat()] {
            let status = refusal(&channel, MARK, &message).await;
            assert_eq!(status.code(), Code::InvalidArgument, "{text:?}: {status:?}");
        }
    }
}

#[tokio::test]
async fn another_content_type_is_not_taken_for_grpc() {
    let mut f = Fixture::sqlite().await;
    let channel = channel(&f).await;
    let message = mark("T", "x").encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = [&[0], length.as_slice(), &message].concat();
    for kind in ["application/json", "text/plain", "application/x-protobuf", ""] {
        let response = post(&channel, MARK, kind, framed.clone()).await;
        assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind:?}");
        assert!(response.headers().get("grpc-status").is_none());
    }
    let ask = IsProcessedRequest { event: event("T", "x"), ..Default::default() };
    assert!(!f.client.is_processed(ask).await.unwrap().into_inner().processed);
    // The same bytes are a mark, where they are said to be one.
    let response = post(&channel, MARK, "application/grpc+proto", framed).await;
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
}

#[tokio::test]
async fn a_message_of_one_mebibyte_is_read_and_a_larger_one_is_refused() {
    let mut f = Fixture::sqlite().await;
    let of_size = |size: usize| {
        let left = size - mark("T", "x").encoded_len();
        let request_id = "x".repeat(left - 1 - length_delimiter_len(left));
        let request = MarkProcessedRequest { request_id, ..mark("T", "x") };
        assert_eq!(request.encoded_len(), size);
        request
    };
    let read = f.client.mark_processed(of_size(1024 * 1024)).await.unwrap_err();
    assert_eq!(read.get_details_bad_request().unwrap().field_violations[0].field, "request_id");
    for size in [1024 * 1024 + 1, 8 * 1024 * 1024] {
        let refused = f.client.mark_processed(of_size(size)).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
        // The connection is none the worse for it.
        let ask = IsProcessedRequest { event: event("T", "x"), ..Default::default() };
        assert!(!f.client.is_processed(ask).await.unwrap().into_inner().processed);
    }
}

#[tokio::test]
async fn unknown_methods_and_services_are_unimplemented() {
    let f = Fixture::sqlite().await;
    let channel = channel(&f).await;
    for path in
        [format!("/{SERVICE}/Nothing"), "/oncegate.v2.IdempotencyService/MarkProcessed".into()]
    {
        let status = refusal(&channel, &path, &[]).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
    }
}
