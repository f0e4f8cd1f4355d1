//! **References to secrets**: a configuration names where a secret is and never has it.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// Where a secret is: `{env = "NAME"}` or `{file = "/path"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretRef {
    /// An environment variable of the service.
    Env(String),
    /// A file, without the line break at its end.
    File(PathBuf),
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
                let text = std::fs::read_to_string(path)
                    .map_err(|source| SecretError::File { path: path.clone(), source })?;
                (text, path.display().to_string())
            }
        };
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
    fn a_secret_that_is_not_there_is_an_error_that_says_where() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        std::fs::write(&empty, "\n").unwrap();
        for (reference, word) in [
            (SecretRef::Env("BEAMPIPE_TEST_NEVER_SET".into()), "BEAMPIPE_TEST_NEVER_SET"),
            (SecretRef::File(directory.path().join("absent")), "absent"),
            (SecretRef::File(empty), "empty"),
        ] {
            let error = reference.read().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
