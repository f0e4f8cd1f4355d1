//! Reads `text/event-stream` (WHATWG HTML, section 9.2.6): bytes in, whole messages out.
//!
//! Pure: it owns what of a message has arrived and knows nothing of connections. A message whose blank line never came is
//! dropped with the parser, as the standard asks, so a reader that goes on after the last whole id misses nothing.

/// A message as it was dispatched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The last id seen on the stream up to and including this message.
    pub id: Option<String>,
    /// Empty for the default type.
    pub event: String,
    pub data: String,
}

/// The state of one stream.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// Whether the last byte was a CR, after which an LF belongs to the same line end.
    after_cr: bool,
    begun: bool,
    last_id: Option<String>,
    event: String,
    data: Option<String>,
}

impl Parser {
    /// Takes the next bytes; `message` hears of every message they complete.
    pub fn feed(&mut self, bytes: &[u8], mut message: impl FnMut(Message)) {
        for &byte in bytes {
            match byte {
                b'\n' if self.after_cr => self.after_cr = false,
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    if let Some(whole) = self.end_line(&line) {
                        message(whole);
                    }
                }
                _ => {
                    self.after_cr = false;
                    self.line.push(byte);
                }
            }
        }
    }

    fn end_line(&mut self, line: &[u8]) -> Option<Message> {
        // One leading byte order mark is not part of the stream.
        let line = if std::mem::replace(&mut self.begun, true) {
            line
        } else {
            line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
        };
        let line = String::from_utf8_lossy(line);
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = match line.split_once(':') {
            Some((field, value)) => (field, value.strip_prefix(' ').unwrap_or(value)),
            None => (&*line, ""),
        };
        match field {
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.event),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // A comment (an empty field name), `retry`, and whatever else: nothing of it is for us.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Message> {
        let event = std::mem::take(&mut self.event);
        let data = self.data.take()?;
        Some(Message { id: self.last_id.clone(), event, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<Message> {
        let (mut parser, mut messages) = (Parser::default(), vec![]);
        for chunk in chunks {
            parser.feed(chunk, |message| messages.push(message));
        }
        messages
    }

    const STREAM: &[u8] =
        b": beat\n\nid: 7-00ff\nevent: source.registered\ndata: {\"a\":\ndata: 1}\n\nid: 8-11aa\ndata: x\n\n";

    #[test]
    fn fields_comments_and_lines_of_data_are_read() {
        let messages = parse(&[STREAM]);
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0].id.as_deref(), Some("7-00ff"));
        assert_eq!(messages[0].event, "source.registered");
        assert_eq!(messages[0].data, "{\"a\":\n1}");
        assert_eq!((messages[1].event.as_str(), messages[1].data.as_str()), ("", "x"));
    }

    #[test]
    fn where_the_bytes_were_cut_makes_no_difference() {
        for cut in 0..STREAM.len() {
            assert_eq!(parse(&[&STREAM[..cut], &STREAM[cut..]]), parse(&[STREAM]), "cut at {cut}");
        }
    }

    #[test]
    fn every_line_end_of_the_standard_ends_a_line() {
        let expected = parse(&[b"id: 1\ndata: a\n\ndata: b\n\n"]);
        assert_eq!(parse(&[b"id: 1\r\ndata: a\r\n\r\ndata: b\r\n\r\n"]), expected);
        assert_eq!(parse(&[b"id: 1\rdata: a\r\rdata: b\r\r"]), expected);
    }

    #[test]
    fn a_message_that_was_cut_off_is_not_delivered() {
        assert_eq!(parse(&[b"id: 1\ndata: a\n\nid: 2\ndata: half"]).len(), 1);
    }

    #[test]
    fn an_id_without_data_is_no_message_but_counts_for_the_next() {
        let messages = parse(&[b"id: 5\n\ndata: a\n\n"]);
        assert_eq!(messages, [Message { id: Some("5".into()), event: String::new(), data: "a".into() }]);
    }
}
