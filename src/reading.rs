//! One datum that the server itself publishes: telemetry of its host and of its own work. Pure.

use crate::wire::proto::{Vector, sample::Value};

/// A value for a channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Name of the channel, valid by the grammar of `pattern`.
    pub channel: String,
    /// The value, as it travels.
    pub value: Value,
}

/// A whole number; what is over the range of the wire's integers is their largest.
#[must_use]
pub fn integer(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Several numbers that belong together.
#[must_use]
pub const fn vector(values: Vec<f64>) -> Value {
    Value::Vector(Vector { values })
}
