//! Whether two small sets of values differ by more than chance. Pure.
//!
//! From four values on each side an exact permutation test of rank sums decides (Wilcoxon, Mann and Whitney, with mid-ranks for
//! ties). With two or three it cannot become certain, and every value of one side must lie beyond every value of the other.

/// Values on each side from which the test can be trusted: with four, the most extreme order has p = 0.029.
const TESTED_FROM: usize = 4;
/// Chance up to which a difference counts.
const P_MAX: f64 = 0.05;
/// Values of both sides together for which all orders are counted; beyond, ranges decide.
const EXACT_MAX: usize = 60;

/// What chance says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Noise {
    /// How likely an order at least as extreme is if both sides are alike.
    pub p: f64,
    /// Whether the sides differ by more than noise.
    pub is_apart: bool,
}

/// Compares two sets of values.
pub(crate) fn noise(a: &[f64], b: &[f64]) -> Noise {
    let p = if a.len() + b.len() <= EXACT_MAX { chance(a, b) } else { f64::NAN };
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let ranges_apart = most(a) < least(b) || most(b) < least(a);
    let is_tested = a.len().min(b.len()) >= TESTED_FROM && p.is_finite();
    Noise { p, is_apart: if is_tested { p <= P_MAX } else { ranges_apart } }
}

/// The share of all ways to deal the values to the two sides whose rank sum is at least as far from the middle.
fn chance(a: &[f64], b: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|it| (*it, true)).chain(b.iter().map(|it| (*it, false))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    // Twice the mid-rank, so that it is a whole number.
    let mut ranks = Vec::with_capacity(all.len());
    for tied in all.chunk_by(|x, y| x.0 == y.0) {
        let before = ranks.len();
        ranks.extend(std::iter::repeat_n(2 * before + tied.len() + 1, tied.len()));
    }
    let total: usize = ranks.iter().sum();
    let seen: usize = ranks.iter().zip(&all).filter(|(_, it)| it.1).map(|(rank, _)| rank).sum();
    // ways[n][s]: how many choices of n values have the rank sum s.
    let mut ways = vec![vec![0.0f64; total + 1]; a.len() + 1];
    ways[0][0] = 1.0;
    for &rank in &ranks {
        for count in (1..=a.len()).rev() {
            for sum in (rank..=total).rev() {
                ways[count][sum] += ways[count - 1][sum - rank];
            }
        }
    }
    // Twice the distance from the middle, in whole numbers: middle = total * |a| / (|a| + |b|).
    let (n, all) = (a.len(), a.len() + b.len());
    let far = |sum: usize| (sum * all).abs_diff(total * n);
    let extreme: f64 =
        ways[n].iter().zip(0..).filter(|(_, sum)| far(*sum) >= far(seen)).map(|(it, _)| it).sum();
    extreme / ways[n].iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chances_are_those_of_the_tables() {
        // (a, b, p, apart)
        let cases: [(&[f64], &[f64], f64, bool); 8] = [
            (&[1.0], &[2.0], 1.0, true),
            (&[1.0, 2.0], &[3.0, 4.0], 2.0 / 6.0, true),
            (&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0], 0.1, true),
            (&[1.0, 2.0, 4.0], &[3.0, 5.0, 6.0], 0.2, false),
            (&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], 2.0 / 70.0, true),
            (&[1.0, 2.0, 3.0, 5.0], &[4.0, 6.0, 7.0, 8.0], 4.0 / 70.0, false),
            // One outlier among five does not hide a difference: U = 2, and 8 of 252 orders are as extreme.
            (&[1.0, 2.0, 3.0, 4.0, 7.5], &[5.0, 6.0, 8.0, 9.0, 10.0], 8.0 / 252.0, true),
            (&[3.0, 3.0, 3.0, 3.0], &[3.0, 3.0, 3.0, 3.0], 1.0, false),
        ];
        for (a, b, p, is_apart) in cases {
            let got = noise(a, b);
            assert!((got.p - p).abs() < 1e-9, "{a:?} {b:?}: {got:?}");
            assert_eq!(got.is_apart, is_apart, "{a:?} {b:?}: {got:?}");
        }
    }

    proptest! {
        /// The order of the sides, and of the values in them, means nothing; and it is a chance.
        #[test]
        fn chance_is_symmetric(mut a in prop::collection::vec(0u8..9, 1..8), b in prop::collection::vec(0u8..9, 1..8)) {
            let floats = |values: &[u8]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
            let there = noise(&floats(&a), &floats(&b));
            a.reverse();
            let back = noise(&floats(&b), &floats(&a));
            prop_assert!((there.p - back.p).abs() < 1e-9 && there.is_apart == back.is_apart);
            prop_assert!(there.p > 0.0 && there.p <= 1.0 + 1e-9, "{there:?}");
        }
    }
}
