//! **Templates** that channels have of their own: Jinja, by minijinja, of which only what cannot grow without bound is left.
//!
//! A template reads one message and nothing else: there are no files, no includes, no macros, no global functions. What it
//! writes, how much it computes and every text that a filter makes are bounded, and the operators and statements that could
//! build a large text in between are refused (`set`, `+`, `*`, `~` and their like). A name that is not there is an error and
//! not an empty text: a message that silently lacks its point is worse than a plain one.

use std::borrow::Cow;
use std::io;

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, filters, tests};

/// The longest template, in bytes.
pub const LONGEST: usize = 8 * 1024;
/// The longest text that one makes, in bytes, and the longest that a filter is given.
const MOST_WRITTEN: usize = 64 * 1024;
/// How many steps one may take.
const FUEL: u64 = 50_000;
/// The statements that there are.
const STATEMENTS: &[&str] = &["if", "elif", "else", "endif", "for", "endfor", "raw", "endraw"];

/// What a template's text becomes a part of: how values are written into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text for people: values as they are.
    Text,
    /// Slack's markup: in values `&`, `<` and `>` are escaped, so that no value mentions a channel or forges a link.
    Slack,
    /// JSON: a text is escaped for the inside of a JSON string, everything else is written as JSON.
    Json,
}

/// Whether a template can be used at all; the error says where it cannot.
pub fn check(template: &str) -> Result<(), String> {
    if template.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let mut begins = false;
    for token in tokenize(template, false, SyntaxConfig::default()) {
        let (token, span) = token.map_err(|error| said(&error))?;
        let refused = match &token {
            Token::Ident(word) if begins && !STATEMENTS.contains(word) => {
                Some(format!("there is no statement {word:?} here, but if and for"))
            }
            Token::Plus | Token::Mul | Token::Pow | Token::Tilde => {
                Some("there is no +, *, ** or ~ here: write values one after the other".to_owned())
            }
            _ => None,
        };
        if let Some(refused) = refused {
            return Err(format!("line {}: {refused}", span.start_line));
        }
        begins = matches!(token, Token::BlockStart);
    }
    environment(Kind::Text).template_from_str(template).map(drop).map_err(|error| said(&error))
}

/// What a template makes of a message.
pub fn render(template: &str, kind: Kind, message: &serde_json::Value) -> Result<String, String> {
    check(template)?;
    let environment = environment(kind);
    let template = environment.template_from_str(template).map_err(|error| said(&error))?;
    let mut written = Bounded(vec![]);
    template.render_captured_to(Value::from(Serde(message)), &mut written).map_err(|error| said(&error))?;
    String::from_utf8(written.0).map_err(|error| error.to_string())
}

/// What an error says to somebody who sees the template, and nothing of the values.
fn said(error: &Error) -> String {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    match error.kind() {
        ErrorKind::UndefinedError => {
            format!("{line}{what}; what may be absent is written as in labels.team | default(\"nobody\")")
        }
        ErrorKind::OutOfFuel => format!("{line}it takes more than {FUEL} steps"),
        ErrorKind::WriteFailure => format!("it makes more than {MOST_WRITTEN} bytes"),
        _ => format!("{line}{what}"),
    }
}

/// A text that does not become longer than it may.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_WRITTEN {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn environment(kind: Kind) -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(50);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(move |out, state, value| {
        if value.is_undefined() {
            return minijinja::escape_formatter(out, state, value);
        }
        // What somebody made safe with tojson stays as it is.
        let text = match kind {
            _ if value.is_safe() => Cow::Owned(value.to_string()),
            Kind::Text => Cow::Owned(value.to_string()),
            Kind::Slack => Cow::Owned(escaped_for_slack(&value.to_string())),
            Kind::Json => Cow::Owned(escaped_for_json(value)?),
        };
        out.write_str(&text).map_err(|_| Error::from(ErrorKind::WriteFailure))
    });
    add_filters(&mut environment);
    environment.add_test("defined", tests::is_defined);
    environment.add_test("undefined", tests::is_undefined);
    environment.add_test("none", tests::is_none);
    environment.add_test("string", tests::is_string);
    environment
}

/// What Slack takes for markup.
pub fn escaped_for_slack(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn escaped_for_json(value: &Value) -> Result<String, Error> {
    let written = serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let text = value.as_str().and(written.strip_prefix('"')).and_then(|text| text.strip_suffix('"'));
    Ok(text.map(str::to_owned).unwrap_or(written))
}

/// A text that a filter may be given.
fn bounded(text: &str) -> Result<&str, Error> {
    if text.len() <= MOST_WRITTEN {
        return Ok(text);
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("a text of more than {MOST_WRITTEN} bytes")))
}

