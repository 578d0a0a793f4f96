//! What the fuzz targets check, one module for a target: `check(data)` panics if `data` shows a fault.
//!
//! Plain functions of bytes, so that `tests/fuzz_smoke.rs` runs the same checks on the stable toolchain, as seeded property
//! tests and over the seed corpora.

pub mod control;
pub mod offered;
pub mod pattern;
pub mod proxy;
pub mod publish;
pub mod reader;
pub mod relayed;
pub mod token;
pub mod told;

/// A check: panics if the bytes show a fault.
pub type Check = fn(&[u8]);

/// Every target by name.
pub const ALL: [(&str, Check); 9] = [
    ("reader", reader::check),
    ("control", control::check),
    ("pattern", pattern::check),
    ("publish", publish::check),
    ("token", token::check),
    ("offered", offered::check),
    ("proxy", proxy::check),
    ("relayed", relayed::check),
    ("told", told::check),
];
