//! IVOA TAP (Table Access Protocol 1.1): ADQL in, a [`Table`] out.
//!
//! Owns the [`Table`] every reader produces. Invariant: a `Table` is the whole answer; one that was cut short by the
//! service or by a limit of ours is an error, never a shorter table.
//! Templates are in [`adql`], the wire formats in [`votable`] and [`csv`], asynchronous jobs in [`uws`].

pub mod adql;
pub mod answer;
pub mod client;
pub mod csv;
pub mod error;
pub mod uws;
pub mod votable;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use client::{Latency, Limits, TapClient};
pub use error::TapError;

/// A column as the service describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// As the service spells it; look it up with [`Table::column`], which ignores case.
    pub name: String,
    /// VOTable datatype (`char` for CSV, which has no types).
    pub datatype: String,
    /// VOTable arraysize, absent for a single value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arraysize: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// A complete answer: columns, and rows with one value for each column.
///
/// Values are JSON. NULL, NaN and the empty string are all `null` (VOTable cannot tell the first from the last in two
/// of its three encodings); an infinity is the text `+Inf` or `-Inf`, as JSON has none; a complex number is `[re, im]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Value>>,
}

impl Table {
    /// The place of a column, whatever its case: archives differ in it, and ADQL names are not case-sensitive.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// The value of a row in a named column; `None` when there is no such row or column.
    pub fn value(&self, row: usize, column: &str) -> Option<&Value> {
        self.rows.get(row)?.get(self.column(column)?)
    }

    /// Each row as an object with lower-cased column names. Of two columns with one name the first is kept.
    pub fn records(&self) -> Vec<Map<String, Value>> {
        let names: Vec<String> = self.columns.iter().map(|column| column.name.to_lowercase()).collect();
        self.rows
            .iter()
            .map(|row| {
                let mut record = Map::new();
                for (name, value) in names.iter().zip(row) {
                    if !record.contains_key(name) {
                        record.insert(name.clone(), value.clone());
                    }
                }
                record
            })
            .collect()
    }
}
