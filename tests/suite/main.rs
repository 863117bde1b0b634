//! The integration tests: one binary, a module a topic. `support` starts what they need on private folders and sockets.

mod support;

mod audit;
mod bus;
mod config;
mod contract;
mod daemon;
mod forgery;
mod handle;
mod import;
mod interop;
mod matrix;
mod pkcs11;
mod secrets;
mod signetctl;
mod tpm;
