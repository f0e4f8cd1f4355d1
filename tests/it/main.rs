//! One test binary: the suites beside it, one module each.

mod archives;
mod project;
