//! Which seeds the models run.

use std::ops::Range;

/// The seeds to run: as many as `TIDEWIRE_MODEL_CASES` says, else `cases`, from `TIDEWIRE_MODEL_SEED` on, else from 1.
pub(crate) fn seeds(cases: u64) -> Range<u64> {
    let setting = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
    };
    let first = setting("TIDEWIRE_MODEL_SEED", 1);
    first..first + setting("TIDEWIRE_MODEL_CASES", cases)
}
