//! Messages of the contract, made from its descriptor.

use prost_reflect::{
    Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
};

use crate::chance::Chance;

/// How deep messages are that hold messages.
const DEPTH: usize = 6;

/// Few names, so that calls meet: teams, events, sessions, holders, requests.
const IDS: [&str; 10] = ["T1", "T2", "e1", "e2", "e3", "s1", "s2", "h1", "h2", "r1"];
const ODD: [&str; 16] = [
    "",
    " ",
    "a\u{0}b",
    "\u{7f}",
    "\u{85}\u{2028}",
    "\u{feff}T1",
    "T1:C1:1700000000.000100",
    "1700000000.000100",
    "承",
    "%s%n",
    "'; DROP TABLE x; --",
    "00000000-0000-0000-0000-000000000000",
    "CgJUMRICZTEaEAAAAAAAAAAAAAAAAAAAAAAiAnMxKhAAAAAAAAAAAAAAAAAAAAAA",
    "CgJUMRICZTEaEAAAAAAAAAAAAAAAAAAAAAA",
    "9223372036854775807",
    "x-y_z",
];

/// Values of numbers and enums, as varints have them: negative ones last.
const NUMBERS: [u64; 10] =
    [0, 1, 5, 100, 99, 1 << 53, i32::MAX as u64, i64::MAX as u64, u64::MAX, 1 << 63];

/// The contract, health and reflection: every method that the server has.
pub struct Contract {
    pools: Vec<DescriptorPool>,
    pub methods: Vec<MethodDescriptor>,
    /// Bodies of platforms.
    payloads: Vec<Vec<u8>>,
}

impl Contract {
    pub fn new(payloads: Vec<Vec<u8>>) -> Self {
        let sets = [
            oncegate::grpc::pb::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        ];
        let pools = sets.map(|set| DescriptorPool::decode(set).expect("a descriptor")).to_vec();
        let methods = pools.iter().flat_map(DescriptorPool::services);
        let methods: Vec<_> =
            methods.flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
        Self { pools, methods, payloads }
    }

    pub fn method(&self, path: &str) -> Option<MethodDescriptor> {
        let (service, name) = path.strip_prefix('/')?.split_once('/')?;
        let services = self.pools.iter().find_map(|pool| pool.get_service_by_name(service));
        services?.methods().find(|method| method.name() == name)
    }

    /// A message that is valid protobuf, and often a valid request. It is written field by
    /// field, in one order: the maps of a dynamic message have none.
    pub fn message(&self, chance: &mut Chance, descriptor: &MessageDescriptor) -> Vec<u8> {
        let mut message = Vec::new();
        self.fill(chance, descriptor, DEPTH, &mut message);
        message
    }

    fn fill(
        &self,
        chance: &mut Chance,
        descriptor: &MessageDescriptor,
        depth: usize,
        to: &mut Vec<u8>,
    ) {
        if descriptor.full_name() == "google.protobuf.Duration" {
            return duration(chance, to);
        }
        if descriptor.is_map_entry() {
            for field in descriptor.fields() {
                self.single(chance, &field, depth, to);
            }
            return;
        }
        for oneof in descriptor.oneofs() {
            let fields: Vec<_> = oneof.fields().collect();
            if !chance.one_in(16) {
                let field = chance.pick(&fields);
                self.single(chance, field, depth, to);
            }
        }
        for field in descriptor.fields().filter(|field| field.containing_oneof().is_none()) {
            // A call that waits holds up the others of its block.
            let odds = match field.name() {
                "wait" | "page_token" | "consumer" => 24,
                _ => 4,
            };
            let is_key = matches!(field.name(), "event" | "session" | "team_id" | "holder");
            let is_set = if is_key { !chance.one_in(24) } else { chance.one_in(odds) };
            let times = match field.cardinality() {
                Cardinality::Repeated => Self::count(chance, 4),
                _ => usize::from(is_set),
            };
            for _ in 0..times {
                self.single(chance, &field, depth, to);
            }
        }
    }

    fn count(chance: &mut Chance, most: usize) -> usize {
        if chance.one_in(200) { chance.between(10, 1_200) } else { chance.between(0, most) }
    }

    fn single(&self, chance: &mut Chance, field: &FieldDescriptor, depth: usize, to: &mut Vec<u8>) {
        let bytes = match field.kind() {
            Kind::Message(_) if depth == 0 => Vec::new(),
            Kind::Message(inner) => {
                let mut message = Vec::new();
                self.fill(chance, &inner, depth - 1, &mut message);
                message
            }
            Kind::String => text(chance, field.name()).into_bytes(),
            Kind::Bytes => self.bytes(chance, field.name()),
            kind => {
                let value = match kind {
                    Kind::Bool => chance.below(2) as u64,
                    Kind::Enum(values) if !chance.one_in(12) => {
                        let known: Vec<_> = values.values().map(|value| value.number()).collect();
                        (*chance.pick(&known)).cast_unsigned().into()
                    }
                    _ => *chance.pick(&NUMBERS),
                };
                varint(u64::from(field.number()) << 3, to);
                return varint(value, to);
            }
        };
        varint(u64::from(field.number()) << 3 | 2, to);
        varint(bytes.len() as u64, to);
        to.extend_from_slice(&bytes);
    }

    fn bytes(&self, chance: &mut Chance, field: &str) -> Vec<u8> {
        match field {
            "slack_payload" | "body" if !chance.one_in(8) => {
                let mut payload = chance.pick(&self.payloads).clone();
                if chance.one_in(3) {
                    crate::mutate::mutate(chance, &mut payload, &self.payloads);
                }
                payload
            }
            "payload_digest" => {
                let count = [0, 16, 32, 33][chance.below(4)];
                chance.bytes(count)
            }
            _ => {
                let count = if chance.one_in(40) { 66_000 } else { chance.between(0, 40) };
                chance.bytes(count)
            }
        }
    }
}

fn text(chance: &mut Chance, field: &str) -> String {
    match (chance.below(16), field) {
        (0, _) => (*chance.pick(&ODD)).to_owned(),
        (1, _) if chance.one_in(3) => "x".repeat([511, 512, 513, 2_049, 8_200][chance.below(5)]),
        (1, _) => format!("n{}", chance.below(1_000)),
        (2..8, "lease_id") => crate::remembered::LEASE.to_owned(),
        (2..8, "turn_id") => {
            crate::remembered::turn(*chance.pick(&crate::remembered::TURN_LENGTHS))
        }
        (_, "team_id") => IDS[chance.below(2)].to_owned(),
        _ => (*chance.pick(&IDS)).to_owned(),
    }
}

fn duration(chance: &mut Chance, to: &mut Vec<u8>) {
    let seconds = [0, 1, 1, 5, 5, 60, 60, 3_600, u64::MAX, i64::MAX as u64][chance.below(10)];
    varint(1 << 3, to);
    varint(seconds, to);
    if chance.one_in(4) {
        varint(2 << 3, to);
        varint([1, 999_999_999, i32::MAX as u64, u64::MAX][chance.below(4)], to);
    }
}

/// Writes a number as protobuf does.
pub fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    to.push(value.to_le_bytes()[0]);
}
