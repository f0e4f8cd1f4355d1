//! One cell of a VOTable: datatypes (VOTable 1.4, section 6), arrays (section 2.2), as text and as big-endian bytes.
//!
//! Invariant: the same value gives the same JSON in all three encodings, so that a service may change its encoding
//! without every discovery signature changing. That is why a `float` goes through `f32` also as text, and why an empty
//! string or array is NULL everywhere: `TABLEDATA` and `BINARY` cannot tell.

use serde_json::{Number, Value};

use super::super::{Column, TapError};

/// Longest array in one cell.
const MAX_ITEMS: usize = 16 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Boolean,
    Bit,
    UnsignedByte,
    Short,
    Int,
    Long,
    Char,
    UnicodeChar,
    Float,
    Double,
    FloatComplex,
    DoubleComplex,
}

impl Kind {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "boolean" => Self::Boolean,
            "bit" => Self::Bit,
            "unsignedByte" => Self::UnsignedByte,
            "short" => Self::Short,
            "int" => Self::Int,
            "long" => Self::Long,
            "char" => Self::Char,
            "unicodeChar" => Self::UnicodeChar,
            "float" => Self::Float,
            "double" => Self::Double,
            "floatComplex" => Self::FloatComplex,
            "doubleComplex" => Self::DoubleComplex,
            _ => return None,
        })
    }

    /// Bytes of one item; bits are packed, see [`Field::from_binary`].
    fn size(self) -> usize {
        match self {
            Self::Boolean | Self::Bit | Self::UnsignedByte | Self::Char => 1,
            Self::Short | Self::UnicodeChar => 2,
            Self::Int | Self::Float => 4,
            Self::Long | Self::Double | Self::FloatComplex => 8,
            Self::DoubleComplex => 16,
        }
    }

    fn is_text(self) -> bool {
        matches!(self, Self::Char | Self::UnicodeChar)
    }
}

/// How many items a cell has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    One,
    /// The fixed dimensions, fastest first; `variable` when one more of unknown length follows.
    Array {
        fixed: Vec<usize>,
        variable: bool,
    },
}

impl Shape {
    /// Reads an `arraysize`: `3`, `*`, `8*` (at most 8), `2x3`, `2x*`.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() || text == "1" {
            return Some(Self::One);
        }
        let mut parts: Vec<&str> = text.split('x').map(str::trim).collect();
        let variable = parts.last().is_some_and(|last| last.ends_with('*'));
        if variable {
            parts.pop(); // the bound of `8*` only limits
        }
        let fixed: Vec<usize> = parts.iter().map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let items = fixed.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
        (items <= MAX_ITEMS).then_some(Self::Array { fixed, variable })
    }
}

/// A column with what is needed to read its cells.
#[derive(Debug, Clone)]
pub struct Field {
    pub column: Column,
    /// `VALUES/@null`: the value that means NULL.
    pub null: Option<String>,
    kind: Kind,
    shape: Shape,
}

impl Field {
    pub fn new(column: Column) -> Result<Self, TapError> {
        let kind = Kind::parse(&column.datatype).ok_or_else(|| {
            TapError::malformed(format!("`{}` has datatype `{}`", column.name, column.datatype))
        })?;
        let size = column.arraysize.as_deref().unwrap_or_default();
        let shape = Shape::parse(size)
            .ok_or_else(|| TapError::malformed(format!("`{}` has arraysize `{size}`", column.name)))?;
        Ok(Self { column, null: None, kind, shape })
    }

    fn wrong(&self, what: &str) -> TapError {
        TapError::malformed(format!("`{}`: {what}", self.column.name))
    }

