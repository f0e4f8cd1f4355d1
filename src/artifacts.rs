//! The **artifact store**: large bytes by their SHA-256, so that events cite them and stay small.
//!
//! Content-addressed: the same bytes are one object, an object never changes, and what is read is checked against its
//! name. An object is durable before [`Artifacts::put`] returns, hence before any event cites it. Directory by default;
//! an object store that several machines reach is the same code over another [`ObjectStore`].

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt, path};
use sha2::{Digest, Sha256};

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("no artifact {0}")]
    Absent(String),
    /// What is stored is not what was put.
    #[error("artifact {0} is damaged: its bytes do not have its digest")]
    Damaged(String),
    #[error("the artifact store cannot be used")]
    Unavailable(#[source] object_store::Error),
}

/// What [`Artifacts::put`] answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub size_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct Artifacts {
    store: Arc<dyn ObjectStore>,
}

impl Artifacts {
    /// A store in a local directory, which is made if need be.
    pub fn local(directory: &Path) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(directory).map_err(|source| {
            ArtifactError::Unavailable(object_store::Error::Generic { store: "local", source: source.into() })
        })?;
        let store = LocalFileSystem::new_with_prefix(directory).map_err(ArtifactError::Unavailable)?;
        Ok(Self { store: Arc::new(store.with_fsync(true)) })
    }

    /// Stores `bytes`; they are durable when it returns.
    pub async fn put(&self, bytes: Bytes) -> Result<Stored, ArtifactError> {
        let stored = Stored { sha256: digest(&bytes), size_bytes: bytes.len() as u64 };
        let location = location(&stored.sha256);
        // The same bytes are the same object: a second put has nothing to do.
        if self.store.head(&location).await.is_ok_and(|meta| meta.size == stored.size_bytes) {
            return Ok(stored);
        }
        self.store.put(&location, bytes.into()).await.map_err(ArtifactError::Unavailable)?;
        Ok(stored)
    }

    /// The bytes of `sha256`, checked.
    pub async fn get(&self, sha256: &str) -> Result<Bytes, ArtifactError> {
        let well_formed =
            sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !well_formed {
            return Err(ArtifactError::Absent(sha256.to_owned()));
        }
        let found = match self.store.get(&location(sha256)).await {
            Err(object_store::Error::NotFound { .. }) => {
                return Err(ArtifactError::Absent(sha256.to_owned()));
            }
            found => found.map_err(ArtifactError::Unavailable)?,
        };
        let bytes = found.bytes().await.map_err(ArtifactError::Unavailable)?;
        if digest(&bytes) == sha256 { Ok(bytes) } else { Err(ArtifactError::Damaged(sha256.to_owned())) }
    }
}

/// SHA-256, lower-case hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn location(sha256: &str) -> path::Path {
    path::Path::from(format!("sha256/{}/{sha256}", &sha256[..2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_put_is_got_and_a_flipped_byte_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::local(directory.path()).unwrap();
        let stored = artifacts.put(Bytes::from_static(b"manifest")).await.unwrap();
        assert_eq!(artifacts.put(Bytes::from_static(b"manifest")).await.unwrap(), stored);
        assert_eq!(artifacts.get(&stored.sha256).await.unwrap(), "manifest");
        let file = directory.path().join(format!("sha256/{}/{}", &stored.sha256[..2], stored.sha256));
        std::fs::write(file, b"manifesT").unwrap();
        assert!(matches!(artifacts.get(&stored.sha256).await, Err(ArtifactError::Damaged(_))));
    }

    #[tokio::test]
    async fn what_is_no_digest_is_absent_and_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::local(directory.path()).unwrap();
        for name in ["", "../../etc/passwd", &"0".repeat(64)] {
            assert!(matches!(artifacts.get(name).await, Err(ArtifactError::Absent(_))), "{name}");
        }
    }
}
