//! Tests.
mod backends;
