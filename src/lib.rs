//! beampipe.

/// Archives: where data is discovered (IVOA TAP).
pub mod archives;
/// Project configurations: what a survey says about discovery, manifests and graphs.
pub mod project;
