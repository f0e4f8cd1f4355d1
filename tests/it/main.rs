//! One test binary: two cores link slowly.

mod backends;
mod flows;
mod tidy;
