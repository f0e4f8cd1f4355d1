//! **References to secrets**: a configuration names where a secret is and never has it.

use std::io::Read;
use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// The longest secret, in bytes: a file without an end is none.
const LONGEST: usize = 64 * 1024;

/// Where a secret is: `{env = "NAME"}` or `{file = "/path"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "serde_json::Value")]
pub enum SecretRef {
    /// An environment variable of the service.
    Env(String),
    /// A file, without the line break at its end.
    File(PathBuf),
}

/// What stands where a reference belongs. Never repeated: it may be the secret itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no reference to a secret: {{env = \"NAME\"}} or {{file = \"/path\"}}, never the secret itself")]
pub struct NoReference;

impl TryFrom<serde_json::Value> for SecretRef {
    type Error = NoReference;

    fn try_from(value: serde_json::Value) -> Result<Self, NoReference> {
        let serde_json::Value::Object(fields) = value else { return Err(NoReference) };
        let mut fields = fields.into_iter();
        match (fields.next(), fields.next()) {
            (Some((kind, serde_json::Value::String(place))), None) => match kind.as_str() {
                "env" => Ok(Self::Env(place)),
                "file" => Ok(Self::File(place.into())),
                _ => Err(NoReference),
            },
            _ => Err(NoReference),
        }
    }
}

/// `env:NAME` or `file:/path`, as options of the command line have it.
impl std::str::FromStr for SecretRef {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("a reference is env:NAME or file:PATH, never the secret itself"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the environment variable {0} is not set or not text")]
    Env(String),
    #[error("the secret in {path} cannot be read")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the secret in {0} is empty")]
    Empty(String),
    #[error("what is in {0} is longer than {LONGEST} bytes: it is no secret")]
    TooLong(String),
}

impl SecretRef {
    /// The secret as it is now.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        let (text, place) = match self {
            #[expect(clippy::disallowed_methods, reason = "the configuration named this variable for it")]
            Self::Env(name) => {
                (std::env::var(name).map_err(|_| SecretError::Env(name.clone()))?, name.clone())
            }
            Self::File(path) => {
                let mut text = String::new();
                std::fs::File::open(path)
                    .and_then(|file| file.take(LONGEST as u64 + 1).read_to_string(&mut text))
                    .map_err(|source| SecretError::File { path: path.clone(), source })?;
                (text, path.display().to_string())
            }
        };
        if text.len() > LONGEST {
            return Err(SecretError::TooLong(place));
        }
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() { Err(SecretError::Empty(place)) } else { Ok(secret.into()) }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_secret_in_a_file_is_read_without_the_end_of_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "of mine \r\n").unwrap();
        assert_eq!(SecretRef::File(path).read().unwrap().expose_secret(), "of mine ");
    }

    #[test]
    fn what_stands_where_a_reference_belongs_is_never_repeated() {
        for given in
            [serde_json::json!("canary"), serde_json::json!({"canary": "x"}), serde_json::json!({"env": 7})]
        {
            let error = serde_json::from_value::<SecretRef>(given).unwrap_err().to_string();
            assert!(error.contains("never the secret itself") && !error.contains("canary"), "{error}");
        }
        let read = serde_json::from_value::<SecretRef>(serde_json::json!({"file": "/a"})).unwrap();
        assert_eq!(
            (read, "env:NAME".parse()),
            (SecretRef::File("/a".into()), Ok(SecretRef::Env("NAME".into())))
        );
        assert!("canary".parse::<SecretRef>().is_err_and(|error| !error.contains("canary")));
    }

    #[test]
    fn a_secret_that_is_not_there_is_an_error_that_says_where() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        std::fs::write(&empty, "\n").unwrap();
        let long = directory.path().join("long");
        std::fs::write(&long, "x".repeat(LONGEST + 1)).unwrap();
        for (reference, word) in [
            (SecretRef::Env("BEAMPIPE_TEST_NEVER_SET".into()), "BEAMPIPE_TEST_NEVER_SET"),
            (SecretRef::File(directory.path().join("absent")), "absent"),
            (SecretRef::File(empty), "empty"),
            (SecretRef::File(long), "longer than"),
            (SecretRef::File("/dev/zero".into()), "longer than"),
        ] {
            let error = reference.read().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
