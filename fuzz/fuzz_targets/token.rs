//! Fuzzes tokens; the checks are in `src/token.rs`, and never here.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidewire_fuzz::token::check(data));
