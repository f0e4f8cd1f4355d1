//! VOTable documents (VOTable 1.0 to 1.5) as TAP services send them: `TABLEDATA`, `BINARY` and `BINARY2`.
//!
//! Reads the first table of the results resource and the `QUERY_STATUS` before or after it (DALI 1.1, section 4.4).
//! Invariant: nothing outside the document is ever opened. A document type, an entity that is not XML's own, a `STREAM`
//! with an `href` or compressed: refused. Depth, columns and rows are limited; the size is limited by who fetches it.
//! How cells are encoded is in [`cell`]. Deliberately absent: links, groups, parameters, coordinate systems.

pub mod cell;

use base64::Engine as _;
use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use serde_json::Value;

use super::{Column, Table, TapError};
use cell::{Cursor, Field};

const MAX_DEPTH: usize = 64;
const MAX_COLUMNS: usize = 4096;

/// What the document says about the query (`INFO` named `QUERY_STATUS`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The document does not say; old services do so.
    Absent,
    Ok,
    /// The table was cut by a limit of the service.
    Overflow,
    /// The query failed, and why.
    Error(String),
}

/// A document: its status, and its table if it has one.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub status: Status,
    pub table: Option<Table>,
}

/// Reads a document. More than `max_rows` rows is [`TapError::Overflow`].
pub fn read(bytes: &[u8], max_rows: usize) -> Result<Document, TapError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| TapError::malformed(format!("not UTF-8 at byte {}", error.valid_up_to())))?;
    let mut reader = quick_xml::Reader::from_str(text.trim_start_matches('\u{feff}'));
    reader.config_mut().expand_empty_elements = true;
    let mut walk = Walk::new(max_rows);
    loop {
        match reader.read_event().map_err(|error| TapError::malformed(error.to_string()))? {
            Event::Start(element) => walk.open(&element)?,
            Event::End(_) => walk.close()?,
            Event::Text(content) => walk.text(&content.xml10_content()),
            Event::CData(content) => walk.text(&content.xml10_content()),
            Event::GeneralRef(reference) => match reference.resolve_char_ref() {
                Ok(Some(c)) => walk.text(c.encode_utf8(&mut [0; 4])),
                Ok(None) => {
                    let name = reference.into_inner();
                    let known = quick_xml::escape::resolve_xml_entity(&name)
                        .ok_or_else(|| TapError::malformed(format!("unknown entity `&{name};`")))?;
                    walk.text(known);
                }
                Err(error) => return Err(TapError::malformed(error.to_string())),
            },
            Event::DocType(_) => return Err(TapError::malformed("a document type is not accepted")),
            Event::Eof => break,
            // Empty elements arrive as a start and an end, as configured above.
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
    walk.finish()
}

/// How the rows of the table are written.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    Binary,
    Binary2,
}

struct Walk {
    max_rows: usize,
    /// Local names of the open elements.
    open: Vec<String>,
    seen_votable: bool,
    /// For each open resource, whether it holds results.
    resources: Vec<bool>,
    status: Status,
    /// The name and value of the `INFO` that is open.
    info: Option<(String, String)>,
    /// Text of the open `INFO`, `TD` or `STREAM`.
    buffer: Option<String>,
    in_table: bool,
    done: bool,
    fields: Vec<Field>,
    rows: Vec<Vec<Value>>,
    row: Vec<Value>,
    binary: Option<Rows>,
}

impl Walk {
    fn new(max_rows: usize) -> Self {
        Self {
            max_rows,
            open: Vec::new(),
            seen_votable: false,
            resources: Vec::new(),
            status: Status::Absent,
            info: None,
            buffer: None,
            in_table: false,
            done: false,
            fields: Vec::new(),
            rows: Vec::new(),
            row: Vec::new(),
            binary: None,
        }
    }

    fn parent(&self) -> &str {
        self.open.last().map_or("", String::as_str)
    }

