//! The TOML as it is written.
