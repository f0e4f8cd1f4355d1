//! ADQL templates: a query text with `{variable}` places.
//!
//! Invariant: a value can never end the string it stands in, nor add a token to the query. So a place inside
//! `'…'` takes text with its single quotes doubled; a place outside takes a plain number and nothing else; a place in a
//! quoted name or a comment is refused when the template is read. `{{` and `}}` stand for braces.
//! Control characters and backslashes (an escape in some engines behind TAP) are refused in every value.
//! Deliberately absent: any check that the query is ADQL; the service says that.

use std::collections::BTreeMap;

/// The variables of one query: name to value.
pub type Variables = BTreeMap<String, String>;

/// Longest value a place takes, in characters.
pub const MAX_VALUE: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A place within `'…'`.
    Quoted(String),
    /// A place outside any quotes.
    Bare(String),
}

/// A template that was read and found sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("a `{{` is not closed")]
    Unclosed,
    #[error("a `}}` stands alone")]
    StrayBrace,
    #[error("`{{{0}}}` is not a variable name")]
    BadName(String),
    #[error("a {0} is not closed")]
    Unterminated(&'static str),
    #[error("`{{{name}}}` stands in a {place}, where a value cannot be made safe")]
    Forbidden { name: String, place: &'static str },
    #[error("a query has one statement and no `;`")]
    Semicolon,
    #[error("a query starts with SELECT or WITH")]
    NotSelect,
}

/// Why a value cannot stand in a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("there is no variable `{0}`")]
    Unknown(String),
    #[error("`{0}` has a control character or a backslash")]
    Control(String),
    #[error("`{0}` is longer than {MAX_VALUE} characters")]
    TooLong(String),
    #[error("`{0}` stands outside quotes, where only a number may stand")]
    NotANumber(String),
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Open,
    Quoted,
    Name,
    Comment,
}

impl Template {
    /// Reads a template; what is wrong first is said.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut run = String::new();
        let mut place = Place::Open;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' if chars.peek() == Some(&'{') => {
                    chars.next();
                    run.push('{');
                    continue;
                }
                '}' if chars.peek() == Some(&'}') => {
                    chars.next();
                    run.push('}');
                    continue;
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(inner) if inner != '{' && inner != '\n' => name.push(inner),
                            _ => return Err(TemplateError::Unclosed),
                        }
                    }
                    if !is_name(&name) {
                        return Err(TemplateError::BadName(name));
                    }
                    let piece = match place {
                        Place::Quoted => Piece::Quoted(name),
                        Place::Open => Piece::Bare(name),
                        Place::Name => return Err(TemplateError::Forbidden { name, place: "quoted name" }),
                        Place::Comment => return Err(TemplateError::Forbidden { name, place: "comment" }),
                    };
                    pieces.push(Piece::Text(std::mem::take(&mut run)));
                    pieces.push(piece);
                    continue;
                }
                '}' => return Err(TemplateError::StrayBrace),
                _ => {}
            }
            place = match (place, c) {
                (Place::Open, '\'') => Place::Quoted,
                (Place::Open, '"') => Place::Name,
                (Place::Open, ';') => return Err(TemplateError::Semicolon),
                (Place::Open, '-') if chars.peek() == Some(&'-') => Place::Comment,
                // A doubled quote closes and opens again, which comes to the same.
                (Place::Quoted, '\'') | (Place::Name, '"') | (Place::Comment, '\n') => Place::Open,
                (same, _) => same,
            };
            run.push(c);
        }
        match place {
            Place::Quoted => return Err(TemplateError::Unterminated("string")),
            Place::Name => return Err(TemplateError::Unterminated("quoted name")),
            Place::Open | Place::Comment => {}
        }
        pieces.push(Piece::Text(run));
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        let template = Self { pieces };
        if template.starts_a_query() { Ok(template) } else { Err(TemplateError::NotSelect) }
    }

    fn starts_a_query(&self) -> bool {
        let Some(Piece::Text(text)) = self.pieces.first() else { return false };
        let word: String = text.trim_start().chars().take_while(char::is_ascii_alphabetic).collect();
        word.eq_ignore_ascii_case("select") || word.eq_ignore_ascii_case("with")
    }

    /// The names of the variables, each once, in order of appearance.
    pub fn variables(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for piece in &self.pieces {
            if let Piece::Quoted(name) | Piece::Bare(name) = piece
                && !names.contains(&name.as_str())
            {
                names.push(name);
            }
        }
        names
    }

    /// The query with every place filled.
    pub fn render(&self, variables: &Variables) -> Result<String, ValueError> {
        let mut query = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => query.push_str(text),
                Piece::Quoted(name) => {
                    let value = variables.get(name).ok_or_else(|| ValueError::Unknown(name.clone()))?;
                    query.push_str(&quoted(name, value)?);
                }
                Piece::Bare(name) => {
                    let value = variables.get(name).ok_or_else(|| ValueError::Unknown(name.clone()))?;
                    // `- -1` is a number; `--1` would begin a comment.
                    if !is_number(value) || (value.starts_with('-') && query.ends_with('-')) {
                        return Err(ValueError::NotANumber(name.clone()));
                    }
                    query.push_str(value);
                }
            }
        }
        Ok(query)
    }

    /// The query as far as the variables are known; the other places stay as `{name}`. For people to read.
    pub fn preview(&self, variables: &Variables) -> Result<String, ValueError> {
        let mut query = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Quoted(name) | Piece::Bare(name) if !variables.contains_key(name) => {
                    query.push_str(&format!("{{{name}}}"));
                }
                known => {
                    query.push_str(&Self { pieces: vec![known.clone()] }.render(variables)?);
                }
            }
        }
        Ok(query)
    }
}

