//! etcd, as a bot would use it: put if absent, and its lock.

use anyhow::bail;
use prost::Message as _;

use super::{Keys, Script, Step, encode};

/// What is needed of etcd's contract:
/// <https://etcd.io/docs/v3.4/dev-guide/api_reference_v3/>.
mod pb {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PutRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct RequestOp {
        #[prost(message, optional, tag = "2")]
        pub put: Option<PutRequest>,
    }

    /// Of a key's revision with that of its creation.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Compare {
        /// 0: equal.
        #[prost(int32, tag = "1")]
        pub result: i32,
        /// 1: the revision of its creation.
        #[prost(int32, tag = "2")]
        pub target: i32,
        #[prost(bytes = "vec", tag = "3")]
        pub key: Vec<u8>,
        /// 0: it is not there.
        #[prost(int64, optional, tag = "5")]
        pub create_revision: Option<i64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TxnRequest {
        #[prost(message, repeated, tag = "1")]
        pub compare: Vec<Compare>,
        #[prost(message, repeated, tag = "2")]
        pub success: Vec<RequestOp>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TxnResponse {
        #[prost(bool, tag = "2")]
        pub succeeded: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct LeaseGrantRequest {
        /// In seconds.
        #[prost(int64, tag = "1")]
        pub ttl: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct LeaseGrantResponse {
        #[prost(int64, tag = "2")]
        pub id: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct LockRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub name: Vec<u8>,
        #[prost(int64, tag = "2")]
        pub lease: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct LockResponse {
        #[prost(bytes = "vec", tag = "2")]
        pub key: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct UnlockRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub key: Vec<u8>,
    }
}

/// Longer than any load.
const LEASE_SECONDS: i64 = 3_600;

pub(super) struct Put {
    keys: Keys,
    id: String,
}

impl Put {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, id: String::new() }
    }
}

impl Script for Put {
    fn ask(&mut self, _: usize, message: &mut Vec<u8>) -> anyhow::Result<&'static str> {
        self.keys.rising(&mut self.id);
        let key = format!("{}/{}", self.keys.team(), self.id).into_bytes();
        let absent =
            pb::Compare { result: 0, target: 1, key: key.clone(), create_revision: Some(0) };
        let put = pb::RequestOp { put: Some(pb::PutRequest { key, value: b"1".to_vec() }) };
        encode(&pb::TxnRequest { compare: vec![absent], success: vec![put] }, message)?;
        Ok("/etcdserverpb.KV/Txn")
    }

    fn hear(&mut self, _: usize, answer: &[u8]) -> anyhow::Result<Step> {
        let answer = pb::TxnResponse::decode(answer)?;
        Ok(if answer.succeeded { Step::Done(1) } else { Step::Wrong })
    }
}

/// What a caller has.
#[derive(Clone)]
enum Held {
    Nothing,
    /// A lease, under which it locks.
    Lease(i64),
    /// The lease, and the lock's key.
    Lock(i64, Vec<u8>),
}

pub(super) struct Lock {
    names: Vec<String>,
    held: Vec<Held>,
}

impl Lock {
    pub(super) fn new(keys: &Keys, callers: usize) -> Self {
        let names = (0..callers).map(|caller| keys.session(caller)).collect();
        Self { names, held: vec![Held::Nothing; callers] }
    }
}

impl Script for Lock {
    fn ask(&mut self, caller: usize, message: &mut Vec<u8>) -> anyhow::Result<&'static str> {
        match &self.held[caller] {
            Held::Nothing => {
                encode(&pb::LeaseGrantRequest { ttl: LEASE_SECONDS }, message)?;
                Ok("/etcdserverpb.Lease/LeaseGrant")
            }
            &Held::Lease(lease) => {
                let name = self.names[caller].clone().into_bytes();
                encode(&pb::LockRequest { name, lease }, message)?;
                Ok("/v3lockpb.Lock/Lock")
            }
            Held::Lock(_, key) => {
                encode(&pb::UnlockRequest { key: key.clone() }, message)?;
                Ok("/v3lockpb.Lock/Unlock")
            }
        }
    }

    fn hear(&mut self, caller: usize, answer: &[u8]) -> anyhow::Result<Step> {
        let held = &mut self.held[caller];
        let (next, step) = match held {
            Held::Nothing => (Held::Lease(pb::LeaseGrantResponse::decode(answer)?.id), Step::More),
            &mut Held::Lease(lease) => {
                (Held::Lock(lease, pb::LockResponse::decode(answer)?.key), Step::More)
            }
            &mut Held::Lock(lease, _) => (Held::Lease(lease), Step::Done(1)),
        };
        if matches!(&next, Held::Lease(0)) {
            bail!("etcd granted no lease");
        }
        *held = next;
        Ok(step)
    }
}
