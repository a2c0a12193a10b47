//! Turns by weight.
//!
//! Round robin is a walk through all units of weight with a stride prime to their number, near its golden section: over
//! a full round everyone is met exactly as often as their weight says, and their turns are spread evenly instead of
//! coming in runs. The place in the walk is one number that all workers may share.

use super::{ArchivedWheel, Wheel};

impl Wheel {
    /// A round of these weights; who weighs nothing has no turn.
    pub fn new(weights: impl IntoIterator<Item = u64>) -> Wheel {
        let mut unit = 0;
        let mut total = 0u64;
        let mut ends: Vec<u64> = weights
            .into_iter()
            .map(|weight| {
                unit = gcd(unit, weight);
                total = total.saturating_add(weight);
                total
            })
            .collect();
        let unit = unit.max(1);
        let units = total / unit;
        if units == ends.len() as u64 && ends.first().is_none_or(|first| *first == unit) && total > 0 {
            // As many units as there are weights; not all equal if one has none.
            if ends.windows(2).all(|w| w[1] - w[0] == unit) {
                ends = Vec::new();
            }
        }
        ends.iter_mut().for_each(|end| *end /= unit);
        Wheel { units, step: step(units), ends }
    }

    /// Whose a unit is; `unit` is below `units`.
    pub fn at(&self, unit: u64) -> usize {
        match self.ends.is_empty() {
            true => unit as usize,
            false => self.ends.partition_point(|end| *end <= unit),
        }
    }

    /// The unit of the `n`th turn.
    pub fn turn(&self, n: u64) -> u64 {
        turn(n, self.units, self.step)
    }
}

impl ArchivedWheel {
    /// As [`Wheel::at`].
    pub fn at(&self, unit: u64) -> usize {
        match self.ends.is_empty() {
            true => unit as usize,
            false => self.ends.partition_point(|end| end.to_native() <= unit),
        }
    }

    /// As [`Wheel::turn`].
    pub fn turn(&self, n: u64) -> u64 {
        turn(n, self.units.to_native(), self.step.to_native())
    }
}

fn turn(n: u64, units: u64, step: u64) -> u64 {
    if units <= 1 {
        return 0;
    }
    let n = n % units;
    match n.checked_mul(step) {
        Some(place) => place % units,
        None => (u128::from(n) * u128::from(step) % u128::from(units)) as u64,
    }
}

fn step(units: u64) -> u64 {
    // 2^32 divided by the golden ratio.
    let mut step = ((u128::from(units) * 2_654_435_769) >> 32) as u64;
    step = step.max(1);
    while gcd(units, step) > 1 {
        step += 1;
    }
    step
}

pub(super) fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_round_has_exactly_the_weights(weights in proptest::collection::vec(0u64..20, 0..12), times in 1u64..9) {
            let wheel = Wheel::new(weights.iter().map(|w| w * times));
            let mut met = vec![0; weights.len()];
            (0..wheel.units).for_each(|n| met[wheel.at(wheel.turn(n))] += 1);
            let unit = weights.iter().copied().fold(0, gcd).max(1);
            let want: Vec<u64> = weights.iter().map(|w| w / unit).collect();
            prop_assert_eq!(met, want);
        }
    }

    #[test]
    fn equal_weights_need_no_list() {
        assert_eq!(Wheel::new([7, 7, 7]), Wheel { units: 3, step: 1, ends: vec![] });
        assert_eq!(Wheel::new([2, 0, 4]).ends, [1, 1, 3]);
        assert_eq!(Wheel::new([]).units, 0);
        assert_eq!(Wheel::new([0, 0]).units, 0);
    }

    #[test]
    fn long_rounds_do_not_overflow() {
        let wheel = Wheel::new([u64::from(u32::MAX), u64::from(u32::MAX) - 1, u64::from(u32::MAX) * 1000]);
        assert!((0..1000).all(|n| wheel.turn(u64::MAX - n) < wheel.units));
    }
}
