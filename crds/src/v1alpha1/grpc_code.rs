use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A gRPC status other than OK, by its name in the gRPC specification.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are those of the gRPC specification")]
pub enum GrpcCode {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl GrpcCode {
    /// Its number in `google.rpc.Code`, 1 to 16.
    pub const fn number(self) -> u32 {
        self as u32
    }
}
