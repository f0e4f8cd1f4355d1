//! Archives against a real TAP service and an independent VOTable reader.

mod fake_tap;
mod tap_faults;
mod tap_service;
mod votable_against_astropy;
mod votable_golden;

pub use fake_tap::http;
pub use tap_service::service;
