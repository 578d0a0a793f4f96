//! Fuzzes the places of a token in a request; the checks are in `src/offered.rs`, and never here.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidewire_fuzz::offered::check(data));
