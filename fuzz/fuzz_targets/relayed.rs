//! Fuzzes frames of other servers; the checks are in `src/relayed.rs`, and never here.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidewire_fuzz::relayed::check(data));
