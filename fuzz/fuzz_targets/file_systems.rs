#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvmb::fuzzing::file_systems(bytes));
