//! The **artifact store**: large bytes by their SHA-256, so that events cite them and stay small.
//!
//! Content-addressed: the same bytes are one object, an object never changes, and what is read is checked against its
//! name. An object is durable before [`Artifacts::put`] returns, hence before any event cites it. A directory by default;
//! an S3-compatible store is what several machines reach. Whether it can be used is asked of it by [`keep_probing`].

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt, path};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::config;

mod probe;
mod s3;
pub use probe::keep_probing;

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

/// Where artifacts are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Directory(PathBuf),
    /// A prefix is a path below which everything lies; it may be empty.
    S3 {
        bucket: String,
        prefix: String,
    },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("file:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err("file: is followed by a path".into())
            } else {
                Ok(Self::Directory(path.into()))
            };
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(format!("{url:?} is neither file:<path> nor s3://<bucket>[/<prefix>]"));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err("s3:// is followed by the name of a bucket".into());
        }
        match path::Path::parse(prefix) {
            Ok(prefix) => Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_string() }),
            Err(error) => Err(format!("the prefix {prefix:?} is no path: {error}")),
        }
    }
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
    /// Empty, or ends in a slash.
    prefix: Arc<str>,
    /// Woken when somebody could not use the store, so that readiness says so before the next look.
    suspected: Arc<Notify>,
}

impl Artifacts {
    /// The store at `place`. Nothing is asked of an S3 server yet: it may be away when the process starts.
    pub fn open(place: &Place, settings: &config::Artifacts) -> Result<Self, ArtifactError> {
        match place {
            Place::Directory(directory) => Self::local(directory),
            Place::S3 { bucket, prefix } => {
                let store = s3::open(bucket, settings)?;
                let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
                Ok(Self::over(Arc::new(store), &prefix))
            }
        }
    }

    /// A store in a local directory, which is made if need be.
    pub fn local(directory: &Path) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(directory).map_err(|source| {
            ArtifactError::Unavailable(object_store::Error::Generic { store: "local", source: source.into() })
        })?;
        let store = LocalFileSystem::new_with_prefix(directory).map_err(ArtifactError::Unavailable)?;
        Ok(Self::over(Arc::new(store.with_fsync(true)), ""))
    }

    fn over(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self { store, prefix: prefix.into(), suspected: Arc::default() }
    }

    /// Stores `bytes`; they are durable when it returns.
    pub async fn put(&self, bytes: Bytes) -> Result<Stored, ArtifactError> {
        let stored = Stored { sha256: digest(&bytes), size_bytes: bytes.len() as u64 };
        // The same bytes are the same object: a second put has nothing to do, unless what is there is damaged.
        if self.size(&stored.sha256).await == Some(stored.size_bytes)
            && self.get(&stored.sha256).await.is_ok()
        {
            return Ok(stored);
        }
        let put = self.store.put(&self.location(&stored.sha256), bytes.into()).await;
        put.map_err(|error| self.unavailable(error))?;
        Ok(stored)
    }

    async fn size(&self, sha256: &str) -> Option<u64> {
        Some(self.store.head(&self.location(sha256)).await.ok()?.size)
    }

    /// The bytes of `sha256`, checked.
    pub async fn get(&self, sha256: &str) -> Result<Bytes, ArtifactError> {
        let well_formed =
            sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !well_formed {
            return Err(ArtifactError::Absent(sha256.to_owned()));
        }
        let found = match self.store.get(&self.location(sha256)).await {
            Err(object_store::Error::NotFound { .. }) => {
                return Err(ArtifactError::Absent(sha256.to_owned()));
            }
            found => found.map_err(|error| self.unavailable(error))?,
        };
        let bytes = found.bytes().await.map_err(|error| self.unavailable(error))?;
        if digest(&bytes) == sha256 { Ok(bytes) } else { Err(ArtifactError::Damaged(sha256.to_owned())) }
    }

    fn location(&self, sha256: &str) -> path::Path {
        path::Path::from(format!("{}sha256/{}/{sha256}", self.prefix, &sha256[..2]))
    }

    fn unavailable(&self, error: object_store::Error) -> ArtifactError {
        self.suspected.notify_one();
        ArtifactError::Unavailable(error)
    }
}

/// SHA-256, lower-case hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_directory_or_a_bucket_with_a_prefix() {
        let s3 = |bucket: &str, prefix: &str| Place::S3 { bucket: bucket.into(), prefix: prefix.into() };
        for (url, place) in [
            ("file:/a/b", Place::Directory("/a/b".into())),
            ("file:///a/b", Place::Directory("/a/b".into())),
            ("file:a", Place::Directory("a".into())),
            ("s3://bucket", s3("bucket", "")),
            ("s3://bucket/", s3("bucket", "")),
            ("s3://bucket/a/b/", s3("bucket", "a/b")),
        ] {
            assert_eq!(url.parse::<Place>().unwrap(), place, "{url}");
        }
        for url in ["", "/a", "http://bucket", "s3:", "s3://", "s3://b/../c"] {
            url.parse::<Place>().unwrap_err();
        }
    }
}
