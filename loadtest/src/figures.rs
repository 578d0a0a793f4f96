//! The figures of a result that are worth a comparison, each with its unit, its direction and one value for each repetition.
//! The one list that tables, reports, `compare` and `peers` share. Pure.