    /// The value of a `TD`.
    pub fn from_text(&self, text: &str) -> Result<Value, TapError> {
        if self.kind.is_text() {
            return Ok(self.strings(&text.chars().collect::<Vec<_>>()));
        }
        let text = text.trim();
        if text.is_empty() {
            return Ok(Value::Null);
        }
        let bad = |token: &str| self.wrong(&format!("`{token}` is not a {}", self.column.datatype));
        let items: Vec<Value> = match self.kind {
            Kind::Bit => text
                .chars()
                .filter(|c| !c.is_whitespace())
                .map(|c| match c {
                    '0' => Ok(Value::Bool(false)),
                    '1' => Ok(Value::Bool(true)),
                    other => Err(bad(&other.to_string())),
                })
                .collect::<Result<_, _>>()?,
            Kind::FloatComplex | Kind::DoubleComplex => {
                let parts: Vec<&str> = text.split_whitespace().collect();
                if !parts.len().is_multiple_of(2) {
                    return Err(self.wrong("an odd number of parts of complex numbers"));
                }
                parts
                    .chunks(2)
                    .map(|pair| {
                        let re = self.float(pair[0]).ok_or_else(|| bad(pair[0]))?;
                        let im = self.float(pair[1]).ok_or_else(|| bad(pair[1]))?;
                        Ok(complex(re, im))
                    })
                    .collect::<Result<_, TapError>>()?
            }
            _ => text
                .split_whitespace()
                .map(|token| self.scalar(token).ok_or_else(|| bad(token)))
                .collect::<Result<_, _>>()?,
        };
        self.arrange(items)
    }

    /// One token that is neither a bit, a complex number nor text.
    fn scalar(&self, token: &str) -> Option<Value> {
        match self.kind {
            Kind::Boolean => match token {
                "T" | "t" | "1" => Some(Value::Bool(true)),
                "F" | "f" | "0" => Some(Value::Bool(false)),
                "?" => Some(Value::Null),
                word if word.eq_ignore_ascii_case("true") => Some(Value::Bool(true)),
                word if word.eq_ignore_ascii_case("false") => Some(Value::Bool(false)),
                _ => None,
            },
            Kind::UnsignedByte => self.integer(token, 0, u8::MAX.into()),
            Kind::Short => self.integer(token, i16::MIN.into(), i16::MAX.into()),
            Kind::Int => self.integer(token, i32::MIN.into(), i32::MAX.into()),
            Kind::Long => self.integer(token, i64::MIN, i64::MAX),
            Kind::Float | Kind::Double => self.float(token).map(|value| self.number(value)),
            _ => None,
        }
    }

    fn integer(&self, token: &str, least: i64, most: i64) -> Option<Value> {
        let value = parse_integer(token)?;
        if self.is_null(value) {
            return Some(Value::Null);
        }
        (least..=most).contains(&value).then(|| Value::from(value))
    }

    fn is_null(&self, value: i64) -> bool {
        self.null.as_deref().and_then(parse_integer) == Some(value)
    }

    /// `float` parts are rounded to 32 bits, as they are in the binary encodings.
    fn float(&self, token: &str) -> Option<f64> {
        match self.kind {
            Kind::Float | Kind::FloatComplex => token.parse::<f32>().ok().map(f64::from),
            _ => token.parse().ok(),
        }
    }

    fn number(&self, value: f64) -> Value {
        let null = self.null.as_deref().and_then(|null| self.float(null.trim()));
        if null == Some(value) { Value::Null } else { number(value) }
    }

    /// The value at the cursor, which is left behind it.
    pub fn from_binary(&self, cursor: &mut Cursor<'_>) -> Result<Value, TapError> {
        let count = match &self.shape {
            Shape::One => 1,
            Shape::Array { fixed, variable } => {
                let items: usize = fixed.iter().product();
                // The length of a variable array counts its last dimension.
                let length = if *variable { cursor.length()? } else { 1 };
                items
                    .checked_mul(length)
                    .filter(|count| *count <= MAX_ITEMS)
                    .ok_or_else(|| self.wrong("too long"))?
            }
        };
        let bytes = if self.kind == Kind::Bit { count.div_ceil(8) } else { count * self.kind.size() };
        let bytes = cursor.take(bytes)?;
        match self.kind {
            Kind::Char => {
                let text = String::from_utf8_lossy(bytes);
                // Fixed sizes count bytes, which are characters for all but a few services.
                Ok(self.strings(&text.chars().collect::<Vec<_>>()))
            }
            Kind::UnicodeChar => {
                let units = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
                let text: Vec<char> =
                    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
                Ok(self.strings(&text))
            }
            // The first bit says it; some writers (astropy) set another one, and padding is zero.
            Kind::Bit if self.shape == Shape::One => Ok(Value::Bool(bytes[0] != 0)),
            Kind::Bit => {
                let bit = |index: usize| Value::Bool(bytes[index / 8] & (0x80 >> (index % 8)) != 0);
                self.arrange((0..count).map(bit).collect())
            }
            _ => self.arrange(bytes.chunks_exact(self.kind.size()).map(|item| self.item(item)).collect()),
        }
    }

