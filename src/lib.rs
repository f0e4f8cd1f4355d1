//! beampipe.

/// Where executions run: DALiuGE over REST, and a simulated one for load tests.
pub mod backends;