/// The filters: none makes a text that is much longer than the one that it was given, which is bounded.
fn add_filters(environment: &mut Environment<'static>) {
    type Text<'a> = Cow<'a, str>;
    environment.add_filter("upper", |text: Text<'_>| bounded(&text).map(str::to_uppercase));
    environment.add_filter("lower", |text: Text<'_>| bounded(&text).map(str::to_lowercase));
    environment.add_filter("trim", |text: Text<'_>| bounded(&text).map(|text| text.trim().to_owned()));
    environment.add_filter("title", |text: Text<'_>| bounded(&text).map(|text| filters::title(text.into())));
    environment.add_filter("truncate", |text: Text<'_>, most: Option<usize>| {
        bounded(&text).map(|text| shortened(text, most.unwrap_or(255)))
    });
    environment.add_filter("join", join);
    environment.add_filter("tojson", |value: &Value| {
        let written = serde_json::to_string(value)
            .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
        bounded(&written).map(|written| Value::from_safe_string(written.to_owned()))
    });
    environment.add_filter("default", filters::default);
    environment.add_filter("length", filters::length);
    environment.add_filter("first", filters::first);
    environment.add_filter("last", filters::last);
    environment.add_filter("round", filters::round);
    environment.add_filter("items", filters::items);
    environment.add_filter("dictsort", filters::dictsort);
}

/// The first `most` characters of a text, with a mark if there were more.
pub fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept = text.chars().take(most.saturating_sub(1));
    kept.chain(Some('…').filter(|_| most > 0)).collect()
}

fn join(values: &Value, by: Option<Cow<'_, str>>) -> Result<String, Error> {
    let (mut joined, by) = (String::new(), by.as_deref().unwrap_or_default());
    for (n, value) in values.try_iter()?.enumerate() {
        if n > 0 {
            joined.push_str(by);
        }
        joined.push_str(&value.to_string());
        bounded(&joined)?;
    }
    Ok(joined)
}

#[cfg(test)]
mod tests_of_templates {
    use serde_json::json;

    use super::*;

    fn message() -> serde_json::Value {
        json!({
            "alert": "backlog", "severity": "critical", "summary": "61 \"sources\" <wait> & more", "n": 61,
            "labels": {"project_module": "p", "team": "ops"}, "source_identifiers": ["A", "B"], "late": true,
        })
    }

    fn text(template: &str) -> Result<String, String> {
        render(template, Kind::Text, &message())
    }

    #[test]
    fn a_template_says_what_the_message_has() {
        let template = "{% if severity == \"critical\" %}!{% endif %}{{ alert|upper }}: \
                        {% for s in source_identifiers %}{{ s }}{% if not loop.last %}, {% endif %}{% endfor %} \
                        {{ labels.shift | default(\"day\") }} {{ source_identifiers | join(\"+\") }} {{ n }}";
        assert_eq!(text(template).unwrap(), "!BACKLOG: A, B day A+B 61");
        assert_eq!(
            text("{% for k, v in labels|items %}{{ k }}={{ v }};{% endfor %}").unwrap(),
            "project_module=p;team=ops;"
        );
        assert_eq!(text("{{ summary | truncate(5) }}").unwrap(), "61 \"…");
    }

    #[test]
    fn a_value_cannot_leave_the_place_that_it_is_written_to() {
        let slack = render("*{{ summary }}* <https://a.example|here>", Kind::Slack, &message()).unwrap();
        assert_eq!(slack, "*61 \"sources\" &lt;wait&gt; &amp; more* <https://a.example|here>");
        let template =
            r#"{"text": "{{ summary }}", "n": {{ n }}, "all": {{ labels }}, "s": {{ summary|tojson }}}"#;
        let made: serde_json::Value =
            serde_json::from_str(&render(template, Kind::Json, &message()).unwrap()).unwrap();
        assert_eq!((&made["text"], &made["n"]), (&message()["summary"], &json!(61)));
        assert_eq!((&made["all"], &made["s"]), (&message()["labels"], &message()["summary"]));
    }

    #[test]
    fn what_is_not_there_is_an_error_that_says_what_to_write() {
        for template in
            ["{{ summery }}", "a\n{{ labels.nobody }}", "{{ a.b.c }}", "{% for x in nothing %}{% endfor %}"]
        {
            let error = text(template).unwrap_err();
            assert!(error.contains("default(") && error.contains("line"), "{template}: {error}");
        }
    }

    #[test]
    fn a_template_that_cannot_be_used_is_refused_with_its_line() {
        for (template, word) in [
            ("{{ alert", "line 1"),
            ("a\n{% if %}", "line 2"),
            ("{{ alert | shout }}", "shout"),
            ("{% set a = alert %}", "no statement \"set\""),
            ("{%- macro a() %}{% endmacro %}", "no statement \"macro\""),
            ("{% include \"/etc/passwd\" %}", "no statement \"include\""),
            ("{% filter upper %}{% endfilter %}", "no statement \"filter\""),
            ("{{ alert ~ alert }}", "one after the other"),
            ("{{ \"x\" * 1000000 }}", "one after the other"),
            ("{{ [1] + [2] }}", "one after the other"),
        ] {
            let error = check(template).err().or_else(|| text(template).err()).unwrap();
            assert!(error.contains(word), "{template}: {error}");
        }
        assert!(check(&"x".repeat(LONGEST + 1)).unwrap_err().contains("bytes"));
    }

    #[test]
    fn a_template_that_would_not_end_or_grow_without_bound_is_cut_off() {
        let nested = |depth: usize| {
            let open = "{% for a in \"0123456789\" %}".repeat(depth);
            format!("{open}x{}", "{% endfor %}".repeat(depth))
        };
        assert_eq!(text(&nested(2)).unwrap().len(), 100);
        let error = text(&nested(7)).unwrap_err();
        assert!(error.contains("steps") || error.contains("bytes"), "{error}");
        let long = "y".repeat(6000);
        let error = text(&format!("{{% for a in \"0123456789abcdef\" %}}{long}{{% endfor %}}")).unwrap_err();
        assert!(error.contains("bytes"), "{error}");
        // Each of them would double, or square, what it is given.
        let doubled = format!("{{{{ \"\\\\\"{} }}}}", "|tojson".repeat(40));
        let began = std::time::Instant::now();
        assert!(text(&doubled).unwrap_err().contains("bytes"));
        let squared = "(\"0123456789\"|join(\"0123456789\"))";
        let squared = format!("({squared}|join({squared}))");
        assert!(text(&format!("{{{{ {squared}|join({squared})|length }}}}")).unwrap_err().contains("bytes"));
        assert!(began.elapsed().as_secs() < 5);
    }
}
