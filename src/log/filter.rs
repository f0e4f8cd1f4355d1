//! Which events a reader wants.

use std::sync::Arc;

use crate::event::{Recorded, category};

/// Everything, one category, one stream, or whatever carries a tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    All,
    Category(Arc<str>),
    Stream(Arc<str>),
    Tag(Arc<str>),
    /// The events of one request; correlation is an indexed column and not a tag.
    Correlation(uuid::Uuid),
}

impl Filter {
    pub fn category(name: impl Into<Arc<str>>) -> Self {
        Self::Category(name.into())
    }

    pub fn stream(name: impl Into<Arc<str>>) -> Self {
        Self::Stream(name.into())
    }

    pub fn tag(tag: impl Into<Arc<str>>) -> Self {
        Self::Tag(tag.into())
    }

    /// Whether `event` is wanted.
    pub fn matches(&self, event: &Recorded) -> bool {
        match self {
            Self::All => true,
            Self::Category(name) => category(&event.stream) == &**name,
            Self::Stream(name) => event.stream == *name,
            Self::Tag(tag) => event.tags.iter().any(|t| t == tag),
            Self::Correlation(id) => event.correlation_id == *id,
        }
    }
}
