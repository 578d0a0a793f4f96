//! Fuzzes what servers tell each other; the checks are in `src/told.rs`, and never here.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidewire_fuzz::told::check(data));
