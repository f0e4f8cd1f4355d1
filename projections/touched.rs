//! Rows that the present transaction has touched: read once, changed in memory, written once.
//!
//! An execution has many events, which come close together: written with each of them, its row and what indexes it would
//! be written a dozen times. Nothing here outlives its transaction, so that no memory can be ahead of the file: what is
//! rolled back is forgotten, and the next batch reads what was committed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use rusqlite::types::{Null, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Result, Row, Statement, ToSql};
use uuid::Uuid;

use crate::sql::Column;

/// A word of a column; those that are known when this is compiled cost no allocation.
pub(crate) type Word = Cow<'static, str>;

/// A row as it lies in a table, with JSON unread; declared with `stored!`.
pub(crate) trait Stored: Sized {
    /// What it is found by.
    type Key: Copy + Eq + Hash;
    const TABLE: &'static str;
    const KEY: &'static [&'static str];
    /// The columns that are written when the row is new and never again.
    const ONCE: &'static [&'static str];
    const CHANGING: &'static [&'static str];

    fn statements() -> &'static Statements;
    fn key(&self) -> Self::Key;
    fn read(row: &Row<'_>) -> Result<Self>;
    fn bind_key(key: &Self::Key, to: &mut Binder<'_, '_>) -> Result<()>;
    fn bind_once(&self, to: &mut Binder<'_, '_>) -> Result<()>;
    fn bind_changing(&self, to: &mut Binder<'_, '_>) -> Result<()>;
}

/// How a table is read and written; the parameters are the columns in the order of the text.
pub(crate) struct Statements {
    select: String,
    insert: String,
    update: String,
}

impl Statements {
    pub fn of<R: Stored>() -> Self {
        let table = R::TABLE;
        let all = [R::KEY, R::ONCE, R::CHANGING].concat();
        let is = |columns: &[&str], between| {
            columns.iter().map(|column| format!("{column} = ?")).collect::<Vec<_>>().join(between)
        };
        let (found, columns, values) = (is(R::KEY, " AND "), all.join(", "), vec!["?"; all.len()].join(", "));
        Self {
            select: format!("SELECT {columns} FROM {table} WHERE {found}"),
            insert: format!("INSERT INTO {table} ({columns}) VALUES ({values})"),
            update: format!("UPDATE {table} SET {} WHERE {found}", is(R::CHANGING, ", ")),
        }
    }
}

struct Touch<R> {
    row: R,
    /// Whether it is not in the file yet.
    new: bool,
}

/// The touched rows of one table.
pub(crate) struct Touched<R: Stored> {
    /// Where a row is in `rows`; `None` when it is known that there is none.
    places: HashMap<R::Key, Option<usize>>,
    /// In the order of the first touch, so that new rows are written in the order of their positions.
    rows: Vec<Touch<R>>,
}

impl<R: Stored> Default for Touched<R> {
    fn default() -> Self {
        Self { places: HashMap::new(), rows: Vec::new() }
    }
}

impl<R: Stored> Touched<R> {
    /// The row of `key`, to be changed.
    pub fn get(&mut self, db: &Connection, key: R::Key) -> Result<Option<&mut R>> {
        let place = match self.places.entry(key) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(unknown) => {
                let place = load(db, &key)?.map(|row| {
                    self.rows.push(Touch { row, new: false });
                    self.rows.len() - 1
                });
                *unknown.insert(place)
            }
        };
        Ok(place.map(|place| &mut self.rows[place].row))
    }

    /// A row that is not there yet. Should the table have it all the same, writing fails.
    pub fn add(&mut self, row: R) {
        self.places.insert(row.key(), Some(self.rows.len()));
        self.rows.push(Touch { row, new: true });
    }

    /// Writes them all, in the order in which they were touched first.
    pub fn flush(&mut self, db: &Connection) -> Result<()> {
        self.places.clear();
        if self.rows.is_empty() {
            return Ok(());
        }
        let Statements { insert, update, .. } = R::statements();
        let (mut insert, mut update) = (db.prepare_cached(insert)?, db.prepare_cached(update)?);
        for Touch { row, new } in self.rows.drain(..) {
            let statement = if new { &mut insert } else { &mut update };
            let mut to = Binder { statement, bound: 0 };
            if new {
                R::bind_key(&row.key(), &mut to)?;
                row.bind_once(&mut to)?;
                row.bind_changing(&mut to)?;
            } else {
                row.bind_changing(&mut to)?;
                R::bind_key(&row.key(), &mut to)?;
            }
            statement.raw_execute()?;
        }
        Ok(())
    }
}

