//! See `fanfare::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanfare::fuzzing::query(bytes));
