//! The `kvmb` program: everything is in the library.

fn main() -> kvmb::cli::exit_code::ExitCode {
    kvmb::cli::main()
}
