//! Fuzzes the control decoder; the checks are in `src/control.rs`, and never here.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidewire_fuzz::control::check(data));
