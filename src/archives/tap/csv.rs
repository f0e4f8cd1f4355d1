//! CSV answers: a header line, then rows. Every value is text; an empty field is NULL.
//!
//! CSV cannot say that an answer was cut (`MAXREC`), so [`super::client`] asks for VOTable and for a row more than it
//! allows; this is read only from a service that answers with CSV all the same.

use serde_json::Value;

use super::{Column, Table, TapError};

/// Reads a whole CSV document (RFC 4180, UTF-8). A row with more or fewer fields than the header is malformed.
pub fn read(bytes: &[u8], max_rows: usize) -> Result<Table, TapError> {
    let mut reader = ::csv::ReaderBuilder::new().from_reader(bytes);
    let headers = reader.headers().map_err(|error| TapError::malformed(error.to_string()))?;
    let columns = headers
        .iter()
        .map(|name| Column {
            name: name.trim_start_matches('\u{feff}').trim().to_owned(),
            datatype: "char".to_owned(),
            arraysize: Some("*".to_owned()),
            unit: None,
        })
        .collect();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| TapError::malformed(error.to_string()))?;
        if rows.len() == max_rows {
            return Err(TapError::Overflow { rows: max_rows });
        }
        rows.push(
            record
                .iter()
                .map(|field| if field.is_empty() { Value::Null } else { Value::String(field.to_owned()) })
                .collect(),
        );
    }
    Ok(Table { columns, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_field_is_null_and_quotes_are_taken_off() {
        let table = read("name,note\n\"O'Neil's field é\",\n\"a,\"\"b\"\"\",x\n".as_bytes(), 10).unwrap();
        assert_eq!(table.columns[1].name, "note");
        assert_eq!(table.rows[0], [Value::from("O'Neil's field é"), Value::Null]);
        assert_eq!(table.rows[1], [Value::from("a,\"b\""), Value::from("x")]);
    }

    #[test]
    fn a_header_alone_is_an_empty_table() {
        let table = read(b"a,b\n", 10).unwrap();
        assert_eq!((table.columns.len(), table.rows.len()), (2, 0));
    }

    #[test]
    fn a_short_row_is_malformed_and_not_padded() {
        assert!(matches!(read(b"a,b\n1\n", 10), Err(TapError::Malformed { .. })));
    }

    #[test]
    fn one_row_more_than_allowed_is_an_overflow() {
        assert_eq!(read(b"a\n1\n2\n", 2).unwrap().rows.len(), 2);
        assert!(matches!(read(b"a\n1\n2\n3\n", 2), Err(TapError::Overflow { rows: 2 })));
    }
}
