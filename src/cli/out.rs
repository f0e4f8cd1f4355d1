//! How a verb answers: JSON for programs, a table for people.
//!
//! Answers go to standard output and nothing else does; remarks go to standard error. A reader that goes away (`| head`)
//! ends the verb quietly.

use std::io::{IsTerminal, Write};

use chrono::{DateTime, Utc};
use console::{Style, measure_text_width, truncate_str};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: what the service said, or the same facts of a file.
    Json,
}

/// A column: its title, and where its value is (`a.b` goes into objects).
pub type Column = (&'static str, &'static str);

#[derive(Clone, Copy, Debug)]
pub struct Out {
    pub format: Format,
    /// Whether standard output is a terminal: colours and the width of the window.
    pub terminal: bool,
}

impl Out {
    pub fn new(format: Format) -> Self {
        Self { format, terminal: std::io::stdout().is_terminal() }
    }

    pub fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes a line.
    pub fn line(&self, text: impl AsRef<str>) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", text.as_ref())?;
        out.flush()
    }

    /// Writes a value as JSON.
    pub fn value(&self, value: &Value) -> std::io::Result<()> {
        self.line(format!("{value:#}"))
    }

    /// Writes a list: as it is, or as a table.
    pub fn list(&self, items: &Value, columns: &[Column]) -> std::io::Result<()> {
        if self.json() {
            return self.value(items);
        }
        let rows = match items {
            Value::Array(rows) => rows.as_slice(),
            Value::Object(page) => page.get("items").and_then(Value::as_array).map_or(&[][..], Vec::as_slice),
            _ => &[],
        };
        if rows.is_empty() {
            return self.line("none");
        }
        let rows = rows.iter().map(|row| columns.iter().map(|(_, place)| text(at(row, place))).collect());
        let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
        self.table(&titles, rows.collect())
    }

    /// Writes one thing: as it is, or a field a line.
    pub fn thing(&self, thing: &Value) -> std::io::Result<()> {
        if self.json() {
            return self.value(thing);
        }
        match thing {
            Value::Object(_) => {
                let mut rows = vec![];
                fields("", thing, &mut rows);
                self.table(&[], rows)
            }
            Value::Null => Ok(()),
            other => self.line(text(Some(other))),
        }
    }

    /// Writes rows under titles; cut at the window's width on a terminal, whole otherwise.
    pub fn table(&self, titles: &[&str], rows: Vec<Vec<String>>) -> std::io::Result<()> {
        let width = if self.terminal { usize::from(console::Term::stdout().size().1) } else { usize::MAX };
        let mut out = std::io::stdout().lock();
        for (n, line) in table(titles, &rows).lines().enumerate() {
            let line = truncate_str(line, width, "…");
            if n == 0 && !titles.is_empty() {
                writeln!(out, "{}", self.style().bold().apply_to(line))?;
            } else {
                writeln!(out, "{line}")?;
            }
        }
        out.flush()
    }

    /// A style that colours on a terminal only.
    pub fn style(&self) -> Style {
        Style::new().force_styling(self.terminal && console::colors_enabled())
    }
}

/// The fields of a thing, those of things inside it under a dotted name.
fn fields(prefix: &str, thing: &Value, rows: &mut Vec<Vec<String>>) {
    for (name, value) in thing.as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        match value {
            Value::Object(inner) if !inner.is_empty() && !inner.contains_key("text") => {
                fields(&format!("{name}."), value, rows);
            }
            _ => rows.push(vec![name, text(Some(value))]),
        }
    }
}

/// A remark: to standard error, not part of the answer.
pub fn remark(text: impl AsRef<str>) {
    // A remark that nobody can hear is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// Rows under titles, padded to the widest of each column but the last.
pub fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
    let lines: Vec<&Vec<String>> =
        if titles.is_empty() { rows.iter().collect() } else { std::iter::once(&head).chain(rows).collect() };
    let columns = lines.iter().map(|line| line.len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|n| {
            lines
                .iter()
                .filter_map(|line| line.get(n))
                .map(|cell| measure_text_width(cell))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for line in lines {
        let mut text = String::new();
        for (n, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if n + 1 < line.len() {
                text.extend(std::iter::repeat_n(' ', widths[n] - measure_text_width(cell) + 2));
            }
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

/// The value at a place such as `deployment.kind`.
fn at<'a>(value: &'a Value, place: &str) -> Option<&'a Value> {
    place.split('.').try_fold(value, |value, part| value.get(part))
}

/// A value on one line; nothing is `-`.
pub fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => match DateTime::parse_from_rfc3339(text) {
            Ok(at) if text.len() > 18 => time(at.to_utc()),
            _ => plain(text),
        },
        Some(Value::Array(items)) if items.is_empty() => "-".to_owned(),
        // What is said in words as well as in fields (a `why`) is shown in words.
        Some(Value::Object(said)) if said.get("text").is_some_and(Value::is_string) => text(said.get("text")),
        Some(Value::Array(items)) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            items.iter().map(|item| text(Some(item))).collect::<Vec<_>>().join(",")
        }
        Some(Value::Array(items)) => items.iter().map(named).collect::<Vec<_>>().join(","),
        Some(other) => other.to_string(),
    }
}

/// Text of unknown origin on one line, without what a terminal would obey.
pub fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => '⏎',
        c if c.is_control() => '·',
        c => c,
    };
    text.trim_end().chars().map(shown).collect()
}

/// An object of a list by its name, if it has one that people use.
fn named(item: &Value) -> String {
    item["source_identifier"]
        .as_str()
        .or_else(|| item["name"].as_str())
        .map_or_else(|| item.to_string(), str::to_owned)
}

/// A time for people: UTC, to the millisecond.
pub fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let rows =
            vec![vec!["ä".into(), "-".into(), "x".into()], vec!["long".into(), "b".into(), String::new()]];
        assert_eq!(table(&["id", "state", "why"], &rows), "id    state  why\nä     -      x\nlong  b\n");
    }

    #[test]
    fn a_thing_inside_a_thing_has_a_dotted_name() {
        let mut rows = vec![];
        fields("", &json!({"a": {"b": 1, "c": {}}, "why": {"text": "waiting"}}), &mut rows);
        assert_eq!(rows, [["a.b", "1"], ["a.c", "{}"], ["why", "waiting"]]);
    }

    #[test]
    fn a_value_is_one_line_whatever_it_is() {
        assert_eq!(text(Some(&json!("a\nb"))), "a⏎b");
        assert_eq!(text(Some(&json!("\u{1b}[2Jgone"))), "·[2Jgone");
        assert_eq!(text(Some(&json!(["a", 1, null]))), "a,1,-");
        assert_eq!(text(Some(&json!([]))), "-");
        assert_eq!(text(Some(&json!({"since": "x", "text": "waiting"}))), "waiting");
        assert_eq!(text(Some(&json!([{"source_identifier": "J1"}, {"x": 1}]))), "J1,{\"x\":1}");
        assert_eq!(text(Some(&json!("2026-03-01T12:00:00.123456Z"))), "2026-03-01 12:00:00.123");
        assert_eq!(text(at(&json!({"a": {"b": 2}}), "a.b")), "2");
        assert_eq!(text(at(&json!({"a": 1}), "a.b")), "-");
    }
}
