//! What squeue and sacct have in common: lines of fields, and how they write times, durations, sizes and absence.
//!
//! Invariant: a line that cannot be read is an error that names it; nothing is dropped silently, and no default stands in for
//! a field that is odd.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// Between fields: ASCII's unit separator, which nobody types into a job's name.
pub const SEPARATOR: char = '\u{1f}';

/// What a remote command printed, and how it ended.
#[derive(Debug, Clone, Copy)]
pub struct Printed<'a> {
    pub exit: u32,
    pub stdout: &'a [u8],
    pub stderr: &'a [u8],
}

/// Why a command told nothing. None of these says that a job is gone; all may be asked again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PollError {
    #[error("{command} ended with {exit}: {said}")]
    Failed { command: &'static str, exit: u32, said: String },
    #[error("what {command} printed was cut off after {line:?}")]
    CutOff { command: &'static str, line: String },
    #[error("{command} printed {line:?}, which cannot be read: {why}")]
    Line { command: &'static str, line: String, why: String },
}

/// Splits what was printed into rows of `width` fields and reads each; the last field may contain the separator.
pub(super) fn rows<T>(
    command: &'static str,
    printed: Printed,
    width: usize,
    mut read: impl FnMut(&[&str]) -> Result<T, String>,
) -> Result<Vec<T>, PollError> {
    if printed.exit != 0 {
        return Err(PollError::Failed { command, exit: printed.exit, said: said(printed.stderr) });
    }
    let text = std::str::from_utf8(printed.stdout).map_err(|error| PollError::Line {
        command,
        line: excerpt(&String::from_utf8_lossy(printed.stdout)),
        why: error.to_string(),
    })?;
    if !text.is_empty() && !text.ends_with('\n') {
        let line = excerpt(text.lines().last().unwrap_or_default());
        return Err(PollError::CutOff { command, line });
    }
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.splitn(width, SEPARATOR).map(str::trim).collect();
            let read = match fields.len() == width {
                true => read(&fields),
                false => Err(format!("{width} fields are due, not {}", fields.len())),
            };
            read.map_err(|why| PollError::Line { command, line: excerpt(line), why })
        })
        .collect()
}

/// The end of what a command said on standard error, on one line.
pub(super) fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") };
    crate::backends::evidence::shorten(&text, 1_000)
}

fn excerpt(line: &str) -> String {
    crate::backends::evidence::shorten(&line.replace(SEPARATOR, "|"), 300)
}

/// The words that stand where there is nothing to say.
fn is_absent(text: &str) -> bool {
    matches!(text, "" | "None" | "N/A" | "Unknown" | "None assigned" | "(null)" | "NOT_SET" | "INVALID")
}

pub(super) fn text(field: &str) -> Option<String> {
    (!is_absent(field)).then(|| field.to_owned())
}

pub(super) fn number<T: std::str::FromStr>(field: &str) -> Result<Option<T>, String> {
    match is_absent(field) {
        true => Ok(None),
        false => field.parse().map(Some).map_err(|_| format!("{field:?} is no number")),
    }
}

/// Seconds since 1970, because `SLURM_TIME_FORMAT` asks for them: no zone to guess.
pub(super) fn time(field: &str) -> Result<Option<DateTime<Utc>>, String> {
    let Some(seconds) =
        number::<i64>(field).map_err(|_| format!("{field:?} is no time in seconds since 1970"))?
    else {
        return Ok(None);
    };
    match DateTime::from_timestamp(seconds, 0) {
        Some(time) if seconds > 0 => Ok(Some(time)),
        _ => Err(format!("{field:?} is no time in seconds since 1970")),
    }
}

