//! What results are made of, to and from their written form: histograms as base64, percentiles, this build. Pure but for the
//! build's stamps.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};

use crate::measure::histogram;
use crate::result::{BuildInfo, EncodedHistogram, Percentiles};

impl EncodedHistogram {
    /// Of the histogram.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let mut bytes = Vec::new();
        // The only possible failure is a count over 2^63.
        match V2DeflateSerializer::new().serialize(histogram, &mut bytes) {
            Ok(_) => Self(BASE64.encode(bytes)),
            Err(_) => Self::default(),
        }
    }

    /// The histogram, in the range of this program's own, so that it can be added to others.
    pub(crate) fn decode(&self) -> Result<Histogram<u64>, String> {
        let mut all = histogram();
        if self.0.is_empty() {
            return Ok(all);
        }
        let bytes = BASE64.decode(&self.0).map_err(|error| format!("a histogram is not base64: {error}"))?;
        let read: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| format!("a histogram does not decode: {error}"))?;
        all.add(read).map_err(|error| format!("a histogram has another range: {error}"))?;
        Ok(all)
    }
}

impl Percentiles {
    /// Of the histogram; all 0 if it is empty.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }

    /// All figures less `offset_ns`, at least 0.
    pub(crate) fn earlier_by(self, offset_ns: i64) -> Self {
        let less = |figure: u64| figure.saturating_add_signed(offset_ns.saturating_neg());
        Self {
            count: self.count,
            mean: (self.mean - offset_ns as f64).max(0.0),
            p50: less(self.p50),
            p90: less(self.p90),
            p99: less(self.p99),
            p999: less(self.p999),
            max: less(self.max),
        }
    }
}

impl BuildInfo {
    /// Of this program.
    pub(crate) fn own() -> Self {
        let stamp = |text: Option<&'static str>| text.filter(|it| !it.is_empty()).map(str::to_owned);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: stamp(option_env!("LOADTEST_REVISION")),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            rustc: stamp(option_env!("LOADTEST_RUSTC")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_read_back() {
        let mut some = histogram();
        some.record_n(105_000, 3).unwrap();
        some.record(7_000_000).unwrap();
        let encoded = EncodedHistogram::of(&some);
        assert_eq!(encoded.decode().unwrap(), some);
        assert_eq!(Percentiles::of(&some), Percentiles::of(&encoded.decode().unwrap()));
        let none = EncodedHistogram::of(&histogram());
        assert_eq!((none.0.as_str(), none.decode().unwrap().len()), ("", 0));
        for bad in ["%", "AAAA", &encoded.0[..encoded.0.len() / 2]] {
            assert!(EncodedHistogram(bad.to_owned()).decode().is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_shift() {
        let some = Percentiles { count: 1, mean: 10.0, p50: 10, p90: 20, p99: 30, p999: 40, max: 50 };
        let earlier = some.earlier_by(15);
        assert_eq!((earlier.mean, earlier.p50, earlier.p90, earlier.max), (0.0, 0, 5, 35));
        assert_eq!(some.earlier_by(-5).p50, 15);
    }

    #[test]
    fn the_build_is_stamped() {
        assert!(BuildInfo::own().rustc.is_some_and(|it| it.starts_with("rustc ")));
    }
}
