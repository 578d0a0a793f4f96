//! Fuzzes what proxies say; the checks are in `src/proxy.rs`, and never here.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidewire_fuzz::proxy::check(data));
