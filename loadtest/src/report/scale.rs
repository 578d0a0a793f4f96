//! Axes of a plot as arithmetic: where a value lies, and which ticks a person wants. Pure; draws nothing.

/// How an axis maps values to places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// Equal steps.
    Linear {
        /// At the beginning.
        from: f64,
        /// At the end.
        to: f64,
    },
    /// Equal factors; both ends above 0.
    Log {
        /// At the beginning.
        from: f64,
        /// At the end.
        to: f64,
    },
}

/// A labelled place on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    /// Its value.
    pub at: f64,
    /// Nothing for a line without words.
    pub label: String,
}

/// Most decades of a logarithmic axis for which the twos and fives get words, too.
const DECADES_WITH_STEPS: f64 = 2.5;

impl Scale {
    /// From 0 to a round number at or above the largest value.
    pub(crate) fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let largest = values.into_iter().filter(|it| it.is_finite()).fold(0.0, f64::max);
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let step = step(largest / 4.0);
        Self::Linear { from: 0.0, to: (largest / step).ceil() * step }
    }

    /// Around the positive values, to the next 1, 2 or 5; at least a factor of 10 wide, so that noise does not look like a cliff.
    pub(crate) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let positive = values.into_iter().filter(|it| it.is_finite() && *it > 0.0);
        let (least, most) = positive
            .fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), it| (least.min(it), most.max(it)));
        if most <= 0.0 {
            return Self::Log { from: 1.0, to: 10.0 };
        }
        let (mut from, mut to) = (round_down(least), round_up(most));
        while to / from < 9.99 {
            // The empty room goes to the side that is nearer to its end.
            if most / to > from / least { to = round_up(to * 1.01) } else { from = round_down(from * 0.99) }
        }
        Self::Log { from, to }
    }

    /// Where a value lies, 0 to 1; what is outside lies at the nearer end.
    pub(crate) fn place(self, value: f64) -> f64 {
        let place = match self {
            Self::Linear { from, to } => (value - from) / (to - from),
            Self::Log { from, to } => (value.max(from) / from).ln() / (to / from).ln(),
        };
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Ticks in order, with words from `label` where there is room for them.
    pub(crate) fn ticks(self, label: impl Fn(f64) -> String) -> Vec<Tick> {
        match self {
            Self::Linear { from, to } => {
                let step = step((to - from) / 4.0);
                let values = (0..=12).map(|index| from + f64::from(index) * step);
                values
                    .take_while(|at| *at <= to + step * 1e-6)
                    .map(|at| Tick { at, label: label(at) })
                    .collect()
            }
            Self::Log { from, to } => {
                let all_have_words = (to / from).log10() < DECADES_WITH_STEPS;
                let mut ticks = Vec::new();
                let mut decade = 10f64.powf(from.log10().floor());
                while decade <= to * 1.001 {
                    for factor in 1..10 {
                        let at = decade * f64::from(factor);
                        let has_words = factor == 1 || all_have_words && matches!(factor, 2 | 5);
                        if (from * 0.999..=to * 1.001).contains(&at) {
                            ticks.push(Tick { at, label: if has_words { label(at) } else { String::new() } });
                        }
                    }
                    decade *= 10.0;
                }
                ticks
            }
        }
    }
}

/// The round number (1, 2, 2.5 or 5 times a power of ten) at or above this.
fn step(least: f64) -> f64 {
    let decade = 10f64.powf(least.log10().floor());
    let found = [1.0, 2.0, 2.5, 5.0].into_iter().find(|factor| factor * decade >= least * (1.0 - 1e-9));
    found.map_or(10.0 * decade, |factor| factor * decade)
}

/// The 1, 2 or 5 times a power of ten at or below this.
fn round_down(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    let factor = [5.0, 2.0].into_iter().find(|factor| factor * decade <= value * (1.0 + 1e-9));
    factor.map_or(decade, |factor| factor * decade)
}

/// The 1, 2 or 5 times a power of ten at or above this.
fn round_up(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * decade >= value * (1.0 - 1e-9));
    factor.map_or(10.0 * decade, |factor| factor * decade)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(scale: Scale) -> Vec<String> {
        let ticks = scale.ticks(|at| format!("{at:.0}"));
        ticks.into_iter().map(|it| it.label).filter(|it| !it.is_empty()).collect()
    }

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!(Scale::linear([930.0, 12.0]), Scale::Linear { from: 0.0, to: 1_000.0 });
        assert_eq!(words(Scale::linear([930.0])), ["0", "250", "500", "750", "1000"]);
        assert_eq!(Scale::linear([]), Scale::Linear { from: 0.0, to: 1.0 });
        assert_eq!(words(Scale::log([120.0, 900.0])), ["100", "200", "500", "1000"]);
        assert_eq!(words(Scale::log([3.0, 900_000.0])), ["10", "100", "1000", "10000", "100000", "1000000"]);
        assert_eq!(Scale::log([0.0, -3.0, f64::NAN]), Scale::Log { from: 1.0, to: 10.0 });
    }

    #[test]
    fn places() {
        let log = Scale::Log { from: 1.0, to: 100.0 };
        assert!((log.place(10.0) - 0.5).abs() < 1e-9);
        assert_eq!((log.place(0.0), log.place(1e9)), (0.0, 1.0));
        assert_eq!(Scale::Linear { from: 0.0, to: 0.0 }.place(f64::NAN), 0.0);
    }

    proptest! {
        /// Every value lies within its axis, and an axis has words at two places at least and never too many.
        #[test]
        fn every_value_has_a_place(values in prop::collection::vec(1e-6f64..1e15, 1..20)) {
            for scale in [Scale::linear(values.iter().copied()), Scale::log(values.iter().copied())] {
                let (Scale::Linear { from, to } | Scale::Log { from, to }) = scale;
                for value in &values {
                    prop_assert!((from * 0.999..=to * 1.001).contains(value), "{value} in {scale:?}");
                    prop_assert!((0.0..=1.0).contains(&scale.place(*value)));
                }
                let words = words(scale);
                prop_assert!((2..=24).contains(&words.len()), "{scale:?}: {words:?}");
            }
        }
    }
}
