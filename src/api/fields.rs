//! Reads a draft field by field, so that everything wrong with it is found at once. What cannot be read is named by its path;
//! its value is never repeated, because it may be a secret that came into the wrong field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::problem::FieldError;

/// The fields of an object that were not read yet. A null is an absent field.
pub struct Fields {
    map: Map<String, Value>,
    /// The path of the object, with a dot at its end; empty for the body.
    path: String,
    pub errors: Vec<FieldError>,
}

impl Fields {
    pub fn new(map: Map<String, Value>, path: &str) -> Self {
        let path = if path.is_empty() { String::new() } else { format!("{path}.") };
        Self { map, path, errors: vec![] }
    }

    /// Says that `field` is wrong, and what would be right.
    pub fn refuse(&mut self, field: &str, message: impl Into<String>, hint: impl Into<String>) {
        let at = format!("{}{field}", self.path);
        self.errors.push(FieldError::new(at, message).hint(hint));
    }

    /// Whether a field was sent: `None` if not, `false` if as null.
    pub fn presence(&self, field: &str) -> Option<bool> {
        self.map.get(field).map(|value| !value.is_null())
    }

    pub fn value(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// The field as a `T`; `hint` says what would be right.
    pub fn take<T: DeserializeOwned>(&mut self, field: &str, hint: &str) -> Option<T> {
        let value = self.value(field)?;
        let read = serde_json::from_value(value).ok();
        if read.is_none() {
            self.refuse(field, "cannot be used", hint);
        }
        read
    }

    /// A text of at most `most` characters that is not blank.
    pub fn text(&mut self, field: &str, most: usize) -> Option<String> {
        let hint = format!("a text of 1 to {most} characters");
        let text: String = self.take(field, &hint)?;
        if text.trim().is_empty() || text.chars().count() > most || text.chars().any(char::is_control) {
            self.refuse(field, "cannot be used", hint);
            return None;
        }
        Some(text)
    }

    /// A whole number in a range.
    pub fn number(&mut self, field: &str, least: u64, most: u64) -> Option<u64> {
        let hint = format!("a whole number from {least} to {most}");
        let number: u64 = self.take(field, &hint)?;
        if !(least..=most).contains(&number) {
            self.refuse(field, "is out of range", hint);
            return None;
        }
        Some(number)
    }

    /// The object in a field, to be read in turn; absent is empty.
    pub fn object(&mut self, field: &str) -> Self {
        let path = format!("{}{field}", self.path);
        match self.value(field) {
            None => Self::new(Map::new(), &path),
            Some(Value::Object(map)) => Self::new(map, &path),
            Some(_) => {
                self.refuse(field, "is not an object", "a JSON object");
                Self::new(Map::new(), &path)
            }
        }
    }

    /// Takes the names and values that are left.
    pub fn rest(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.map)
    }

    /// Refuses what was not read, but for what answers have beside a draft: consoles send whole answers back.
    pub fn finish(mut self, read_only: &[&str], known: &str) -> Vec<FieldError> {
        for field in self.rest().keys().filter(|field| !read_only.contains(&field.as_str())) {
            let shown: String = field.chars().take(60).collect();
            self.refuse(&shown, "is not a field here", known);
        }
        self.errors
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_wrong_is_named_by_its_path_and_no_value_is_repeated() {
        let Value::Object(map) =
            json!({"name": "", "n": 7, "config": {"to": "hunter2"}, "uuid": "x", "naem": 1})
        else {
            panic!("it is an object")
        };
        let mut fields = Fields::new(map, "");
        assert_eq!(fields.text("name", 10), None);
        assert_eq!(fields.number("n", 1, 5), None);
        let mut config = fields.object("config");
        assert_eq!(config.take::<Vec<String>>("to", "a list of addresses"), None);
        fields.errors.extend(config.finish(&[], ""));
        let errors = fields.finish(&["uuid"], "name, n, config");
        let named: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(named, ["name", "n", "config.to", "naem"]);
        assert!(!format!("{errors:?}").contains("hunter2"));
    }
}
