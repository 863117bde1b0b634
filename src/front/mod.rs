//! Translation only: from a protocol to `signer` and back. No front knows another, and none knows a device.

mod admission;
pub mod grpc;
pub mod http;
mod iam;
mod identity;
mod limits;
pub mod listen;
mod peer;
mod stream;
