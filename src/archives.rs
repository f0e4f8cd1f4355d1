//! Archives: the services outside that know what data exists.
//!
//! Owns talking to them and reading their answers. Archives are only ever read, so a request that failed may be
//! sent again. Deliberately absent: what a survey asks and what it makes of the answers, see [`crate::project`].

pub mod tap;
