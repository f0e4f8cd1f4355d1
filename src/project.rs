//! Project configurations `beampipe.dev/v2`: what a survey says about its sources, discovery, manifests and graphs.
//!
//! Everything here is a pure function of the configuration and what was found; the two places that talk to the outside
//! are [`discover`], which asks archives, and [`graph::load`], which fetches a graph. A configuration is only ever handed
//! out validated ([`validate::validate`]), so the other modules do not check it again.
//! Deliberately absent: when anything of this runs, see the `automation` section's users.

pub mod canonical;
pub mod config;
pub mod discover;
pub mod explain;
pub mod graph;
pub mod manifest;
pub mod metadata;
pub mod signature;
pub mod template;
pub mod transforms;
pub mod validate;

pub use config::ProjectConfig;
pub use validate::{Diagnostic, Severity, Validation, ValidationReport, validate};
