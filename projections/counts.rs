//! Numbers kept up with every event, so that nobody ever counts rows.
//!
//! A count is named by a family and two words. In memory while events are applied, written in the same transaction as the
//! rows, read again when the file is opened. A count that has been touched keeps its row at zero, so that the rows do not
//! depend on where the batches were cut.

use std::collections::HashMap;

use rusqlite::{Connection, Result};

#[derive(Debug, Default)]
struct Count {
    n: i64,
    unsaved: bool,
}

type Family = HashMap<Box<str>, HashMap<Box<str>, Count>>;

/// The counts of one read model.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    families: HashMap<Box<str>, Family>,
    unsaved: Vec<[Box<str>; 3]>,
}

impl Counts {
    pub fn load(db: &Connection) -> Result<Self> {
        let mut counts = Self::default();
        let mut statement = db.prepare("SELECT family, a, b, n FROM counts")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (family, a, b): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            counts.entry(&family, &a, &b).n = row.get(3)?;
        }
        Ok(counts)
    }

    fn entry(&mut self, family: &str, a: &str, b: &str) -> &mut Count {
        // Looked up before it is inserted: a hit needs no allocation, and nearly all are hits.
        let known = self.families.get(family).and_then(|f| f.get(a)).is_some_and(|f| f.contains_key(b));
        if !known {
            let family = self.families.entry(family.into()).or_default();
            family.entry(a.into()).or_default().insert(b.into(), Count::default());
        }
        let found = self.families.get_mut(family).and_then(|f| f.get_mut(a)).and_then(|f| f.get_mut(b));
        found.expect("it was found or has just been inserted")
    }

    pub fn add(&mut self, family: &'static str, a: &str, b: &str, by: i64) {
        let count = self.entry(family, a, b);
        count.n += by;
        if !std::mem::replace(&mut count.unsaved, true) {
            self.unsaved.push([family.into(), a.into(), b.into()]);
        }
    }

    /// One less of `before`, one more of `after`; nothing when they are the same.
    pub fn move_one(
        &mut self,
        family: &'static str,
        before: Option<(&str, &str)>,
        after: Option<(&str, &str)>,
    ) {
        if before == after {
            return;
        }
        if let Some((a, b)) = before {
            self.add(family, a, b, -1);
        }
        if let Some((a, b)) = after {
            self.add(family, a, b, 1);
        }
    }

    /// Writes what has changed.
    pub fn flush(&mut self, db: &Connection) -> Result<()> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let mut statement = db.prepare_cached(
            "INSERT INTO counts (family, a, b, n) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (family, a, b) DO UPDATE SET n = excluded.n",
        )?;
        for [family, a, b] in unsaved {
            let count = self.entry(&family, &a, &b);
            count.unsaved = false;
            statement.execute((&family, &a, &b, count.n))?;
        }
        Ok(())
    }

    /// Every count of a family, by its words.
    pub fn of<'a>(&'a self, family: &str) -> impl Iterator<Item = (&'a str, &'a str, u64)> + use<'a> {
        let words = self.families.get(family).into_iter().flatten();
        words.flat_map(|(a, counts)| {
            counts.iter().map(move |(b, count)| (&**a, &**b, u64::try_from(count.n).unwrap_or(0)))
        })
    }

    /// The counts of a family by their first word, summed over the second.
    pub fn by_first(&self, family: &str) -> std::collections::BTreeMap<String, u64> {
        let mut sums = std::collections::BTreeMap::new();
        for (a, _, n) in self.of(family) {
            *sums.entry(a.to_owned()).or_default() += n;
        }
        sums
    }

    /// The counts of a family by both words.
    pub fn by_both(&self, family: &str) -> std::collections::BTreeMap<(String, String), u64> {
        self.of(family).map(|(a, b, n)| ((a.to_owned(), b.to_owned()), n)).collect()
    }

    pub fn total(&self, family: &str) -> u64 {
        self.of(family).map(|(_, _, n)| n).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_there_again_after_the_file_is_opened_again() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(include_str!("../migrations/views/common.sql")).unwrap();
        let mut counts = Counts::load(&db).unwrap();
        counts.add("status", "p", "running", 2);
        counts.move_one("status", Some(("p", "running")), Some(("p", "failed")));
        counts.move_one("status", Some(("p", "x")), Some(("p", "x")));
        counts.flush(&db).unwrap();
        counts.add("status", "p", "running", 1);
        let again = Counts::load(&db).unwrap();
        assert_eq!(again.total("status"), 2, "what was not flushed is not there");
        assert_eq!(again.by_first("status").get("p"), Some(&2));
        let mut both: Vec<_> = again.of("status").collect();
        both.sort_unstable();
        assert_eq!(both, [("p", "failed", 1), ("p", "running", 1)]);
    }
}
