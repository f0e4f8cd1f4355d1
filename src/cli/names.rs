//! What people call things, and the ids the API wants: a source is `PROJECT/IDENTIFIER`, a profile its name.
//!
//! These ids are made from the names, so no question to the service is needed; a UUID is taken as it is.

use beampipe_domain::id;
use uuid::Uuid;

/// A source by its UUID or as `PROJECT/IDENTIFIER`.
pub fn source(text: &str) -> Result<Uuid, String> {
    if let Ok(id) = Uuid::try_parse(text) {
        return Ok(id);
    }
    match text.split_once('/') {
        Some((project, identifier)) if !project.is_empty() && !identifier.is_empty() => {
            Ok(id::source(project, identifier))
        }
        _ => Err("a source is its UUID or PROJECT/IDENTIFIER, such as wallaby/HIPASSJ1318-21".to_owned()),
    }
}

/// A profile by its UUID or its name.
pub fn profile(text: &str) -> Result<Uuid, std::convert::Infallible> {
    Ok(Uuid::try_parse(text).unwrap_or_else(|_| id::profile(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_id_are_the_same_thing() {
        let id = source("wallaby/HIPASSJ1318-21").unwrap();
        assert_eq!(source(&id.to_string()), Ok(id));
        assert_eq!(id, id::source("wallaby", "HIPASSJ1318-21"));
        assert_eq!(profile("dim"), Ok(id::profile("dim")));
    }

    #[test]
    fn half_a_name_is_refused_with_an_example() {
        for text in ["HIPASSJ1318-21", "/x", "wallaby/"] {
            assert!(source(text).unwrap_err().contains("wallaby/HIPASS"), "{text}");
        }
    }
}
