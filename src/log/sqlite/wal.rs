//! Reads SQLite's write-ahead log before SQLite does, to find what SQLite would pass over in silence.
//!
//! Format: <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>. Each frame's checksum goes on from the frame
//! before; recovery stops at the first that fails and forgets the rest. A transaction that was cut off while it was
//! written ends the file and was never acknowledged: that is no damage. A failing frame with a *later* transaction
//! behind it is, because that one was begun only when the earlier one was durable.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::schema::beside;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Where the WAL stops being what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadFrame {
    /// From 1.
    pub frame: u64,
    /// In bytes, from the start of the file.
    pub offset: u64,
    /// Whether whole transactions follow: then acknowledged events are behind it for certain.
    pub certain: bool,
}

struct Sum {
    big: bool,
    a: u32,
    b: u32,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let word =
            |chunk: &[u8; 4]| if self.big { u32::from_be_bytes(*chunk) } else { u32::from_le_bytes(*chunk) };
        let (mut a, mut b) = (self.a, self.b);
        for pair in bytes.as_chunks::<8>().0 {
            let [first, second] = pair.as_chunks::<4>().0 else { return };
            a = a.wrapping_add(word(first)).wrapping_add(b);
            b = b.wrapping_add(word(second)).wrapping_add(a);
        }
        (self.a, self.b) = (a, b);
    }

    fn is(&self, bytes: &[u8]) -> bool {
        number(bytes, 0) == self.a && number(bytes, 4) == self.b
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_be_bytes(*chunk))
}

/// The first bad frame of the log's WAL, if there is a WAL and a bad frame.
pub(super) fn inspect(log: &Path) -> io::Result<Option<BadFrame>> {
    let file = match File::open(beside(log, "-wal")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut input = BufReader::with_capacity(1 << 18, file);
    let mut header = [0; HEADER];
    if !fill(&mut input, &mut header)? {
        return Ok(None);
    }
    let big = number(&header, 0) & 1 == 1;
    let mut sum = Sum { big, a: 0, b: 0 };
    sum.add(&header[..24]);
    let page = number(&header, 8) as usize;
    let known = number(&header, 0) & !1 == 0x377f_0682;
    if !known || !page.is_power_of_two() || !(512..=65_536).contains(&page) || !sum.is(&header[24..]) {
        // Whether it held anything that counts, only the acknowledgement mark can tell.
        return Ok(Some(BadFrame { frame: 0, offset: 0, certain: false }));
    }
    let salt = &header[16..24];
    let mut frame = vec![0; FRAME_HEADER + page];
    let mut bad: Option<BadFrame> = None;
    let mut ended_after_bad = false;
    let mut index = 0;
    while fill(&mut input, &mut frame)? {
        index += 1;
        let (head, body) = frame.split_at(FRAME_HEADER);
        let ours = &head[8..16] == salt;
        match &mut bad {
            None => {
                sum.add(&head[..8]);
                sum.add(body);
                if !ours || !sum.is(&head[16..]) {
                    let offset = HEADER as u64 + (index - 1) * (FRAME_HEADER + page) as u64;
                    // A bad frame may have been the last of its transaction itself.
                    ended_after_bad = number(head, 4) != 0;
                    bad = Some(BadFrame { frame: index, offset, certain: false });
                }
            }
            // Left over from before the WAL was last started from its beginning: the end, not damage.
            Some(_) if !ours => break,
            Some(bad) => {
                if ended_after_bad {
                    bad.certain = true;
                    break;
                }
                ended_after_bad = number(head, 4) != 0;
            }
        }
    }
    Ok(bad)
}

/// Whether `buffer` could be filled before the end of the file.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
