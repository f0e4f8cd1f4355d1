//! Writes families in Prometheus' text format (version 0.0.4), for what is not kept in a registry.

use std::fmt::Write;

/// The text of an HTTP status, without making a string for every request.
pub fn status_word(status: u16) -> &'static str {
    macro_rules! words {
        ($($code:literal)*) => {
            match status {
                $($code => stringify!($code),)*
                100..=199 => "1xx",
                200..=299 => "2xx",
                300..=399 => "3xx",
                400..=499 => "4xx",
                _ => "5xx",
            }
        };
    }
    words!(200 201 202 204 304 400 401 403 404 405 406 408 409 410 412 413 415 422 429 500 502 503 504)
}

/// What a family is.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    Counter,
    Gauge,
}

/// Text that grows family by family.
#[derive(Debug, Default)]
pub struct Text(pub String);

impl Text {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &'static str, kind: Type, help: &str) -> Family<'_> {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
        };
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }
}

/// A family that is being written.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.name);
        for (i, (label, content)) in labels.iter().enumerate() {
            self.text.push(if i == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            escape(self.text, content);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// As the format says; and braces become parentheses, because simple clients end a label set at the first `}`.
fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            '{' => text.push('('),
            '}' => text.push(')'),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_written_as_the_format_says() {
        let mut text = Text::default();
        let mut family = text.family("beampipe_x", Type::Gauge, "An x.");
        family.sample(&[], 1.0);
        family.sample(&[("a", "1\"\\}\n"), ("b", "2")], 0.5);
        assert_eq!(
            text.0,
            "# HELP beampipe_x An x.\n# TYPE beampipe_x gauge\nbeampipe_x 1\nbeampipe_x{a=\"1\\\"\\\\)\\n\",b=\"2\"} 0.5\n"
        );
    }
}
