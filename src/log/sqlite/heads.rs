//! Where each stream ends, for those streams that matter now.
//!
//! The index lags behind the log a little; a stream whose last event is not yet indexed is found nowhere else, so its
//! head stays here until it is. Invariant: a stream that is neither here nor in the index does not exist.

use std::sync::Arc;

use lru::LruCache;

use crate::StreamHead;
use crate::event::Position;

/// How many heads are kept beyond those that must be.
const KEEP: usize = 50_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownHead {
    pub head: StreamHead,
    pub position: Position,
}

#[derive(Debug)]
pub(crate) struct Heads {
    known: LruCache<Arc<str>, KnownHead>,
}

impl Default for Heads {
    fn default() -> Self {
        Self { known: LruCache::unbounded() }
    }
}

impl Heads {
    pub(crate) fn get(&mut self, stream: &str) -> Option<KnownHead> {
        self.known.get(stream).copied()
    }

    pub(crate) fn set(&mut self, stream: &Arc<str>, head: KnownHead) {
        match self.known.get_mut(stream) {
            Some(known) if known.position > head.position => {}
            Some(known) => *known = head,
            None => {
                self.known.put(Arc::clone(stream), head);
            }
        }
    }

    /// Forgets the least recently used that are over the limit and in the index.
    pub(crate) fn trim(&mut self, indexed_through: Position) {
        while self.known.len() > KEEP {
            match self.known.peek_lru() {
                Some((_, head)) if head.position <= indexed_through => {
                    self.known.pop_lru();
                }
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;

    #[test]
    fn a_head_that_is_not_indexed_is_never_forgotten() {
        let mut heads = Heads::default();
        for n in 0..KEEP as u64 + 10 {
            let head = StreamHead { revision: 0, hash: Hash::default() };
            heads.set(&format!("s-{n}").into(), KnownHead { head, position: n + 1 });
        }
        heads.trim(4);
        assert!(heads.get("s-3").is_none());
        assert!(heads.get("s-4").is_some());
        assert_eq!(heads.known.len(), KEEP + 6);
    }
}