    fn open(&mut self, element: &BytesStart<'_>) -> Result<(), TapError> {
        if self.open.len() == MAX_DEPTH {
            return Err(TapError::malformed(format!("more than {MAX_DEPTH} elements deep")));
        }
        let name = element.local_name().into_inner().to_owned();
        if self.open.is_empty() {
            if name != "VOTABLE" {
                return Err(TapError::malformed(format!("`{name}` is not a VOTable")));
            }
            self.seen_votable = true;
        }
        match name.as_str() {
            "RESOURCE" => {
                let kind = attribute(element, "type")?;
                self.resources.push(kind.as_deref() != Some("meta"));
            }
            "INFO" => {
                let name = attribute(element, "name")?.unwrap_or_default();
                self.info = Some((name, attribute(element, "value")?.unwrap_or_default()));
                self.buffer = Some(String::new());
            }
            "TABLE" if !self.done && self.resources.last().copied().unwrap_or(true) => self.in_table = true,
            "FIELD" if self.in_table && self.parent() == "TABLE" => {
                if self.fields.len() == MAX_COLUMNS {
                    return Err(TapError::malformed(format!("more than {MAX_COLUMNS} columns")));
                }
                let column = Column {
                    name: attribute(element, "name")?
                        .or(attribute(element, "ID")?)
                        .ok_or_else(|| TapError::malformed("a FIELD has no name"))?,
                    datatype: attribute(element, "datatype")?
                        .ok_or_else(|| TapError::malformed("a FIELD has no datatype"))?,
                    arraysize: attribute(element, "arraysize")?,
                    unit: attribute(element, "unit")?,
                };
                self.fields.push(Field::new(column)?);
            }
            "VALUES" if self.in_table && self.parent() == "FIELD" => {
                if let (Some(null), Some(field)) = (attribute(element, "null")?, self.fields.last_mut()) {
                    field.null = Some(null);
                }
            }
            "BINARY" if self.in_table => self.binary = Some(Rows::Binary),
            "BINARY2" if self.in_table => self.binary = Some(Rows::Binary2),
            "FITS" if self.in_table => return Err(TapError::malformed("tables within FITS are not read")),
            "STREAM" if self.in_table => {
                if attribute(element, "href")?.is_some_and(|href| !href.is_empty()) {
                    return Err(TapError::malformed("a STREAM elsewhere (href) is not followed"));
                }
                match attribute(element, "encoding")?.as_deref() {
                    Some("base64") => self.buffer = Some(String::new()),
                    other => {
                        let other = other.unwrap_or("none");
                        return Err(TapError::malformed(format!("STREAM encoding `{other}` is not read")));
                    }
                }
            }
            "TR" if self.in_table => self.row = Vec::with_capacity(self.fields.len()),
            "TD" if self.in_table => {
                if attribute(element, "encoding")?.is_some_and(|encoding| !encoding.is_empty()) {
                    return Err(TapError::malformed("an encoded TD is not read"));
                }
                self.buffer = Some(String::new());
            }
            _ => {}
        }
        self.open.push(name);
        Ok(())
    }

    fn text(&mut self, text: &str) {
        if let Some(buffer) = &mut self.buffer {
            buffer.push_str(text);
        }
    }

