//! The share of one process where several run a scenario together. Pure.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::{Kind, Load, Scenario};

/// Which process this is, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Share {
    /// From 0.
    pub index: usize,
    /// At least 1.
    pub of: usize,
}

impl Share {
    /// The only one.
    pub(crate) const WHOLE: Self = Self { index: 0, of: 1 };

    /// What of `count` things is this one's: from and to.
    pub(crate) fn range(self, count: usize) -> std::ops::Range<usize> {
        (count * self.index / self.of)..(count * (self.index + 1) / self.of)
    }
}

impl Scenario {
    /// What a process does of it.
    pub(crate) fn share(&self, share: Share) -> Self {
        let mut part = self.clone();
        part.publishers = share.range(self.publishers).len();
        if let Kind::Accept { in_flight } = &mut part.kind {
            *in_flight = share.range(*in_flight).len().max(1);
        }
        for group in &mut part.groups {
            group.count = share.range(group.count).len();
        }
        let of_rate = |per_s: NonZeroU64| {
            let mine = u128::from(per_s.get()) * part.publishers as u128 / self.publishers.max(1) as u128;
            NonZeroU64::new(u64::try_from(mine).unwrap_or(u64::MAX))
        };
        part.load = match self.load {
            Load::Scheduled { per_s } => {
                of_rate(per_s).map_or(Load::Silent, |per_s| Load::Scheduled { per_s })
            }
            Load::Closed { per_s } => of_rate(per_s).map_or(Load::Silent, |per_s| Load::Closed { per_s }),
            load if part.publishers == 0 => {
                let _ = load;
                Load::Silent
            }
            load => load,
        };
        // The server is stopped once, and visitors come once, not once for each process.
        if share.index > 0 {
            part.stop_server_ms = None;
            part.churn_per_s = None;
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::named;

    #[test]
    fn shares_add_up() {
        for name in ["steady", "wide", "fanin", "saturate", "slow_reader", "churn", "idle"] {
            let whole = named(name).unwrap();
            for of in 1..=4 {
                let parts: Vec<Scenario> = (0..of).map(|index| whole.share(Share { index, of })).collect();
                let sum = |count: &dyn Fn(&Scenario) -> usize| parts.iter().map(count).sum::<usize>();
                assert_eq!(sum(&|it| it.publishers), whole.publishers, "{name}");
                assert_eq!(sum(&Scenario::subscribers), whole.subscribers(), "{name}");
                assert_eq!(
                    sum(&|it| usize::from(it.churn_per_s.is_some())),
                    usize::from(whole.churn_per_s.is_some())
                );
                let asked = parts.iter().map(|it| it.messages_per_s(0).unwrap_or(0.0)).sum::<f64>();
                assert!(
                    (asked - whole.messages_per_s(0).unwrap_or(0.0)).abs() <= of as f64,
                    "{name}: {asked}"
                );
            }
        }
        assert_eq!(named("steady").unwrap().share(Share::WHOLE), named("steady").unwrap());
    }
}
