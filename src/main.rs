//! The `kvmb` program.
fn main() {}
