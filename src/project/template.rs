//! Text templates of the manifest: `{field}`, `{flags.name}`, `{{` and `}}` for braces.
//!
//! A template that is one place and nothing else keeps the type of its value (a number stays a number, `null` stays
//! `null`); within text a value is its text and `null` is empty. Lists and objects are templates all the way down.

use serde_json::{Map, Value};

use super::transforms::text_of;

/// One piece of a template text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Place(String),
}

/// Why a template text cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("a `{{` is not closed")]
    Unclosed,
    #[error("a `}}` stands alone")]
    StrayBrace,
    #[error("`{{{0}}}` is not a field name")]
    BadName(String),
    #[error("there is no field `{0}`")]
    Unknown(String),
}

fn parse(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut run = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.peek() == Some(&c) => {
                chars.next();
                run.push(c);
            }
            '{' => {
                let mut name = String::new();
                loop {
                    match chars.next() {
                        Some('}') => break,
                        Some(inner) if inner != '{' => name.push(inner),
                        _ => return Err(TemplateError::Unclosed),
                    }
                }
                if name.is_empty() || name.split('.').any(|part| part.is_empty() || part.trim() != part) {
                    return Err(TemplateError::BadName(name));
                }
                if !run.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut run)));
                }
                pieces.push(Piece::Place(name));
            }
            '}' => return Err(TemplateError::StrayBrace),
            other => run.push(other),
        }
    }
    if !run.is_empty() {
        pieces.push(Piece::Text(run));
    }
    Ok(pieces)
}

/// The places of a template value, each as often as it appears.
pub fn places(template: &Value) -> Result<Vec<String>, TemplateError> {
    match template {
        Value::String(text) => Ok(parse(text)?
            .into_iter()
            .filter_map(|piece| match piece {
                Piece::Place(name) => Some(name),
                Piece::Text(_) => None,
            })
            .collect()),
        Value::Array(items) => collect(items.iter()),
        Value::Object(map) => collect(map.values()),
        _ => Ok(Vec::new()),
    }
}

fn collect<'a>(values: impl Iterator<Item = &'a Value>) -> Result<Vec<String>, TemplateError> {
    Ok(values.map(places).collect::<Result<Vec<_>, _>>()?.concat())
}

/// The template with every place filled from `lookup`, which says `None` for a field that does not exist.
pub fn fill<F>(template: &Value, lookup: &F) -> Result<Value, TemplateError>
where
    F: Fn(&str) -> Option<Value>,
{
    let find = |name: &str| lookup(name).ok_or_else(|| TemplateError::Unknown(name.to_owned()));
    match template {
        Value::String(text) => {
            let pieces = parse(text)?;
            if let [Piece::Place(name)] = pieces.as_slice() {
                return find(name);
            }
            let mut out = String::new();
            for piece in pieces {
                match piece {
                    Piece::Text(text) => out.push_str(&text),
                    Piece::Place(name) => out.push_str(&text_of(&find(&name)?).unwrap_or_default()),
                }
            }
            Ok(Value::String(out))
        }
        Value::Array(items) => items.iter().map(|item| fill(item, lookup)).collect(),
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, item) in map {
                out.insert(key.clone(), fill(item, lookup)?);
            }
            Ok(Value::Object(out))
        }
        scalar => Ok(scalar.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lookup(name: &str) -> Option<Value> {
        match name {
            "sbid" => Some(json!("34275")),
            "size" => Some(json!(12)),
            "flags.vsys" => Some(Value::Null),
            _ => None,
        }
    }

    #[test]
    fn a_place_alone_keeps_its_type() {
        let template =
            json!({"a": "{size}", "b": ["SB{sbid}", "{flags.vsys}"], "c": "v={flags.vsys}{{}}", "d": 1});
        assert_eq!(
            fill(&template, &lookup).unwrap(),
            json!({"a": 12, "b": ["SB34275", null], "c": "v={}", "d": 1})
        );
        assert_eq!(places(&template).unwrap(), ["size", "sbid", "flags.vsys", "flags.vsys"]);
    }

    #[test]
    fn an_unknown_field_is_an_error_and_not_empty() {
        assert_eq!(fill(&json!("{nothing}"), &lookup), Err(TemplateError::Unknown("nothing".into())));
        assert_eq!(places(&json!("{a")), Err(TemplateError::Unclosed));
        assert_eq!(places(&json!("a}")), Err(TemplateError::StrayBrace));
        assert_eq!(places(&json!("{}")), Err(TemplateError::BadName(String::new())));
        assert_eq!(places(&json!("{ a}")), Err(TemplateError::BadName(" a".into())));
    }
}
