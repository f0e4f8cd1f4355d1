//! Makes an older read model's file readable by the present code: adds the columns that it has not yet.
//!
//! Expand and contract, see `migrations/README.md`. What cannot be added is an error, and the file is set aside.

use rusqlite::{Connection, Error, Result};

struct Column {
    name: String,
    kind: String,
    not_null: bool,
    default: Option<String>,
    key: i64,
    hidden: i64,
}

fn columns(db: &Connection, table: &str) -> Result<Vec<Column>> {
    let mut statement =
        db.prepare("SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1)")?;
    let rows = statement.query_map([table], |row| {
        Ok(Column {
            name: row.get(0)?,
            kind: row.get(1)?,
            not_null: row.get(2)?,
            default: row.get(3)?,
            key: row.get(4)?,
            hidden: row.get(5)?,
        })
    })?;
    rows.collect()
}

/// The tables of a schema.
pub(crate) fn tables(db: &Connection) -> Result<Vec<String>> {
    let sql =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    db.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
}

/// Adds to `db` the columns that `schema` has more.
pub(crate) fn expand(db: &Connection, schema: &str) -> Result<()> {
    let present = Connection::open_in_memory()?;
    present.execute_batch(schema)?;
    for table in tables(&present)? {
        let old = columns(db, &table)?;
        if old.is_empty() {
            continue;
        }
        let new = columns(&present, &table)?;
        for column in &new {
            match old.iter().find(|known| known.name == column.name) {
                Some(known)
                    if (&known.kind, known.key, known.hidden)
                        == (&column.kind, column.key, column.hidden) => {}
                None if column.key == 0
                    && column.hidden == 0
                    && (!column.not_null || column.default.is_some()) =>
                {
                    db.execute_batch(&addition(&table, column))?;
                }
                _ => return Err(incompatible(&table, &column.name)),
            }
        }
        let required = |known: &&Column| known.not_null && known.default.is_none() && known.hidden == 0;
        let gone =
            old.iter().filter(required).find(|known| new.iter().all(|column| column.name != known.name));
        if let Some(gone) = gone {
            return Err(incompatible(&table, &gone.name));
        }
    }
    Ok(())
}

fn addition(table: &str, column: &Column) -> String {
    let Column { name, kind, .. } = column;
    let not_null = if column.not_null { " NOT NULL" } else { "" };
    let default = column.default.as_ref().map(|default| format!(" DEFAULT {default}")).unwrap_or_default();
    format!("ALTER TABLE {table} ADD COLUMN {name} {kind}{not_null}{default}")
}

fn incompatible(table: &str, column: &str) -> Error {
    let what = format!("column {column} of {table} has another shape now");
    Error::FromSqlConversionFailure(0, rusqlite::types::Type::Null, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_column_is_added_to_an_old_file() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT) STRICT; INSERT INTO t VALUES (1, 'x')",
        )
        .unwrap();
        let schema = "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, n INTEGER NOT NULL DEFAULT 7) STRICT";
        expand(&db, schema).unwrap();
        let row = db.query_row("SELECT b IS NULL, n FROM t", [], |row| Ok((row.get(0)?, row.get(1)?)));
        assert_eq!(row.unwrap(), (true, 7));
    }

    #[test]
    fn what_cannot_be_added_is_an_error() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT NOT NULL)").unwrap();
        assert!(expand(&db, "CREATE TABLE t (id TEXT PRIMARY KEY, a TEXT NOT NULL)").is_err(), "another key");
        assert!(expand(&db, "CREATE TABLE t (id INTEGER PRIMARY KEY)").is_err(), "inserts would fail");
        let required = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT NOT NULL, b TEXT NOT NULL)";
        assert!(expand(&db, required).is_err(), "no default");
    }
}
