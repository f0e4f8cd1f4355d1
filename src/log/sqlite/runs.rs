//! Runs: rising positions in few bytes. The index keeps one row for many events that share a word, a stream or a correlation.

use crate::event::Position;

/// The longest run, so that reading one position of it stays cheap.
pub(super) const LONGEST: usize = 512;

/// The steps from each position to the next, as LEB128; the first position is kept beside them.
pub(super) fn encode(positions: &[Position]) -> Vec<u8> {
    let mut out = Vec::with_capacity(positions.len() * 2);
    for pair in positions.windows(2) {
        let mut step = pair[1] - pair[0];
        while step >= 0x80 {
            out.push(step as u8 | 0x80);
            step >>= 7;
        }
        out.push(step as u8);
    }
    out
}

/// The positions of a run, or `None` where the bytes are none that [`encode`] makes.
pub(super) fn decode(first: i64, others: &[u8]) -> Option<Vec<Position>> {
    let mut at = Position::try_from(first).ok()?;
    let mut positions = vec![at];
    let (mut step, mut shift) = (0_u64, 0);
    for byte in others {
        step |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 != 0 {
            shift += 7;
            continue;
        }
        if step == 0 {
            return None;
        }
        at = at.checked_add(step)?;
        positions.push(at);
        (step, shift) = (0, 0);
    }
    (shift == 0 && positions.len() <= LONGEST).then_some(positions)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_run_is_read_back_as_it_was(steps in proptest::collection::vec(1_u64..1 << 40, 0..40), first in 1_u64..1 << 40) {
            let mut positions = vec![first];
            for step in steps {
                positions.push(positions[positions.len() - 1] + step);
            }
            let others = encode(&positions);
            prop_assert_eq!(decode(first as i64, &others), Some(positions));
        }

        #[test]
        fn bytes_that_are_no_run_are_refused_or_rise(first in any::<i64>(), others in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(positions) = decode(first, &others) {
                prop_assert!(positions.windows(2).all(|pair| pair[0] < pair[1]));
            }
        }
    }
}
