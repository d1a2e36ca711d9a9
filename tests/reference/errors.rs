use oncegate::grpc::pb;
use prost_reflect::{DescriptorPool, EnumDescriptor};

use super::{code, head, row};

/// The source comments of a value, by <https://protobuf.com/docs/descriptors#source-code-info>.
fn comment(reasons: &EnumDescriptor, index: usize) -> String {
    let file = reasons.parent_file();
    let info = file.file_descriptor_proto().source_code_info.as_ref().unwrap();
    let path = [reasons.path(), &[2, i32::try_from(index).unwrap()]].concat();
    let location = info.location.iter().find(|location| location.path == path).unwrap();
    location.leading_comments().to_owned()
}

/// Each reason, and the comment that explains it.
pub fn reasons() -> Vec<(String, String)> {
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    let reasons = pool.get_enum_by_name("oncegate.v1.Reason").unwrap();
    let values = reasons.values().enumerate().filter(|(_, value)| value.number() != 0);
    values
        .map(|(index, value)| {
            let name = value.name().strip_prefix("REASON_").unwrap().to_owned();
            (name, comment(&reasons, index))
        })
        .collect()
}

pub fn page() -> String {
    let rows = reasons().into_iter().map(|(name, comment)| {
        let (codes, meaning) = comment.split_once(": ").unwrap();
        row([code(&name), codes.trim().to_owned(), meaning.to_owned()])
    });
    format!(
        "Every error carries a `google.rpc.ErrorInfo` with the domain `oncegate` and one of these reasons.\n\
        [Calling oncegate](../calling.md#errors) says what to do.\n\n{}{}",
        head(["reason", "status", "meaning"]),
        rows.collect::<String>()
    )
}
