//! Fuzzes the pattern matcher; the checks are in `src/pattern.rs`, and never here.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidewire_fuzz::pattern::check(data));
