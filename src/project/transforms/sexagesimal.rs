//! Degrees as hours or degrees, minutes and seconds, in the spelling CASA reads: `13h18m24.0s`, `-21.3.0.0`.
//!
//! Seconds are rounded to four decimals (0.0015″ at most in right ascension) before anything is carried, so that 60 never
//! appears; the sign is taken from the whole angle, so that it survives between -1° and 0°.

/// Decimals of a second that are kept.
const UNITS_PER_SECOND: u64 = 10_000;

/// A right ascension as `13h18m24.0s`; any number of turns is brought to one.
pub fn hms(degrees: f64) -> Option<String> {
    let (hours, minutes, seconds) = split(degrees.rem_euclid(360.0) / 15.0)?;
    Some(format!("{}h{minutes}m{seconds}s", hours % 24))
}

/// A declination as `-21.3.0.0`.
pub fn dms(degrees: f64) -> Option<String> {
    let (whole, minutes, seconds) = split(degrees.abs())?;
    let zero = whole == 0 && minutes == 0 && seconds == "0.0";
    let sign = if degrees < 0.0 && !zero { "-" } else { "" };
    Some(format!("{sign}{whole}.{minutes}.{seconds}"))
}

fn split(value: f64) -> Option<(u64, u64, String)> {
    if !value.is_finite() || value > 1e9 {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "finite, not negative and below 1e17"
    )]
    let units = (value * 3600.0 * UNITS_PER_SECOND as f64).round() as u64;
    let (seconds, fraction) = (units / UNITS_PER_SECOND, units % UNITS_PER_SECOND);
    let mut fraction = format!("{fraction:04}");
    while fraction.len() > 1 && fraction.ends_with('0') {
        fraction.pop();
    }
    Some((seconds / 3600, seconds / 60 % 60, format!("{}.{fraction}", seconds % 60)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_spelled_as_casa_reads_them() {
        for (degrees, expected) in [
            (199.6, "13h18m24.0s"),
            (196.3, "13h5m12.0s"),
            (0.0, "0h0m0.0s"),
            (359.999_999_999, "0h0m0.0s"),
            (-15.0, "23h0m0.0s"),
            (9.82, "0h39m16.8s"),
            (187.705_930_8, "12h30m49.4234s"),
        ] {
            assert_eq!(hms(degrees).unwrap(), expected, "{degrees}");
        }
        for (degrees, expected) in [
            (-21.05, "-21.3.0.0"),
            (-20.6, "-20.36.0.0"),
            (12.391_123, "12.23.28.0428"),
            (89.999_999_999, "90.0.0.0"),
        ] {
            assert_eq!(dms(degrees).unwrap(), expected, "{degrees}");
        }
        assert_eq!(dms(f64::NAN), None);
        assert_eq!(hms(f64::INFINITY), None);
    }

    #[test]
    fn the_sign_survives_between_minus_one_and_zero_degrees() {
        assert_eq!(dms(-0.45).unwrap(), "-0.27.0.0");
        assert_eq!(dms(-0.000_1).unwrap(), "-0.0.0.36");
        assert_eq!(dms(0.45).unwrap(), "0.27.0.0");
        assert_eq!(dms(-0.0).unwrap(), "0.0.0.0");
    }
}
