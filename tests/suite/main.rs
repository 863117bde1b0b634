//! The integration tests: one binary, a module a topic. `support` starts what they need on private folders and sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is how a test fails; clippy.toml allows it in test functions alone, not in what they call"
)]

mod support;

mod apptoapp;
mod audit;
mod bad_input;
mod bus;
mod cache;
mod callers;
mod checkpoints;
mod clients;
mod config;
mod contract;
mod cost;
mod crowd;
mod daemon;
mod examples;
mod exchange;
mod failover;
mod figures;
mod forgery;
mod handle;
mod hardening;
mod http;
mod http2;
mod import;
mod interop;
mod libraries;
mod lifecycle;
mod matrix;
mod metadata;
mod pkcs11;
mod pkcs11_codes;
mod pkcs11_faults;
mod replays;
mod rest;
mod secrets;
mod signetctl;
mod signing;
mod soak;
mod sts;
mod tpm;
mod tss2;
