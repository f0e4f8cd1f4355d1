//! A secret in whatever way a receiver escapes it when it repeats it: as in JSON, in an address or a form, in HTML. Which characters are
//! escaped differs from one library to the next, so each character is looked for in every way by itself.

use std::collections::BTreeSet;

use crate::sealing::REDACTED;

/// Less than so many characters of a secret are no beginning of it.
const BEGINNING: usize = 4;
/// HTML's names for characters that an escaper may name.
const NAMED: &[(char, &str)] = &[
    ('"', "&quot;"),
    ('&', "&amp;"),
    ('\'', "&apos;"),
    ('<', "&lt;"),
    ('>', "&gt;"),
    ('/', "&sol;"),
    ('+', "&plus;"),
    ('=', "&equals;"),
    (':', "&colon;"),
];

/// One character of a secret.
struct Character {
    plain: String,
    /// What stands for it where it is escaped; in these capitals are as good as small letters.
    escaped: Vec<String>,
}

impl Character {
    fn of(c: char) -> Self {
        let (mut buffer, mut units) = ([0; 4], [0; 2]);
        let bytes = c.encode_utf8(&mut buffer).bytes();
        let units = c.encode_utf16(&mut units).iter();
        let code = u32::from(c);
        let mut escaped = vec![
            bytes.map(|byte| format!("%{byte:02x}")).collect(),
            units.map(|unit| format!("\\u{unit:04x}")).collect(),
            format!("&#{code};"),
            format!("&#{code:03};"),
            format!("&#x{code:x};"),
            format!("&#x{code:04x};"),
        ];
        escaped.extend(c.is_ascii_punctuation().then(|| format!("\\{c}")));
        escaped.extend((c == ' ').then(|| "+".to_owned()));
        escaped.extend(NAMED.iter().filter(|(named, _)| *named == c).map(|(_, name)| (*name).to_owned()));
        Self { plain: c.to_string(), escaped }
    }

    /// How many bytes of the beginning of `text` may be this character.
    fn lengths(&self, text: &str) -> impl Iterator<Item = usize> {
        let plain = text.starts_with(&self.plain).then_some(self.plain.len());
        let begins = |form: &&String| {
            text.as_bytes().get(..form.len()).is_some_and(|has| has.eq_ignore_ascii_case(form.as_bytes()))
        };
        plain.into_iter().chain(self.escaped.iter().filter(begins).map(String::len))
    }

    /// Whether `text` is where it was cut off.
    fn is_begun_by(&self, text: &str) -> bool {
        let begun = |form: &String| {
            form.as_bytes().get(..text.len()).is_some_and(|has| has.eq_ignore_ascii_case(text.as_bytes()))
        };
        text.is_empty() || self.escaped.iter().any(begun)
    }
}

/// A secret to look for.
pub struct Escaped(Vec<Character>);

impl Escaped {
    pub fn of(secret: &str) -> Self {
        Self(secret.chars().map(Character::of).collect())
    }

    /// A text without it.
    pub fn out_of(&self, text: &str) -> String {
        let (mut left, mut rest) = (String::with_capacity(text.len()), text);
        while let Some(c) = rest.chars().next() {
            match self.length(rest) {
                Some(length) => {
                    left.push_str(REDACTED);
                    rest = &rest[length..];
                }
                None => {
                    left.push(c);
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        left
    }

    /// How many bytes it takes at the beginning of `text`, if it is there.
    fn length(&self, text: &str) -> Option<usize> {
        // A backslash, say, may be itself or escape what follows: every reading is followed.
        let mut ends = BTreeSet::from([0]);
        for character in &self.0 {
            ends =
                ends.iter().flat_map(|end| character.lengths(&text[*end..]).map(move |n| end + n)).collect();
            if ends.is_empty() {
                return None;
            }
        }
        ends.pop_last().filter(|length| *length > 0)
    }

    /// Where the secret begins that the end of `text` cuts off.
    pub fn begun_at_the_end_of(&self, text: &str) -> Option<usize> {
        text.char_indices().map(|(at, _)| at).find(|at| self.begins(&text[*at..]))
    }

    fn begins(&self, text: &str) -> bool {
        let mut ends = BTreeSet::from([0]);
        for (n, character) in self.0.iter().enumerate() {
            if n >= BEGINNING && ends.iter().any(|end| character.is_begun_by(&text[*end..])) {
                return true;
            }
            ends =
                ends.iter().flat_map(|end| character.lengths(&text[*end..]).map(move |n| end + n)).collect();
            if ends.is_empty() {
                return false;
            }
        }
        false
    }
}
