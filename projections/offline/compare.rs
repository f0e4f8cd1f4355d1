//! Compares two files of the same read model, row by row in the order of their keys.

use std::cmp::Ordering;

use rusqlite::types::Value;
use rusqlite::{Connection, Result, Rows, Statement};
use serde::Serialize;

use crate::expand::tables;

/// One value that is not as the log says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub table: String,
    /// The row's key, as `column=value`.
    pub key: String,
    /// `None` when the whole row is missing, or should be.
    pub column: Option<String>,
    /// What is there; `None` when there is no such row.
    pub was: Option<String>,
    /// What the log says; `None` when there should be no such row.
    pub should_be: Option<String>,
}

struct Shape {
    table: String,
    columns: Vec<String>,
    /// The indices of the key's columns.
    key: Vec<usize>,
}

impl Shape {
    fn of(db: &Connection, table: String) -> Result<Self> {
        let sql = "SELECT name, pk FROM pragma_table_xinfo(?1) WHERE hidden <> 1 ORDER BY cid";
        let found: Vec<(String, i64)> = db
            .prepare(sql)?
            .query_map([&table], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_>>()?;
        let mut key: Vec<(i64, usize)> = found
            .iter()
            .enumerate()
            .filter(|(_, (_, place))| *place > 0)
            .map(|(index, (_, place))| (*place, index))
            .collect();
        key.sort_unstable();
        Ok(Self {
            table,
            columns: found.into_iter().map(|(name, _)| name).collect(),
            key: key.into_iter().map(|(_, index)| index).collect(),
        })
    }

    fn select<'db>(&self, db: &'db Connection) -> Result<Statement<'db>> {
        let key: Vec<&str> = self.key.iter().map(|index| self.columns[*index].as_str()).collect();
        let (columns, table, key) = (self.columns.join(", "), &self.table, key.join(", "));
        db.prepare(&format!("SELECT {columns} FROM {table} ORDER BY {key}"))
    }

    fn next(&self, rows: &mut Rows<'_>) -> Result<Option<Vec<Value>>> {
        rows.next()?.map(|row| (0..self.columns.len()).map(|index| row.get(index)).collect()).transpose()
    }

    fn order(&self, a: &[Value], b: &[Value]) -> Ordering {
        self.key
            .iter()
            .map(|index| order(&a[*index], &b[*index]))
            .find(|o| o.is_ne())
            .unwrap_or(Ordering::Equal)
    }

    /// A value for people. Hashes of passwords and tokens are for nobody.
    fn show(&self, row: &[Value], index: usize) -> String {
        match self.columns[index].as_str() {
            "password_hash" | "secret_sha256" | "access_sha256" | "refresh_sha256" => "(private)".into(),
            _ => show(&row[index]),
        }
    }

    fn difference(&self, row: &[Value], column: Option<usize>) -> Difference {
        let key: Vec<String> =
            self.key.iter().map(|index| format!("{}={}", self.columns[*index], show(&row[*index]))).collect();
        Difference {
            table: self.table.clone(),
            key: key.join(" "),
            column: column.map(|index| self.columns[index].clone()),
            was: None,
            should_be: None,
        }
    }
}

/// How many rows were compared, and every value of `served` that is not as in `right`.
pub(super) fn compare(served: &Connection, right: &Connection) -> Result<(u64, Vec<Difference>)> {
    let (mut count, mut differences) = (0, vec![]);
    for table in tables(right)? {
        let shape = Shape::of(right, table)?;
        let (mut left, mut wanted) = (shape.select(served)?, shape.select(right)?);
        let (mut left, mut wanted) = (left.query([])?, wanted.query([])?);
        let (mut was, mut should) = (shape.next(&mut left)?, shape.next(&mut wanted)?);
        loop {
            count += 1;
            match (&was, &should) {
                (None, None) => break,
                (Some(a), Some(b)) if shape.order(a, b).is_eq() => {
                    for index in (0..a.len()).filter(|index| a[*index] != b[*index]) {
                        differences.push(Difference {
                            was: Some(shape.show(a, index)),
                            should_be: Some(shape.show(b, index)),
                            ..shape.difference(a, Some(index))
                        });
                    }
                    (was, should) = (shape.next(&mut left)?, shape.next(&mut wanted)?);
                }
                (Some(a), b) if b.as_ref().is_none_or(|b| shape.order(a, b).is_lt()) => {
                    differences.push(Difference { was: Some("a row".into()), ..shape.difference(a, None) });
                    was = shape.next(&mut left)?;
                }
                (_, Some(b)) => {
                    differences
                        .push(Difference { should_be: Some("a row".into()), ..shape.difference(b, None) });
                    should = shape.next(&mut wanted)?;
                }
                (Some(_), None) => unreachable!("a row that is alone is a difference, above"),
            }
        }
        count -= 1;
    }
    Ok((count, differences))
}

/// SQLite's order of values of one type.
fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Blob(a), Value::Blob(b)) => a.cmp(b),
        _ => Ordering::Equal,
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Integer(n) => n.to_string(),
        Value::Real(n) => n.to_string(),
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => uuid::Uuid::from_slice(bytes)
            .map_or_else(|_| bytes.iter().map(|byte| format!("{byte:02x}")).collect(), |id| id.to_string()),
    }
}
