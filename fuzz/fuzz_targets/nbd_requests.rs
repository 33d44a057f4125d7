#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvmb::fuzzing::nbd_requests(bytes));