/// A value for a place within quotes: single quotes doubled, nothing in it that an engine could read otherwise.
fn quoted(name: &str, value: &str) -> Result<String, ValueError> {
    if value.chars().count() > MAX_VALUE {
        return Err(ValueError::TooLong(name.to_owned()));
    }
    if value.chars().any(|c| c.is_control() || c == '\\') {
        return Err(ValueError::Control(name.to_owned()));
    }
    Ok(value.replace('\'', "''"))
}

/// Whether a text may be a variable's name: a letter or `_`, then letters, digits and `_`, all ASCII.
pub fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.len() <= 40 && all_digits(whole) && all_digits(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(value: &str) -> Variables {
        Variables::from([("v".to_owned(), value.to_owned())])
    }

    #[test]
    fn a_quote_in_a_value_is_doubled() {
        let template = Template::parse("SELECT * FROM t WHERE name = '{v}'").unwrap();
        assert_eq!(
            template.render(&with("O'Neil's field é")).unwrap(),
            "SELECT * FROM t WHERE name = 'O''Neil''s field é'"
        );
        assert_eq!(
            template.render(&with("' OR 1=1 --")).unwrap(),
            "SELECT * FROM t WHERE name = ''' OR 1=1 --'"
        );
    }

    #[test]
    fn outside_quotes_only_a_number_may_stand() {
        let template = Template::parse("SELECT * FROM t WHERE id = {v}").unwrap();
        for good in ["34275", "-1", "0.45", "-21.05"] {
            assert!(template.render(&with(good)).unwrap().ends_with(good));
        }
        for bad in ["", "x", "1 OR 1=1", "1;", "1e5", "0x1", "--1", "1.", ".5", "NULL"] {
            assert_eq!(template.render(&with(bad)), Err(ValueError::NotANumber("v".into())), "{bad}");
        }
    }

    #[test]
    fn a_negative_number_cannot_make_a_comment() {
        let template = Template::parse("SELECT a -{v} FROM t").unwrap();
        assert!(template.render(&with("-1")).is_err());
        assert!(template.render(&with("1")).is_ok());
    }

    #[test]
    fn control_characters_backslashes_and_endless_values_are_refused() {
        let template = Template::parse("SELECT '{v}'").unwrap();
        for bad in ["a\nb", "a\0", "\u{7f}", "a\\"] {
            assert_eq!(template.render(&with(bad)), Err(ValueError::Control("v".into())));
        }
        assert_eq!(template.render(&with(&"x".repeat(1025))), Err(ValueError::TooLong("v".into())));
    }

    #[test]
    fn a_variable_that_is_not_given_is_named() {
        let template = Template::parse("SELECT '{v}', {w}, '{v}'").unwrap();
        assert_eq!(template.variables(), ["v", "w"]);
        assert_eq!(template.render(&with("x")), Err(ValueError::Unknown("w".into())));
        assert_eq!(template.preview(&with("x")).unwrap(), "SELECT 'x', {w}, 'x'");
    }

    #[test]
    fn a_template_that_cannot_be_made_safe_is_refused() {
        use TemplateError::*;
        for (text, error) in [
            ("SELECT \"{v}\" FROM t", Forbidden { name: "v".into(), place: "quoted name" }),
            ("SELECT 1 -- {v}", Forbidden { name: "v".into(), place: "comment" }),
            ("SELECT '{v}", Unterminated("string")),
            ("SELECT \"a", Unterminated("quoted name")),
            ("SELECT {v", Unclosed),
            ("SELECT v}", StrayBrace),
            ("SELECT '{a b}'", BadName("a b".into())),
            ("SELECT 1; DROP TABLE t", Semicolon),
            ("DELETE FROM t", NotSelect),
            ("{v}", NotSelect),
        ] {
            assert_eq!(Template::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn quotes_in_a_quoted_name_and_doubled_quotes_do_not_confuse() {
        let template =
            Template::parse("SELECT * FROM \"VIII/73/o'hicat\" WHERE a = 'it''s {v}' AND b = '{{'").unwrap();
        assert_eq!(
            template.render(&with("x'y")).unwrap(),
            "SELECT * FROM \"VIII/73/o'hicat\" WHERE a = 'it''s x''y' AND b = '{'"
        );
    }

    proptest! {
        /// Whatever the value, the query has the tokens of the template: the value stays within its string.
        #[test]
        fn no_value_leaves_its_string(value in "\\PC{0,40}") {
            let template = Template::parse("SELECT 1 WHERE a = '{v}' AND b = 'end'").unwrap();
            if let Ok(query) = template.render(&with(&value)) {
                let mut strings = Vec::new();
                let mut chars = query.chars().peekable();
                while let Some(c) = chars.next() {
                    if c == '\'' {
                        let mut text = String::new();
                        loop {
                            match chars.next().expect("a string ends") {
                                '\'' if chars.peek() == Some(&'\'') => { chars.next(); text.push('\''); }
                                '\'' => break,
                                other => text.push(other),
                            }
                        }
                        strings.push(text);
                    }
                }
                prop_assert_eq!(strings, vec![value, "end".to_owned()]);
            }
        }
    }
}
