//! Translation only: from a protocol to `signer` and back. No front knows another, and none knows a device.

pub mod grpc;
mod identity;
pub mod listen;
mod peer;
