//! beampipe.
