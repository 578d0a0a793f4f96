//! Figures and foreign text in the form that people read: a unit, three digits, thousands apart, nothing invisible. Pure; knows
//! no scenario and no page.

use std::fmt::Write as _;

use serde::Serialize;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// A time.
    Nanoseconds,
    /// A rate.
    PerSecond,
    /// CPUs kept busy.
    Cpus,
    /// CPU seconds for a million deliveries.
    CpuSecondsPerMillion,
    /// Memory.
    Bytes,
    /// Samples, connections.
    Count,
    /// One figure over another.
    Ratio,
}

impl Unit {
    /// The value with its unit.
    pub(crate) fn show(self, value: f64) -> String {
        if !value.is_finite() {
            return "-".to_owned();
        }
        match self {
            Self::Nanoseconds => time(value),
            Self::PerSecond => rate(value),
            Self::Cpus => format!("{:.1} %", value * 100.0),
            Self::CpuSecondsPerMillion => format!("{} s", digits(value)),
            Self::Bytes => bytes(value),
            Self::Count => count(value),
            Self::Ratio => format!("{value:.2}"),
        }
    }
}

/// Nanoseconds with three digits and the unit that suits them.
pub(crate) fn time(nanos: f64) -> String {
    // Scaled by what is shown: 999.9996 us is 1.00 ms and never 1000 us.
    const UNITS: [(f64, &str); 4] = [(1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")];
    let (scale, unit) =
        UNITS.into_iter().find(|(scale, _)| (nanos / scale).abs() < 999.5).unwrap_or((1e9, "s"));
    match nanos {
        0.0 => "0".to_owned(),
        _ => format!("{} {unit}", digits(nanos / scale)),
    }
}

/// Something per second, as many digits as mean something.
pub(crate) fn rate(per_s: f64) -> String {
    match per_s.abs() {
        1e9.. => format!("{} G", digits(per_s / 1e9)),
        1e6.. => format!("{} M", digits(per_s / 1e6)),
        _ => count(per_s),
    }
}

/// A count; with a fraction where it is small and has one.
pub(crate) fn count(value: f64) -> String {
    if value.abs() < 100.0 && value.fract() != 0.0 { digits(value) } else { grouped(value) }
}

/// Bytes in binary units.
pub(crate) fn bytes(value: f64) -> String {
    match value.abs() {
        0.0..1024.0 => format!("{value:.0} B"),
        1024.0..1_048_576.0 => format!("{} KiB", digits(value / 1024.0)),
        1_048_576.0..1_073_741_824.0 => format!("{} MiB", digits(value / 1_048_576.0)),
        _ => format!("{} GiB", digits(value / 1_073_741_824.0)),
    }
}

/// Three significant digits, without an exponent.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        99.95.. => format!("{value:.0}"),
        9.995.. => format!("{value:.1}"),
        0.995.. | 0.0 => format!("{value:.2}"),
        0.0995.. => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// A change in percent, with its sign.
pub(crate) fn change(share: f64) -> String {
    if share.is_finite() { format!("{:+.1} %", share * 100.0) } else { "from 0".to_owned() }
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let plain = format!("{value:.0}");
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain.as_str()), |rest| ("-", rest));
    let mut text = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds since the Unix epoch as a date and time, UTC.
pub(crate) fn date(epoch_s: u64) -> String {
    let (days, second) = (epoch_s / 86_400, epoch_s % 86_400);
    // Years that begin in March, so that the leap day is the last; 719,468 days lie between 0000-03-01 and the epoch.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3_600, second / 60 % 60)
}

/// Foreign text without what a terminal obeys or an eye misses: control characters and marks of direction are spelled out.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let hides = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
        if c.is_control() || hides {
            // Writing into a string cannot fail.
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        let cases = [
            (Unit::Nanoseconds, 0.0, "0"),
            (Unit::Nanoseconds, 105_400.0, "105 µs"),
            (Unit::Nanoseconds, 999_600.0, "1.00 ms"),
            (Unit::Nanoseconds, 10_270_000.0, "10.3 ms"),
            (Unit::Nanoseconds, 16_800_000_000.0, "16.8 s"),
            (Unit::PerSecond, 10_007.3, "10,007"),
            (Unit::PerSecond, 40_400_000.0, "40.4 M"),
            (Unit::PerSecond, 12.5, "12.5"),
            (Unit::Cpus, 0.187, "18.7 %"),
            (Unit::CpuSecondsPerMillion, 0.0163, "0.0163 s"),
            (Unit::CpuSecondsPerMillion, 3.7, "3.70 s"),
            (Unit::Bytes, 6_226.0, "6.08 KiB"),
            (Unit::Bytes, 18_979_226.0, "18.1 MiB"),
            (Unit::Count, 1_234_567.0, "1,234,567"),
            (Unit::Count, -1_000.0, "-1,000"),
            (Unit::Ratio, 1.036, "1.04"),
            (Unit::Ratio, f64::NAN, "-"),
        ];
        for (unit, value, expected) in cases {
            assert_eq!(unit.show(value), expected, "{unit:?} {value}");
        }
        assert_eq!((change(0.0512).as_str(), change(f64::INFINITY).as_str()), ("+5.1 %", "from 0"));
    }

    #[test]
    fn dates() {
        let cases = [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_795_600_739, "2026-11-25 09:58 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
        ];
        for (epoch_s, expected) in cases {
            assert_eq!(date(epoch_s), expected);
        }
    }

    proptest! {
        #[test]
        fn nothing_invisible_is_left(text in any::<String>()) {
            let shown = visible(&text);
            prop_assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{shown:?}");
        }
    }
}