    fn close(&mut self) -> Result<(), TapError> {
        let Some(name) = self.open.pop() else { return Ok(()) };
        match name.as_str() {
            "RESOURCE" => {
                self.resources.pop();
            }
            "INFO" => {
                let text = self.buffer.take().unwrap_or_default();
                if let Some((name, value)) = self.info.take()
                    && name.eq_ignore_ascii_case("QUERY_STATUS")
                {
                    self.say(&value, text.trim());
                }
            }
            "TD" if self.in_table => {
                let text = self.buffer.take().unwrap_or_default();
                let field = self.fields.get(self.row.len()).ok_or_else(|| {
                    TapError::malformed(format!("row {} has too many cells", self.rows.len()))
                })?;
                let value = field.from_text(&text).map_err(|error| self.at_row(&error))?;
                self.row.push(value);
            }
            "TR" if self.in_table => {
                if self.row.len() != self.fields.len() {
                    let (has, wants) = (self.row.len(), self.fields.len());
                    return Err(self.at_row(&TapError::malformed(format!("{has} cells for {wants} columns"))));
                }
                let row = std::mem::take(&mut self.row);
                self.push(row)?;
            }
            "STREAM" if self.in_table => {
                let mut text = self.buffer.take().unwrap_or_default();
                text.retain(|c| !c.is_ascii_whitespace());
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .map_err(|error| TapError::malformed(format!("the STREAM: {error}")))?;
                self.binary_rows(&bytes)?;
            }
            "TABLE" if self.in_table => {
                self.in_table = false;
                self.done = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// An error is never taken back by a later status; an overflow replaces the `OK` before the table.
    fn say(&mut self, value: &str, text: &str) {
        let told = match value.to_ascii_uppercase().as_str() {
            "OK" => Status::Ok,
            "OVERFLOW" => Status::Overflow,
            "ERROR" => {
                Status::Error(if text.is_empty() { "no reason given".to_owned() } else { text.to_owned() })
            }
            other => Status::Error(format!("unknown QUERY_STATUS `{other}`")),
        };
        match (&self.status, &told) {
            (Status::Error(_), _) | (Status::Overflow, Status::Ok) => {}
            _ => self.status = told,
        }
    }

    fn binary_rows(&mut self, bytes: &[u8]) -> Result<(), TapError> {
        let rows = self.binary.ok_or_else(|| TapError::malformed("a STREAM outside BINARY and BINARY2"))?;
        let mut cursor = Cursor::new(bytes);
        while !cursor.is_empty() {
            let before = cursor.position();
            let nulls = match rows {
                Rows::Binary => Vec::new(),
                Rows::Binary2 => {
                    cursor.take(self.fields.len().div_ceil(8)).map_err(|e| self.at_row(&e))?.to_vec()
                }
            };
            let mut row = Vec::with_capacity(self.fields.len());
            for (index, field) in self.fields.iter().enumerate() {
                let value = field.from_binary(&mut cursor).map_err(|error| self.at_row(&error))?;
                let null = nulls.get(index / 8).is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0);
                row.push(if null { Value::Null } else { value });
            }
            if cursor.position() == before {
                return Err(TapError::malformed("rows without columns"));
            }
            self.push(row)?;
        }
        Ok(())
    }

    fn push(&mut self, row: Vec<Value>) -> Result<(), TapError> {
        if self.rows.len() == self.max_rows {
            return Err(TapError::Overflow { rows: self.max_rows });
        }
        self.rows.push(row);
        Ok(())
    }

    fn at_row(&self, error: &TapError) -> TapError {
        match error {
            TapError::Malformed { message } => {
                TapError::malformed(format!("row {}: {message}", self.rows.len()))
            }
            other => TapError::malformed(other.to_string()),
        }
    }

    fn finish(self) -> Result<Document, TapError> {
        if !self.seen_votable {
            return Err(TapError::malformed("an empty document"));
        }
        if let Some(name) = self.open.last() {
            return Err(TapError::malformed(format!("the document ends within `{name}`")));
        }
        let table = self.done.then(|| Table {
            columns: self.fields.into_iter().map(|field| field.column).collect(),
            rows: self.rows,
        });
        Ok(Document { status: self.status, table })
    }
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Result<Option<String>, TapError> {
    let found = element.try_get_attribute(name).map_err(|error| TapError::malformed(error.to_string()))?;
    found
        .map(|attribute| {
            attribute
                .normalized_value(XmlVersion::Implicit1_0)
                .map(std::borrow::Cow::into_owned)
                .map_err(|error| TapError::malformed(error.to_string()))
        })
        .transpose()
}
