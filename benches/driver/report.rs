//! What was measured: every round of it, so that the noise of the machine is seen beside the medians.
//!
//! An **aim** compares two series round by round, because rounds are interleaved: what disturbs one contender in a round
//! disturbs its peer in the same round. Nothing here decides whether a run passes; it says what was aimed at and met.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::stats::{least, median, most};

/// One thing measured in every round.
struct Series {
    case: String,
    who: &'static str,
    unit: &'static str,
    rounds: Vec<f64>,
}

enum Side {
    AtLeast,
    AtMost,
}

struct Aim {
    says: String,
    ratios: Vec<f64>,
    side: Side,
    limit: f64,
}

impl Aim {
    fn met(&self) -> bool {
        match self.side {
            Side::AtLeast => median(&self.ratios) >= self.limit,
            Side::AtMost => median(&self.ratios) <= self.limit,
        }
    }
}

/// The results of one suite.
pub struct Report {
    pub suite: &'static str,
    series: Vec<Series>,
    aims: Vec<Aim>,
    notes: Vec<String>,
}

impl Report {
    pub fn new(suite: &'static str) -> Self {
        Self { suite, series: vec![], aims: vec![], notes: vec![] }
    }

    /// Adds a round's value to the series of that name.
    pub fn add(&mut self, case: &str, who: &'static str, unit: &'static str, value: f64) {
        let there = self.series.iter_mut().find(|s| s.case == case && s.who == who && s.unit == unit);
        match there {
            Some(series) => series.rounds.push(value),
            None => self.series.push(Series { case: case.into(), who, unit, rounds: vec![value] }),
        }
    }

    /// A sentence that a reader of the numbers has to know.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn rounds(&self, case: &str, who: &str, unit: &str) -> &[f64] {
        let found = self.series.iter().find(|s| s.case == case && s.who == who && s.unit == unit);
        found.map_or(&[], |series| &series.rounds)
    }

    fn ratios(&self, unit: &str, (case, who): (&str, &str), (peer_case, peer): (&str, &str)) -> Vec<f64> {
        let mine = self.rounds(case, who, unit);
        mine.iter().zip(self.rounds(peer_case, peer, unit)).map(|(a, b)| a / b).collect()
    }

    /// Aims at `(case, who)` being at least `limit` times `(case, peer)`.
    pub fn aim_at_least(
        &mut self,
        says: &str,
        unit: &str,
        mine: (&str, &str),
        peer: (&str, &str),
        limit: f64,
    ) {
        let ratios = self.ratios(unit, mine, peer);
        self.aims.push(Aim { says: says.into(), ratios, side: Side::AtLeast, limit });
    }

    /// Aims at `(case, who)` being at most `limit` times `(case, peer)`.
    pub fn aim_at_most(
        &mut self,
        says: &str,
        unit: &str,
        mine: (&str, &str),
        peer: (&str, &str),
        limit: f64,
    ) {
        let ratios = self.ratios(unit, mine, peer);
        self.aims.push(Aim { says: says.into(), ratios, side: Side::AtMost, limit });
    }

    /// Aims at a value itself being at least `limit`.
    pub fn aim_value(&mut self, says: &str, case: &str, who: &str, unit: &str, limit: f64) {
        let ratios = self.rounds(case, who, unit).to_vec();
        self.aims.push(Aim { says: says.into(), ratios, side: Side::AtLeast, limit });
    }

    /// The tables, as Markdown.
    pub fn markdown(&self) -> String {
        use std::fmt::Write;
        let mut out = format!(
            "### {}\n\n| case | who | unit | median | min–max | rounds |\n|---|---|---|--:|--:|--:|\n",
            self.suite
        );
        for s in &self.series {
            let (middle, low, high) = (median(&s.rounds), least(&s.rounds), most(&s.rounds));
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {}–{} | {} |",
                s.case,
                s.who,
                s.unit,
                show(middle),
                show(low),
                show(high),
                s.rounds.len()
            );
        }
        if !self.aims.is_empty() {
            out.push_str("\n| aim | wanted | median | min–max over rounds | |\n|---|--:|--:|--:|---|\n");
        }
        for aim in &self.aims {
            let sign = if matches!(aim.side, Side::AtLeast) { "≥" } else { "≤" };
            let _ = writeln!(
                out,
                "| {} | {sign} {} | {} | {}–{} | {} |",
                aim.says,
                show(aim.limit),
                show(median(&aim.ratios)),
                show(least(&aim.ratios)),
                show(most(&aim.ratios)),
                if aim.met() { "met" } else { "**not met**" }
            );
        }
        for note in &self.notes {
            let _ = write!(out, "\n{note}\n");
        }
        out
    }

    fn json(&self) -> Value {
        json!({
            "series": self.series.iter().map(|s| json!({
                "case": s.case, "who": s.who, "unit": s.unit, "rounds": s.rounds, "median": median(&s.rounds),
            })).collect::<Vec<_>>(),
            "aims": self.aims.iter().map(|aim| json!({
                "says": aim.says, "ratios": aim.ratios, "median": median(&aim.ratios), "limit": aim.limit,
                "met": aim.met(),
            })).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }

    /// Puts this suite's results among those of the others in `path`.
    pub fn save(&self, path: &Path, machine: &Value) -> anyhow::Result<()> {
        let mut all: BTreeMap<String, Value> = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?,
            Err(_) => BTreeMap::new(),
        };
        all.insert("machine".into(), machine.clone());
        all.insert(self.suite.into(), self.json());
        std::fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| path.display().to_string())
    }
}

/// Three digits that count, and no more.
pub fn show(value: f64) -> String {
    match value.abs() {
        x if x.is_nan() => "-".into(),
        x if x >= 1000.0 => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index) % 3 == 0 {
                    out.push(' ');
                }
                out.push(digit);
            }
            out
        }
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
