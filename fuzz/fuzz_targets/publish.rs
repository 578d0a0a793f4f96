//! Fuzzes the data decoders; the checks are in `src/publish.rs`, and never here.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidewire_fuzz::publish::check(data));
