//! `$count(path)` and `$sum(path)`: numbers taken from the manifest, so that graph and manifest cannot disagree.
//!
//! A path such as `sbids[].datasets[]` starts at each source, `[]` goes into every item of a list, and what is found is
//! added up over all sources. Only what is there is counted: a name that is missing, a list that is none and a value that
//! cannot be added are errors, never zero.

use std::fmt;

use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Count,
    Sum,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    name: String,
    each: bool,
}

/// A function over a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    function: Function,
    path: Vec<Segment>,
}

/// Why a number cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    #[error("`{0}` is neither $count(path) nor $sum(path)")]
    Syntax(String),
    #[error("`{0}` is not a path like sbids[].datasets[]")]
    Path(String),
    #[error("$count needs a path that ends with []: `{0}`")]
    NotAList(String),
    #[error("the manifest has no `{0}`")]
    Missing(String),
    #[error("`{0}` is not a list in the manifest")]
    Unlisted(String),
    #[error("`{path}` has {value}, which cannot be added")]
    NotANumber { path: String, value: String },
    #[error("the sum of `{0}` is too large")]
    TooLarge(String),
}

impl Expression {
    /// The expression in a patch's value; a value that does not start with `$` is a literal and has none.
    pub fn parse(value: &Value) -> Result<Option<Self>, CountError> {
        let Some(text) = value.as_str().filter(|text| text.starts_with('$')) else { return Ok(None) };
        let syntax = || CountError::Syntax(text.to_owned());
        let (function, rest) = text[1..].split_once('(').ok_or_else(syntax)?;
        let path = rest.strip_suffix(')').ok_or_else(syntax)?.trim();
        let function = match function.trim() {
            "count" => Function::Count,
            "sum" => Function::Sum,
            _ => return Err(syntax()),
        };
        let segments: Option<Vec<Segment>> = path
            .split('.')
            .map(|part| {
                let (name, each) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
                let plain =
                    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
                plain.then(|| Segment { name: name.to_owned(), each })
            })
            .collect();
        let segments = segments.ok_or_else(|| CountError::Path(path.to_owned()))?;
        if function == Function::Count && !segments.last().is_some_and(|last| last.each) {
            return Err(CountError::NotAList(path.to_owned()));
        }
        Ok(Some(Self { function, path: segments }))
    }

    /// The first name of the path, which is a field of a source.
    pub fn root(&self) -> &str {
        self.path.first().map_or("", |segment| &segment.name)
    }

    /// The number for a manifest, over all its sources.
    pub fn evaluate(&self, manifest: &Value) -> Result<Value, CountError> {
        let sources = manifest.get("sources").and_then(Value::as_array);
        let sources = sources.ok_or_else(|| CountError::Missing("sources".to_owned()))?;
        let mut found = Vec::new();
        for source in sources {
            self.walk(source, &self.path, &mut found)?;
        }
        match self.function {
            Function::Count => Ok(Value::from(found.len())),
            Function::Sum => self.sum(&found),
        }
    }

    fn walk<'a>(
        &self,
        at: &'a Value,
        path: &[Segment],
        found: &mut Vec<&'a Value>,
    ) -> Result<(), CountError> {
        let Some((segment, rest)) = path.split_first() else {
            found.push(at);
            return Ok(());
        };
        let value = at.get(&segment.name).ok_or_else(|| CountError::Missing(self.path_text()))?;
        if !segment.each {
            return self.walk(value, rest, found);
        }
        let items = value.as_array().ok_or_else(|| CountError::Unlisted(segment.name.clone()))?;
        items.iter().try_for_each(|item| self.walk(item, rest, found))
    }

    /// Whole numbers add up to a whole number.
    fn sum(&self, found: &[&Value]) -> Result<Value, CountError> {
        let too_large = || CountError::TooLarge(self.path_text());
        let (mut whole, mut parts, mut fractional) = (0_i64, 0.0_f64, false);
        for value in found {
            match (value.as_i64(), value.as_f64()) {
                (Some(number), _) => whole = whole.checked_add(number).ok_or_else(too_large)?,
                (None, Some(number)) => {
                    fractional = true;
                    parts += number;
                }
                _ => {
                    return Err(CountError::NotANumber { path: self.path_text(), value: value.to_string() });
                }
            }
        }
        if !fractional {
            return Ok(Value::from(whole));
        }
        #[expect(clippy::cast_precision_loss, reason = "a sum with fractions is a float")]
        let sum = serde_json::Number::from_f64(whole as f64 + parts).ok_or_else(too_large)?;
        Ok(Value::Number(sum))
    }

    fn path_text(&self) -> String {
        let parts: Vec<String> = self
            .path
            .iter()
            .map(|segment| format!("{}{}", segment.name, if segment.each { "[]" } else { "" }))
            .collect();
        parts.join(".")
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = match self.function {
            Function::Count => "count",
            Function::Sum => "sum",
        };
        write!(f, "${function}({})", self.path_text())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn evaluate(expression: &str) -> Result<Value, CountError> {
        let manifest = json!({"sources": [
            {"weight": 2, "sbids": [{"datasets": [{"size": 3}, {"size": 4}]}, {"datasets": [{"size": 5}]}]},
            {"weight": 0.5, "sbids": [{"datasets": [{"size": 1}]}]},
        ]});
        Expression::parse(&json!(expression)).transpose().expect("an expression")?.evaluate(&manifest)
    }

    #[test]
    fn a_path_starts_at_each_source_and_adds_up() {
        assert_eq!(evaluate("$count(sbids[].datasets[])"), Ok(json!(4)));
        assert_eq!(evaluate("$count( sbids[] )"), Ok(json!(3)));
        assert_eq!(evaluate("$sum(sbids[].datasets[].size)"), Ok(json!(13)));
        assert_eq!(evaluate("$sum(weight)"), Ok(json!(2.5)));
        assert_eq!(Expression::parse(&json!("plain")), Ok(None));
        assert_eq!(Expression::parse(&json!(7)), Ok(None));
    }

    #[test]
    fn what_is_not_there_is_an_error_and_not_zero() {
        use CountError::*;
        for (expression, error) in [
            ("$count(sbids)", NotAList("sbids".into())),
            ("$count(beams[])", Missing("beams[]".into())),
            ("$count(weight[])", Unlisted("weight".into())),
            ("$sum(sbids[].datasets[].beam)", Missing("sbids[].datasets[].beam".into())),
            (
                "$sum(sbids[].datasets[])",
                NotANumber { path: "sbids[].datasets[]".into(), value: "{\"size\":3}".into() },
            ),
            ("$mean(weight)", Syntax("$mean(weight)".into())),
            ("$count(sbids[]", Syntax("$count(sbids[]".into())),
            ("$count", Syntax("$count".into())),
            ("$count()", Path(String::new())),
            ("$count(sbids[0])", Path("sbids[0]".into())),
            ("$count(a..b[])", Path("a..b[]".into())),
        ] {
            assert_eq!(evaluate(expression), Err(error), "{expression}");
        }
    }
}