    fn item(&self, bytes: &[u8]) -> Value {
        let integer = |value: i64| if self.is_null(value) { Value::Null } else { Value::from(value) };
        let f32_at = |at: usize| f64::from(f32::from_be_bytes(array(bytes, at)));
        let f64_at = |at: usize| f64::from_be_bytes(array(bytes, at));
        match self.kind {
            Kind::Boolean => match bytes[0] {
                b'T' | b't' | b'1' => Value::Bool(true),
                b'F' | b'f' | b'0' => Value::Bool(false),
                _ => Value::Null, // `?`, a space or zero
            },
            Kind::UnsignedByte => integer(bytes[0].into()),
            Kind::Short => integer(i16::from_be_bytes(array(bytes, 0)).into()),
            Kind::Int => integer(i32::from_be_bytes(array(bytes, 0)).into()),
            Kind::Long => integer(i64::from_be_bytes(array(bytes, 0))),
            Kind::Float => self.number(f32_at(0)),
            Kind::Double => self.number(f64_at(0)),
            Kind::FloatComplex => complex(f32_at(0), f32_at(4)),
            Kind::DoubleComplex => complex(f64_at(0), f64_at(8)),
            Kind::Bit | Kind::Char | Kind::UnicodeChar => Value::Null,
        }
    }

    /// Text, or a list of texts when there is a second dimension.
    fn strings(&self, text: &[char]) -> Value {
        let until_nul = |text: &[char]| -> String { text.iter().take_while(|c| **c != '\0').collect() };
        let one = |text: String| if text.is_empty() { Value::Null } else { Value::String(text) };
        match &self.shape {
            Shape::Array { fixed, variable } if fixed.len() + usize::from(*variable) > 1 && fixed[0] > 0 => {
                if text.is_empty() {
                    return Value::Null;
                }
                Value::Array(
                    text.chunks(fixed[0]).map(|part| one(until_nul(part).trim_end().to_owned())).collect(),
                )
            }
            _ => one(until_nul(text)),
        }
    }

    /// Items into the shape of the column: one, a list, or lists of lists with the fastest dimension innermost.
    fn arrange(&self, mut items: Vec<Value>) -> Result<Value, TapError> {
        match &self.shape {
            Shape::One if items.len() == 1 => Ok(items.remove(0)),
            Shape::One => Err(self.wrong(&format!("{} items where one belongs", items.len()))),
            Shape::Array { fixed, variable } => {
                let each: usize = fixed.iter().product();
                let fits = if *variable {
                    each > 0 && items.len().is_multiple_of(each)
                } else {
                    items.len() == each
                };
                if !fits {
                    return Err(self.wrong(&format!("{} items for an array", items.len())));
                }
                if items.is_empty() {
                    return Ok(Value::Null);
                }
                // All but the slowest dimension are folded; the slowest is what is left.
                let inner = if *variable { &fixed[..] } else { &fixed[..fixed.len() - 1] };
                for size in inner {
                    items = items.chunks(*size).map(|part| Value::Array(part.to_vec())).collect();
                }
                Ok(Value::Array(items))
            }
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn parse_integer(token: &str) -> Option<i64> {
    let token = token.trim();
    match token.strip_prefix("0x").or_else(|| token.strip_prefix("0X")) {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => token.parse().ok(),
    }
}

fn number(value: f64) -> Value {
    match Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => Value::Null,
        None => Value::from(if value > 0.0 { "+Inf" } else { "-Inf" }),
    }
}

fn complex(re: f64, im: f64) -> Value {
    if re.is_nan() || im.is_nan() { Value::Null } else { Value::Array(vec![number(re), number(im)]) }
}

/// Bytes of a stream, read from the front.
#[derive(Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], TapError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| TapError::malformed("the stream ends within the row"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn length(&mut self) -> Result<usize, TapError> {
        Ok(u32::from_be_bytes(array(self.take(4)?, 0)) as usize)
    }
}
