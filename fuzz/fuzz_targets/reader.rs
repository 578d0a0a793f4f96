//! Fuzzes the frame reader; the checks are in `src/reader.rs`, and never here.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidewire_fuzz::reader::check(data));
