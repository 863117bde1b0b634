//! Provisions keys and talks to signetd: see `signetctl --help`.

fn main() -> std::process::ExitCode {
    signet::ctl::main()
}
