//! Compressed requests.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use oncegate::grpc::pb::{
    GetStatsRequest, MarkProcessedRequest, admin_service_client::AdminServiceClient,
    turn_service_client::TurnServiceClient,
};
use prost::Message as _;
use tonic::{Code, codec::CompressionEncoding::Gzip};

use super::channel;
use crate::harness::{Fixture, mark, raw::Raw};

const MARK: &str = "/oncegate.v1.IdempotencyService/MarkProcessed";
const HOLD: &str = "/oncegate.v1.IdempotencyService/HoldSessionLease";
const RUN: &str = "/oncegate.v1.TurnService/RunTurn";

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn framed(compressed: &[u8]) -> Vec<u8> {
    let length = u32::try_from(compressed.len()).unwrap().to_be_bytes();
    [&[1], length.as_slice(), compressed].concat()
}

#[tokio::test]
async fn every_service_reads_compressed_requests() {
    let f = Fixture::sqlite().await;
    let channel = channel(&f).await;
    let mut client = f.client.clone().send_compressed(Gzip).accept_compressed(Gzip);
    assert!(client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    let mut turns = TurnServiceClient::new(channel.clone()).send_compressed(Gzip);
    let refused = turns.begin_turn(oncegate::grpc::pb::BeginTurnRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "it was read");
    let mut admin = AdminServiceClient::new(channel).send_compressed(Gzip);
    admin.get_stats(GetStatsRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_compressed_message_is_bounded_by_what_it_holds() {
    let f = Fixture::sqlite().await.restarted(&["--max-calls", "1"]).await;
    let mut raw = Raw::connect(f.replica.server.address()).await;
    let gzip = [("grpc-encoding", "gzip")];
    // 64 MiB that came as 64 KiB, twice: no place is kept.
    let bomb = framed(&compressed(&vec![0; 64 << 20]));
    for _ in 0..2 {
        let mut call = raw.begin(MARK, &gzip).await;
        call.send(bomb.clone(), true);
        let status = call.status().await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("size limit, of 1048576 bytes"), "{status:?}");
    }
    // Long, but not too long, and then read.
    let request_id = "x".repeat(1_000_000);
    let message = MarkProcessedRequest { request_id, ..mark("T1", "Ev1") }.encode_to_vec();
    let mut call = raw.begin(MARK, &gzip).await;
    call.send(framed(&compressed(&message)), true);
    assert_eq!(call.status().await.code(), Code::InvalidArgument);

    // What cannot be read is its sender's fault, in the first message and in a later one.
    let message = compressed(&mark("T1", "Ev1").encode_to_vec());
    let mut mangled = message.clone();
    mangled[12] ^= 0xff;
    for (case, bytes, metadata) in [
        ("no gzip", framed(b"x"), &gzip[..]),
        ("cut", framed(&message[..message.len() - 4]), &gzip[..]),
        ("mangled", framed(&mangled), &gzip[..]),
        ("unannounced", framed(&message), &gzip[..0]),
        ("no such flag", [&[2], &framed(&message)[1..]].concat(), &gzip[..]),
    ] {
        for path in [MARK, HOLD, RUN] {
            let mut call = raw.begin(path, metadata).await;
            call.send(bytes.clone(), true);
            let status = call.status().await;
            assert_eq!(status.code(), Code::InvalidArgument, "{path}, {case}: {status:?}");
        }
    }

    let mut call = raw.begin(MARK, &[("grpc-encoding", "br")]).await;
    call.send(framed(b"x"), true);
    let status = call.status().await;
    assert_eq!(status.code(), Code::Unimplemented);
    let accepted = status.metadata().get("grpc-accept-encoding").unwrap();
    assert_eq!(accepted.to_str().unwrap(), "gzip,identity");
}
