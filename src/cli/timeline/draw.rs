//! Draws the events of one thing as a line in time: what happened, and how long nothing did.
//!
//! Pure text from events. The bar of a gap is as long as the logarithm of the gap, so that milliseconds and hours are both
//! seen; its share of the whole is said in per cent, which is linear.

use chrono::Duration;

use crate::cli::event::{Event, Tone, duration};

/// The widest bar, in cells.
const WIDTH: usize = 40;
/// Eighths of a cell.
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
/// Gaps below this are no gap.
const SMALLEST: Duration = Duration::milliseconds(1);

/// One line of the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub text: String,
    /// `None` for a gap.
    pub tone: Option<Tone>,
}

/// A bar for `gap` beside the longest one.
pub fn bar(gap: Duration, longest: Duration) -> String {
    let scale = |d: Duration| (d.num_microseconds().unwrap_or(i64::MAX).max(1) as f64 / 1000.0 + 1.0).ln();
    if gap <= Duration::zero() || longest <= Duration::zero() {
        return String::new();
    }
    let eighths =
        (scale(gap) / scale(longest) * (WIDTH * 8) as f64).round().clamp(1.0, (WIDTH * 8) as f64) as usize;
    let mut bar: String = std::iter::repeat_n('█', eighths / 8).collect();
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8]);
    }
    bar
}

/// The time line of `events`, which are in order.
pub fn draw(events: &[Event]) -> Vec<Line> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return vec![] };
    let whole = last.occurred_at - first.occurred_at;
    let gaps = || events.windows(2).map(|pair| pair[1].occurred_at - pair[0].occurred_at);
    let longest = gaps().max().unwrap_or_default();
    let mut lines = Vec::with_capacity(events.len() * 2);
    for (n, event) in events.iter().enumerate() {
        if n > 0 {
            lines.extend(gap(event.occurred_at - events[n - 1].occurred_at, longest, whole));
        }
        let since = event.occurred_at - first.occurred_at;
        let mark = if n == 0 {
            '┬'
        } else if n + 1 == events.len() {
            '┴'
        } else {
            '┼'
        };
        let since = if n == 0 { "0".to_owned() } else { format!("+{}", duration(since)) };
        lines.push(Line {
            text: format!("{since:>13} ─{mark}─ {}", event.event_type),
            tone: Some(event.tone()),
        });
    }
    lines
}

fn gap(gap: Duration, longest: Duration, whole: Duration) -> Option<Line> {
    if gap < SMALLEST {
        return None;
    }
    let share = gap.num_microseconds()? as f64 * 100.0 / whole.num_microseconds()?.max(1) as f64;
    let share = if share < 0.5 { "<1".to_owned() } else { format!("{share:.0}") };
    let text = format!("{:>13}  │  {} {} ({share} %)", "", bar(gap, longest), duration(gap));
    Some(Line { text, tone: None })
}

/// What it comes to: how many events in how long, and the longest wait.
pub fn summary(events: &[Event]) -> String {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return "no events".to_owned() };
    let whole = duration(last.occurred_at - first.occurred_at);
    let longest = events.windows(2).max_by_key(|pair| pair[1].occurred_at - pair[0].occurred_at);
    let wait = longest.map_or_else(String::new, |pair| {
        let gap = duration(pair[1].occurred_at - pair[0].occurred_at);
        format!(", the longest wait {gap} before {}", pair[1].event_type)
    });
    let n = events.len();
    format!("{n} event{} in {whole}{wait}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(ms: i64, event_type: &str) -> Event {
        let time = chrono::DateTime::from_timestamp_millis(1_772_366_400_000 + ms).unwrap();
        Event::parse(&json!({"position": ms + 1, "stream": "execution-1", "event_type": event_type, "occurred_at": time,
            "payload": {}}).to_string())
        .unwrap()
    }

    #[test]
    fn a_time_line_shows_gaps_of_every_size() {
        let events = [
            at(0, "execution.created"),
            at(0, "execution.execute_started"),
            at(12, "execution.running"),
            at(1_500, "execution.submission_started"),
            at(3_601_500, "execution.completed"),
        ];
        let text: Vec<String> = draw(&events).into_iter().map(|line| line.text).collect();
        let expected = [
            "            0 ─┬─ execution.created",
            "        +0 µs ─┼─ execution.execute_started",
            "               │  ██████▊ 12 ms (<1 %)",
            "       +12 ms ─┼─ execution.running",
            "               │  ███████████████████▍ 1.5 s (<1 %)",
            "       +1.5 s ─┼─ execution.submission_started",
            "               │  ████████████████████████████████████████ 1 h 00 min (100 %)",
            "  +1 h 00 min ─┴─ execution.completed",
        ];
        assert_eq!(text, expected);
        assert_eq!(
            summary(&events),
            "5 events in 1 h 00 min, the longest wait 1 h 00 min before execution.completed"
        );
    }

    #[test]
    fn nothing_and_one_event_are_drawn_too() {
        assert_eq!((draw(&[]), summary(&[])), (vec![], "no events".to_owned()));
        assert_eq!(draw(&[at(5, "source.registered")]).len(), 1);
        assert_eq!(summary(&[at(5, "source.registered")]), "1 event in 0 µs");
    }

    #[test]
    fn a_longer_gap_never_has_a_shorter_bar() {
        let longest = Duration::hours(24);
        let lengths: Vec<usize> = [1, 5, 60, 1_000, 60_000, 3_600_000, 86_400_000]
            .map(|ms| bar(Duration::milliseconds(ms), longest).chars().count())
            .into();
        assert!(lengths.is_sorted() && lengths[0] >= 1 && lengths[6] == WIDTH, "{lengths:?}");
    }
}
