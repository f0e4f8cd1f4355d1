//! How values lie in SQLite: UUIDs as 16 bytes, times as microseconds, lists and objects as JSON.

use std::collections::BTreeMap;

use beampipe_domain::account::Role;
use beampipe_domain::{channel, execution, profile, rule, silence};
use chrono::{DateTime, Utc};
use rusqlite::types::{FromSql, Type, ValueRef};
use rusqlite::{Error, Result, Row};
use uuid::Uuid;

/// A value that can be read from a column.
pub(crate) trait Column: Sized {
    fn read(value: ValueRef<'_>) -> std::result::Result<Self, String>;
}

/// Reads column `index` of `row`.
pub(crate) fn column<T: Column>(row: &Row<'_>, index: usize) -> Result<T> {
    let value = row.get_ref(index)?;
    let kind = value.data_type();
    T::read(value).map_err(|what| Error::FromSqlConversionFailure(index, kind, what.into()))
}

macro_rules! plain_columns {
    ($($ty:ty),*) => {$(
        impl Column for $ty {
            fn read(value: ValueRef<'_>) -> std::result::Result<Self, String> {
                Self::column_result(value).map_err(|e| e.to_string())
            }
        }
    )*};
}
plain_columns!(String, bool, i64, u64, u32, f64);

impl<T: Column> Column for Option<T> {
    fn read(value: ValueRef<'_>) -> std::result::Result<Self, String> {
        if value.data_type() == Type::Null { Ok(None) } else { T::read(value).map(Some) }
    }
}

impl Column for Uuid {
    fn read(value: ValueRef<'_>) -> std::result::Result<Self, String> {
        Uuid::from_slice(value.as_blob().map_err(|e| e.to_string())?).map_err(|e| e.to_string())
    }
}

impl Column for DateTime<Utc> {
    fn read(value: ValueRef<'_>) -> std::result::Result<Self, String> {
        let micros = value.as_i64().map_err(|e| e.to_string())?;
        DateTime::from_timestamp_micros(micros).ok_or_else(|| format!("{micros} µs is no time"))
    }
}

impl Column for Role {
    fn read(value: ValueRef<'_>) -> std::result::Result<Self, String> {
        let word = value.as_str().map_err(|e| e.to_string())?;
        Role::parse(word).ok_or_else(|| format!("{word:?} is no role"))
    }
}

macro_rules! json_columns {
    ($($ty:ty),*) => {$(
        impl Column for $ty {
            fn read(value: ValueRef<'_>) -> std::result::Result<Self, String> {
                serde_json::from_slice(value.as_bytes().map_err(|e| e.to_string())?).map_err(|e| e.to_string())
            }
        }
    )*};
}
json_columns!(
    Vec<String>,
    serde_json::Value,
    Vec<execution::RequestedSource>,
    execution::Receipt,
    execution::Observed,
    execution::Terminal,
    profile::Spec,
    channel::Spec,
    rule::Spec,
    Vec<silence::Matcher>,
    BTreeMap<String, String>
);

/// A time as it lies in a column.
pub(crate) fn micros(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}

/// An optional time as it lies in a column.
pub(crate) fn micros_of(time: Option<DateTime<Utc>>) -> Option<i64> {
    time.map(micros)
}

/// A UUID as it lies in a column.
pub(crate) fn blob(id: &Uuid) -> &[u8] {
    id.as_bytes()
}

/// An optional UUID as it lies in a column.
pub(crate) fn blob_of(id: Option<&Uuid>) -> Option<&[u8]> {
    id.map(blob)
}

/// JSON as it lies in a column.
pub(crate) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("event payloads have string keys and no failing serializer")
}

/// The UUID in a stream's name; a stream that has none is read as the nil UUID, which no entity has.
pub(crate) fn stream_id(stream: &str) -> Uuid {
    stream_rest(stream).parse().unwrap_or_default()
}

/// A stream's name without its category.
pub(crate) fn stream_rest(stream: &str) -> &str {
    stream.split_once('-').map_or("", |(_, rest)| rest)
}

/// Declares a row: a struct whose fields are columns of the same names.
macro_rules! row {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        impl $name {
            /// The columns in the order of the fields.
            pub(crate) fn columns() -> &'static str {
                static COLUMNS: std::sync::LazyLock<String> =
                    std::sync::LazyLock::new(|| [$(stringify!($field)),*].join(", "));
                &COLUMNS
            }

            pub(crate) fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
                let mut index = 0usize..;
                let mut next = || index.next().expect("the range has no end");
                Ok(Self { $($field: crate::sql::column(row, next())?,)* })
            }
        }
    };
}