fn load<R: Stored>(db: &Connection, key: &R::Key) -> Result<Option<R>> {
    let mut statement = db.prepare_cached(&R::statements().select)?;
    R::bind_key(key, &mut Binder { statement: &mut statement, bound: 0 })?;
    let mut rows = statement.raw_query();
    rows.next()?.map(R::read).transpose()
}

/// A value that a row keeps as it lies in its column.
pub(crate) trait Cell: Column {
    fn cell(&self) -> Result<ToSqlOutput<'_>>;
}

macro_rules! plain_cells {
    ($($ty:ty),*) => {$(
        impl Cell for $ty {
            fn cell(&self) -> Result<ToSqlOutput<'_>> {
                self.to_sql()
            }
        }
    )*};
}
plain_cells!(bool, i64, u32, u64, f64, String);

impl Cell for Word {
    fn cell(&self) -> Result<ToSqlOutput<'_>> {
        Ok((**self).into())
    }
}

impl Column for Word {
    fn read(value: ValueRef<'_>) -> std::result::Result<Self, String> {
        String::read(value).map(Self::Owned)
    }
}

impl Cell for Uuid {
    fn cell(&self) -> Result<ToSqlOutput<'_>> {
        Ok(self.as_bytes()[..].into())
    }
}

impl<T: Cell> Cell for Option<T> {
    fn cell(&self) -> Result<ToSqlOutput<'_>> {
        self.as_ref().map_or(Ok(Null.into()), Cell::cell)
    }
}

/// A statement whose parameters are bound one after the other.
pub(crate) struct Binder<'s, 'c> {
    statement: &'s mut Statement<'c>,
    bound: usize,
}

impl Binder<'_, '_> {
    pub fn bind(&mut self, value: &impl Cell) -> Result<()> {
        self.bound += 1;
        self.statement.raw_bind_parameter(self.bound, value.cell()?)
    }
}

/// Declares a row of a table: what it is found by, what is written once, and what changes.
macro_rules! stored {
    (
        $(#[$meta:meta])* $vis:vis struct $name:ident in $table:literal by ($($key:ident: $kty:ty),+);
        once { $($once:ident: $oty:ty,)* }
        changing { $($changing:ident: $cty:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default)]
        $vis struct $name { $($vis $key: $kty,)+ $($vis $once: $oty,)* $($vis $changing: $cty,)* }

        impl crate::touched::Stored for $name {
            type Key = ($($kty,)+);
            const TABLE: &'static str = $table;
            const KEY: &'static [&'static str] = &[$(stringify!($key)),+];
            const ONCE: &'static [&'static str] = &[$(stringify!($once)),*];
            const CHANGING: &'static [&'static str] = &[$(stringify!($changing)),*];

            fn statements() -> &'static crate::touched::Statements {
                static STATEMENTS: std::sync::LazyLock<crate::touched::Statements> =
                    std::sync::LazyLock::new(crate::touched::Statements::of::<$name>);
                &STATEMENTS
            }

            fn key(&self) -> Self::Key {
                ($(self.$key,)+)
            }

            fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
                let mut index = 0usize..;
                let mut next = || index.next().expect("the range has no end");
                Ok(Self {
                    $($key: crate::sql::column(row, next())?,)+
                    $($once: crate::sql::column(row, next())?,)*
                    $($changing: crate::sql::column(row, next())?,)*
                })
            }

            fn bind_key(($($key,)+): &Self::Key, to: &mut crate::touched::Binder<'_, '_>) -> rusqlite::Result<()> {
                $(to.bind($key)?;)+
                Ok(())
            }

            fn bind_once(&self, _to: &mut crate::touched::Binder<'_, '_>) -> rusqlite::Result<()> {
                $(_to.bind(&self.$once)?;)*
                Ok(())
            }

            fn bind_changing(&self, to: &mut crate::touched::Binder<'_, '_>) -> rusqlite::Result<()> {
                $(to.bind(&self.$changing)?;)*
                Ok(())
            }
        }
    };
}