/// `[days-]hours:minutes:seconds`, `minutes:seconds`, and behind a point parts of a second.
pub(super) fn duration(field: &str) -> Result<Option<Duration>, String> {
    if is_absent(field) {
        return Ok(None);
    }
    let odd = || format!("{field:?} is no duration");
    // Of 32 bits, so that no sum below runs over.
    let digits = |part: &str| match !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
        true => part.parse::<u32>().map(u64::from).map_err(|_| odd()),
        false => Err(odd()),
    };
    let (days, rest) = match field.split_once('-') {
        Some((days, rest)) => (digits(days)?, rest),
        None => (0, field),
    };
    let (clock, millis) = match rest.split_once('.') {
        Some((clock, part)) => {
            digits(part)?;
            let millis: String = part.chars().chain("00".chars()).take(3).collect();
            (clock, digits(&millis)?)
        }
        None => (rest, 0),
    };
    let parts = clock.split(':').map(digits).collect::<Result<Vec<_>, _>>()?;
    let seconds = match parts[..] {
        [hours, minutes, seconds] => hours * 3600 + minutes * 60 + seconds,
        [minutes, seconds] => minutes * 60 + seconds,
        _ => return Err(odd()),
    };
    Ok(Some(Duration::from_secs(days * 86_400 + seconds) + Duration::from_millis(millis)))
}

/// A wall time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Of(Duration),
    Unlimited,
}

/// A limit as squeue writes it; that of the partition is told as absent.
pub(super) fn limit(field: &str) -> Result<Option<Limit>, String> {
    match field {
        "UNLIMITED" | "INFINITE" => Ok(Some(Limit::Unlimited)),
        "Partition_Limit" => Ok(None),
        _ => Ok(duration(field)?.map(Limit::Of)),
    }
}

/// A size in bytes: a number with or without one of Slurm's letters, each 1024 of the one before.
pub(super) fn bytes(field: &str) -> Result<Option<u64>, String> {
    if is_absent(field) {
        return Ok(None);
    }
    let odd = || format!("{field:?} is no size");
    let (digits, power) = match field.char_indices().last() {
        Some((at, letter)) if letter.is_ascii_alphabetic() => {
            let power = "KMGTP".find(letter.to_ascii_uppercase()).ok_or_else(odd)?;
            (&field[..at], power as i32 + 1)
        }
        _ => (field, 0),
    };
    let size: f64 = digits.parse().map_err(|_| odd())?;
    if !size.is_finite() || size < 0.0 {
        return Err(odd());
    }
    Ok(Some((size * 1024f64.powi(power)) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_read_in_each_of_its_forms() {
        for (text, millis) in [
            ("0:02", 2_000),
            ("10:00", 600_000),
            ("1:00:00", 3_600_000),
            ("2-03:04:05", 183_845_000),
            ("00:00.015", 15),
            ("1-00:00:00.5", 86_400_500),
        ] {
            assert_eq!(duration(text), Ok(Some(Duration::from_millis(millis))), "{text}");
        }
        assert_eq!(duration("INVALID"), Ok(None));
        for odd in ["5", "a:b", "1:2:3:4", "-1:00", "1:-2", "99999999999999999-00:00:00", ":"] {
            assert!(duration(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_size_is_read_with_and_without_a_letter() {
        for (text, size) in
            [("3166208", 3_166_208), ("3092K", 3_166_208), ("1.5M", 1_572_864), ("2G", 2 << 30), ("0", 0)]
        {
            assert_eq!(bytes(text), Ok(Some(size)), "{text}");
        }
        assert_eq!(bytes(""), Ok(None));
        for odd in ["x", "K", "1Q", "-1K", "NaN"] {
            assert!(bytes(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_time_is_in_seconds_and_nothing_else() {
        assert_eq!(time("1795392196").unwrap().unwrap().to_rfc3339(), "2026-11-23T00:03:16+00:00");
        assert_eq!(time("Unknown"), Ok(None));
        for odd in ["2026-11-22T15:25:41", "15:25", "0", "-5", "99999999999999999"] {
            assert!(time(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_limit_may_be_none() {
        assert_eq!(limit("UNLIMITED"), Ok(Some(Limit::Unlimited)));
        assert_eq!(limit("Partition_Limit"), Ok(None));
        assert_eq!(limit("1-00:00:00"), Ok(Some(Limit::Of(Duration::from_secs(86_400)))));
    }
}
