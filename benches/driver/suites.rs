//! What is measured, one file a suite.

pub mod growth;
pub mod http;
pub mod log_append;
pub mod postgres;
pub mod replay;
pub mod scale;
pub mod sse;
pub mod stream;
