//! Two queries that mean something by their name, for configurations written before flags could say the same.
//!
//! A flag of the same name that a survey defines itself goes before those of [`RA_DEC_VSYS`]; the file of a block is always
//! chosen here, as the name promises its choice and the error where there is none.

use serde_json::{Map, Value};

use crate::project::config::ProjectConfig;
use crate::project::transforms::{degrees, evaluation, is_empty, sexagesimal};

use super::answers::Rows;
use super::{PrepareError, Record};

/// Sets the flags `ra_string`, `dec_string` and `vsys` from a catalogue row.
pub const RA_DEC_VSYS: &str = "ra_dec_vsys";
/// Sets `evaluation_file` and `evaluation_file_access_url` of each record; a block without such a file is an error.
pub const SBID_TO_EVAL_FILE: &str = "sbid_to_eval_file";
/// What [`RA_DEC_VSYS`] sets, for the whole source.
pub const POSITION_FLAGS: [&str; 3] = ["ra_string", "dec_string", "vsys"];
/// What [`SBID_TO_EVAL_FILE`] sets, for each block.
pub const EVALUATION_FLAGS: [&str; 2] = ["evaluation_file", "evaluation_file_access_url"];

/// Whether a configuration has a query of this name.
pub(super) fn asks(config: &ProjectConfig, name: &str) -> bool {
    config.discovery.queries.iter().chain(&config.discovery.enrichments).any(|query| query.name == name)
}

/// The row of the file to use, `null` when there is none.
pub(super) fn evaluation_file(rows: &[Record], sbid: Option<&str>) -> Value {
    evaluation::select(&rows.iter().cloned().map(Value::Object).collect(), sbid)
}

/// Gives a record the file of its block.
pub(super) fn set_evaluation_file(
    rows: &Rows<'_>,
    record: &mut Record,
    sbid: &str,
) -> Result<(), PrepareError> {
    let row = evaluation_file(rows.of(SBID_TO_EVAL_FILE, Some(sbid))?, Some(sbid));
    for (flag, column) in EVALUATION_FLAGS.into_iter().zip(["filename", "access_url"]) {
        record.insert(flag.to_owned(), row.get(column).cloned().unwrap_or_default());
    }
    Ok(())
}

/// Position and velocity from the first catalogue row; all `null` when the catalogue does not have the source.
pub(super) fn position_flags(rows: &Rows<'_>) -> Map<String, Value> {
    let none = Record::new();
    let row = rows.all(RA_DEC_VSYS).next().unwrap_or(&none);
    let angle = |names: [&str; 3]| names.iter().find_map(|name| degrees(row.get(*name)?));
    let text = |text: Option<String>| text.map_or(Value::Null, Value::String);
    let velocity =
        ["rvmom", "rv50max", "rv50min"].iter().find_map(|name| row.get(*name).filter(|v| !is_empty(v)));
    let values = [
        text(angle(["raj2000", "ra", "s_ra"]).and_then(sexagesimal::hms)),
        text(angle(["dej2000", "dec", "s_dec"]).and_then(sexagesimal::dms)),
        velocity.cloned().unwrap_or_default(),
    ];
    POSITION_FLAGS.map(str::to_owned).into_iter().zip(values).collect()
}
